"""Where a real Chromium is, and how it is started without a desktop."""

import contextlib
import os
import shutil
from collections.abc import Iterator

from playwright import sync_api

_FLAGS = (
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
)


def path() -> str | None:
  """Returns the program: $CHROMIUM, or that on the PATH, or None."""
  return os.environ.get("CHROMIUM") or shutil.which("chromium")


@contextlib.contextmanager
def launch() -> Iterator[sync_api.Browser]:
  """Starts Chromium and ends it.

  Raises:
    FileNotFoundError: There is none.
  """
  found = path()
  if found is None:
    raise FileNotFoundError(
      "needs Chromium: install it, or name it in $CHROMIUM"
    )
  with sync_api.sync_playwright() as driver:
    browser = driver.chromium.launch(executable_path=found, args=[*_FLAGS])
    try:
      yield browser
    finally:
      browser.close()
