r"""Tests of the shipped world's page in a real Chromium.

If GENIE_SCREENSHOTS names a folder, the tests save screenshots there, of the
page and each of its dialogs, in light and dark colours and on a narrow screen:

    GENIE_SCREENSHOTS=looks python -m pytest -m slow \
        tests/serve/test_shipped_page.py
"""

import io
import itertools
import os
import pathlib

import browser
import command
import numpy as np
import pytest
from PIL import Image, ImageSequence
from playwright import sync_api

from genie_jax.core import images
from genie_jax.evals import scroll

SHIPPED = command.ROOT / "experiments" / "coinrun" / "results" / "world"
LOOKS = {
  "light": {"viewport": {"width": 1280, "height": 900}},
  "dark": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
  "narrow": {
    "viewport": {"width": 360, "height": 740},
    "has_touch": True,
    "is_mobile": True,
    "device_scale_factor": 2,
  },
}
DIALOGS = ("compare", "names", "record", "share", "draw")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shipped():
  """The world that ships, as `genie play` serves it."""
  with command.Command(SHIPPED) as found:
    yield found


@pytest.fixture(scope="module")
def chromium():
  """One browser for all tests."""
  with browser.open_browser() as found:
    yield found


def save(page, name):
  """Saves a screenshot if GENIE_SCREENSHOTS is set."""
  folder = os.environ.get("GENIE_SCREENSHOTS")
  if folder:
    page.page.screenshot(path=pathlib.Path(folder) / f"{name}.png")


def frames(page):
  """Returns the pixels of all frames of the newest run."""
  found = [
    message
    for message in page.messages
    if isinstance(message, bytes) and message[1] == 1
  ]
  return [
    images.from_png(message[16:])
    for message in found
    if message[4:8] == found[-1][4:8]
  ]


def apart(one, other):
  """Returns the mean absolute difference of two images, in grey levels."""
  return np.abs(np.float32(one) - np.float32(other)).mean()


def hold(page, key, seconds):
  """Holds a key; returns the frames that were drawn meanwhile, [F, H, W, C]."""
  first = int(page.page.inner_text("#newest"))
  page.page.keyboard.down(key)
  page.page.wait_for_timeout(1000 * seconds)
  page.page.keyboard.up(key)
  count = -1  # Frames that were asked for may still be on their way.
  while count != (count := int(page.page.inner_text("#newest"))):
    page.page.wait_for_timeout(1000)
  # After a return to an earlier frame, only later ones belong to the run.
  return np.stack(frames(page)[first - count :])


def across(shown):
  """Returns how far the player has moved to the right, in pixels."""
  return float(scroll.places(shown[None])[0, -1, 0])


def test_a_visitor_walks_jumps_looks_back_and_saves_a_film(shipped, chromium):
  """What a first visitor does, with the keys that the page draws."""
  page = browser.Page(chromium, shipped.url)
  page.at(0)
  # Before any key is pressed, the page says what to press.
  shown = page.page.inner_text("#buttons")
  for name in ("left", "right", "jump"):
    assert name in shown
  assert page.page.locator("#banner").is_visible()
  save(page, "visitor-1-start")
  page.page.fill("#seed", "0")
  page.page.locator("#gallery button").nth(6).click()
  page.at(0)
  right = hold(page, "ArrowRight", 3)
  save(page, "visitor-2-right")
  left = hold(page, "ArrowLeft", 3)
  save(page, "visitor-3-left")
  # Few frames if other programs run: he walks to the right, then to the left.
  assert min(len(right), len(left)) > 4
  assert across(right[:13]) > 2 > -2 > across(left[:13])
  page.page.keyboard.down("ArrowUp")
  page.page.wait_for_timeout(400)
  page.page.keyboard.up("ArrowUp")
  save(page, "visitor-4-jump")
  page.painted()
  # Another picture of the gallery, and one's own.
  page.page.locator("#gallery button").nth(3).click()
  page.at(0)
  save(page, "visitor-5-gallery")
  own = io.BytesIO()
  picture = Image.open(SHIPPED / "prompts" / "02.png").convert("RGB")
  picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(own, "PNG")
  page.drop(own.getvalue())
  pressed = page.page.locator("#gallery [aria-pressed=true]")
  sync_api.expect(pressed).to_have_count(0, timeout=15_000)
  page.at(0)
  hold(page, "ArrowRight", 2)
  save(page, "visitor-6-own-picture")
  # Back in time, and on from there.
  for _ in range(5):
    page.page.click("#back")
  there = int(page.page.inner_text("#shown"))
  page.page.click("#rewind")
  page.at(there)
  hold(page, "ArrowLeft", 1)
  save(page, "visitor-7-back")
  page.page.click("#record")
  with page.page.expect_download() as saved:
    page.page.click("#record-save")
  with Image.open(saved.value.path()) as film:
    assert film.n_frames > 2
  save(page, "visitor-8-film")
  assert page.problems == []
  page.close()


def test_ten_frames_are_played_and_a_link_shows_them_again(shipped, chromium):
  page = browser.Page(chromium, shipped.url)
  page.at(0)
  seen = [page.painted()]
  for key in "1111100000":
    page.press(key)
    seen.append(page.painted())
  assert len(set(seen)) == 11
  page.page.click("#share")
  other = browser.Page(chromium, page.page.input_value("#share-link"))
  other.at(10)
  assert other.painted() == seen[-1]
  assert page.problems == other.problems == []
  page.close()
  other.close()


def test_a_dropped_picture_is_played_and_recorded(shipped, chromium):
  page = browser.Page(chromium, shipped.url)
  page.at(0)
  # A picture that is not in the gallery, of another shape and size.
  own = (
    Image.open(SHIPPED / "prompts" / "05.png")
    .convert("RGB")
    .transpose(Image.Transpose.FLIP_LEFT_RIGHT)
  )
  wide = Image.new("RGB", (384, 256))
  wide.paste(own.resize((256, 256), Image.Resampling.NEAREST), (64, 0))
  content = io.BytesIO()
  wide.save(content, "PNG")
  page.drop(content.getvalue())
  # The prompt that is played is no longer one of the gallery.
  pressed = page.page.locator("#gallery [aria-pressed=true]")
  sync_api.expect(pressed).to_have_count(0, timeout=15_000)
  page.at(0)
  page.painted()
  shown = np.array(page.pixels(), np.uint8).reshape(64, 64, 4)[..., :3]
  others = [
    images.load_prompt(path, 64, 64)
    for path in sorted((SHIPPED / "prompts").iterdir())
  ]
  # The tokenizer reconstructs it: much closer to it than to any prompt.
  assert 2 * apart(shown, np.asarray(own)) < min(
    apart(shown, other) for other in others
  )
  page.press("111000")
  page.page.click("#record")
  with page.page.expect_download() as saved:
    page.page.click("#record-save")
  drawn = frames(page)
  assert len(drawn) == 7
  drawn = drawn[:1] + [  # GIF joins equal frames.
    frame for before, frame in itertools.pairwise(drawn) if apart(before, frame)
  ]
  assert len(drawn) > 4
  with Image.open(saved.value.path()) as film:
    found = [
      np.asarray(each.convert("RGB").resize((64, 64), Image.Resampling.NEAREST))
      for each in ImageSequence.Iterator(film)
    ]
    assert film.size == (256, 256)
  assert len(found) == len(drawn)
  for one, other in zip(found, drawn, strict=True):
    assert apart(one, other) < 6  # A GIF has 256 colours.
  assert page.problems == []
  page.close()


@pytest.mark.parametrize("look", LOOKS)
def test_every_dialog_fits_the_screen(shipped, chromium, look):
  page = browser.Page(chromium, shipped.url, **LOOKS[look])
  page.at(0)
  page.press("1100")
  width = LOOKS[look]["viewport"]["width"]
  assert page.page.evaluate("document.documentElement.scrollWidth") <= width
  # The names of the buttons are not cut off.
  assert page.page.evaluate(
    "[...document.querySelectorAll('#buttons b')].every((each) =>"
    " each.scrollWidth <= each.clientWidth)"
  )
  save(page, f"{look}-page")
  if look == "narrow":
    page.page.locator("aside").scroll_into_view_if_needed()
    page.page.evaluate("scrollTo(0, document.body.scrollHeight)")
    save(page, f"{look}-below")
  for name in DIALOGS:
    page.page.click(f"#{name}")
    dialog = page.page.locator("dialog[open]")
    if name == "compare":
      while not page.page.evaluate(
        "[...document.querySelectorAll('#compared canvas')].every((each) =>"
        " each.getContext('2d').getImageData(0, 0, 1, 1).data[3])"
      ):
        page.page.wait_for_timeout(100)
      page.page.wait_for_timeout(1500)
    save(page, f"{look}-{name}")
    box = dialog.bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= width, name
    assert dialog.evaluate("each => each.scrollWidth <= each.clientWidth"), name
    page.page.keyboard.press("Escape")
    page.page.locator("dialog[open]").wait_for(state="detached")
  page.drop(b"no picture")
  notice = page.page.locator("#notice")
  notice.wait_for()
  box = notice.bounding_box()
  assert box["width"] > min(width, 640) * 0.8 and box["height"] < 100
  save(page, f"{look}-notice")
  page.close()
