"""Opens the page in a real Chromium."""

import contextlib
import hashlib

import pytest
from playwright import sync_api

from benchmarks import chromium


@contextlib.contextmanager
def open_browser():
  """Starts Chromium; skips the test if it is not installed."""
  if chromium.path() is None:
    pytest.skip("needs Chromium: install it, or set $CHROMIUM to its path")
  with chromium.launch() as browser:
    yield browser


class Page:
  """The page in a new browser profile, with all messages it received."""

  def __init__(self, browser, url, **options):
    self.context = browser.new_context(accept_downloads=True, **options)
    self.page = self.context.new_page()
    self.problems, self.requests, self.messages = [], [], []
    self.page.on("pageerror", lambda error: self.problems.append(str(error)))
    # Requests that the Content-Security-Policy blocks are errors as well.
    self.page.on(
      "console",
      lambda said: (
        self.problems.append(said.text) if said.type == "error" else None
      ),
    )
    self.page.on("request", lambda asked: self.requests.append(asked.url))
    self.page.on(
      "websocket",
      lambda opened: opened.on(
        "framereceived", lambda message: self.messages.append(message)
      ),
    )
    self.open(url)

  def open(self, url):
    self.page.goto(url)
    self.page.wait_for_selector("#connection[data-state=open]")

  def at(self, frame):
    """Waits until the newest frame has this number."""
    sync_api.expect(self.page.locator("#newest")).to_have_text(
      str(frame), timeout=15_000
    )
    sync_api.expect(self.page.locator("#shown")).to_have_text(str(frame))

  def painted(self):
    """Waits until the canvas no longer changes; returns a hash of it."""
    read = lambda: self.page.evaluate(
      "document.getElementById('frame').toDataURL()"
    )
    before = read()
    while True:
      self.page.wait_for_timeout(80)
      after = read()
      if after == before:
        return hashlib.sha256(after.encode()).hexdigest()
      before = after

  def pixels(self):
    """Returns RGBA values of the canvas, row by row."""
    return self.page.evaluate(
      "(() => { const c = document.getElementById('frame');"
      "return [...c.getContext('2d').getImageData("
      "0, 0, c.width, c.height).data]; })()"
    )

  def press(self, keys):
    """Presses keys one after the other, and waits for the frame of each."""
    for key in keys:
      count = int(self.page.inner_text("#newest"))
      self.page.keyboard.press(key)
      self.at(count + 1)

  def drop(self, content, name="p.png"):
    """Drops a file on the page."""
    self.page.evaluate(
      "([bytes, name]) => { const data = new DataTransfer();"
      "data.items.add(new File([new Uint8Array(bytes)], name,"
      " {type: 'image/png'}));"
      "document.body.dispatchEvent(new DragEvent('drop',"
      " {dataTransfer: data, bubbles: true, cancelable: true})); }",
      [list(content), name],
    )

  def close(self):
    self.context.close()
