"""Tests of the page in a real Chromium."""

import contextlib
import dataclasses
import io
import json
import pathlib
import threading
import time

import browser
import fake_world
import numpy as np
import players
import pytest
from PIL import Image
from playwright import sync_api

from genie_jax.core import images
from genie_jax.serve import protocol

PROMPT = fake_world.picture(0)


@pytest.fixture(scope="module")
def chromium():
  """One browser for all tests."""
  with browser.open_browser() as found:
    yield found


@pytest.fixture()
def page(chromium, host):
  """The page of the fake world; checks for errors and foreign requests."""
  opened = browser.Page(chromium, f"http://{host}/")
  yield opened
  opened.close()
  assert opened.problems == []
  for url in opened.requests:
    assert url.startswith((f"http://{host}/", "blob:", "data:")), url


def seed(page):
  return int(page.page.input_value("#seed"))


def shows(page, frame):
  page.painted()
  found = np.array(page.pixels(), np.uint8).reshape(*frame.shape[:2], 4)
  return (found[..., :3] == frame).all() and (found[..., 3] == 255).all()


def test_ten_frames_are_played_and_painted_as_the_model_drew_them(page):
  page.at(0)
  page.press("0123012301")
  page.at(10)
  actions = [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
  assert shows(page, fake_world.solo(PROMPT, seed(page), actions)[-1])
  # A whole number of device pixels per pixel, without smoothing.
  box = page.page.locator("#frame").bounding_box()
  assert box["width"] % fake_world.SHAPE[1] == 0
  assert (
    page.page.evaluate(
      "getComputedStyle(document.getElementById('frame')).imageRendering"
    )
    == "pixelated"
  )


def test_a_held_key_repeats_and_a_released_one_stops(page):
  page.at(0)
  page.page.keyboard.down("ArrowRight")
  page.page.wait_for_timeout(1000)
  page.page.keyboard.up("ArrowRight")
  page.page.wait_for_timeout(400)
  count = int(page.page.inner_text("#newest"))
  assert 5 <= count <= 20  # The world has 15 frames per second.
  assert shows(page, fake_world.solo(PROMPT, seed(page), [1] * count)[-1])
  page.page.wait_for_timeout(300)
  page.at(count)
  assert float(page.page.inner_text("#latency").split()[0]) < 2000


def test_a_dropped_picture_is_played(page):
  page.at(0)
  page.press("00")
  own = fake_world.picture(123)
  page.drop(images.to_png(own))
  page.at(0)
  assert shows(page, fake_world.solo(own, seed(page), [])[0])
  page.press("2")
  assert shows(page, fake_world.solo(own, seed(page), [2])[-1])
  # The dialog explains that such a run has no link.
  page.page.click("#share")
  assert page.page.is_visible("#share-why")
  with page.page.expect_download() as saved:
    page.page.click("#share-save")
  run = json.loads(pathlib.Path(saved.value.path()).read_text())
  assert run["actions"] == "2" and run["prompt"] is None
  page.page.click("#share-dialog [data-close]")
  page.press("33")
  page.page.click("#share")
  page.page.set_input_files("#share-file", saved.value.path())
  page.at(1)
  assert shows(page, fake_world.solo(own, run["seed"], [2])[-1])


def test_a_pasted_picture_is_played(page, host):
  page.at(0)
  page.press("0")
  page.context.grant_permissions(["clipboard-read", "clipboard-write"])
  own = fake_world.picture(77)
  page.page.evaluate(
    "(bytes) => navigator.clipboard.write([new ClipboardItem({'image/png':"
    " new Blob([new Uint8Array(bytes)], {type: 'image/png'})})])",
    list(images.to_png(own)),
  )
  page.page.keyboard.press("Control+V")
  page.at(0)
  assert shows(page, fake_world.solo(own, seed(page), [])[0])
  # Text is not a picture and changes nothing.
  page.press("1")
  page.page.evaluate("navigator.clipboard.writeText('hello')")
  page.page.keyboard.press("Control+V")
  page.press("2")
  assert shows(page, fake_world.solo(own, seed(page), [1, 2])[-1])


def test_the_game_starts_from_the_picture_that_was_drawn(page, server):
  page.at(0)
  page.press("00")
  page.page.click("#draw")
  page.page.click("#palette [aria-label=red]")
  page.page.select_option("#editor-tool", "fill")
  canvas = page.page.locator("#editor")
  box = canvas.bounding_box()
  size = box["width"] / fake_world.SHAPE[1]
  at = lambda x, y: {"x": (x + 0.5) * size, "y": (y + 0.5) * size}
  canvas.click(position=at(3, 3))  # Fills the whole picture.
  page.page.click("#palette [aria-label=yellow]")
  page.page.select_option("#editor-tool", "2")
  canvas.hover(position=at(5, 8))  # A stroke from left to right.
  page.page.mouse.down()
  canvas.hover(position=at(15, 8))
  page.page.mouse.up()
  page.page.click("#palette [aria-label=blue]")
  page.page.select_option("#editor-tool", "4")
  canvas.click(position=at(20, 2))
  page.page.click("#editor-undo")  # Removes the blue.
  page.page.click("#palette [aria-label=white]")
  page.page.select_option("#editor-tool", "1")
  canvas.focus()
  page.page.keyboard.press("ArrowLeft")  # From the middle of the picture.
  page.page.keyboard.press(" ")
  wanted = np.empty(fake_world.SHAPE, np.uint8)
  wanted[:] = 0xC0, 0x39, 0x2B
  wanted[7:9, 4:16] = 0xF1, 0xC4, 0x0F
  wanted[8, 11] = 255
  page.page.click("#editor-use")
  page.at(0)
  assert shows(page, fake_world.solo(wanted, seed(page), [])[0])
  [session] = server[0].hub
  np.testing.assert_array_equal(session.line.origin.frame, wanted)


def test_an_uploaded_picture_counts_for_the_session_that_sends_it(page, server):
  page.at(0)
  page.drop(images.to_png(fake_world.picture(9)))
  sync_api.expect(page.page.locator("#said")).to_have_text("A new game.")
  [session] = server[0].hub
  # The page may say so of the game before, while the picture is on its way.
  deadline = time.monotonic() + 20
  while not server[0]._pictures._names and time.monotonic() < deadline:
    page.page.wait_for_timeout(50)
  assert list(server[0]._pictures._names) == [session.token]


def test_a_file_that_is_not_a_picture_gets_a_notice(page):
  page.at(0)
  page.drop(b"no picture")
  notice = page.page.locator("#notice")
  sync_api.expect(notice).to_contain_text("is not a picture")
  # The browser reports the status 415 as an error; there is no other.
  page.problems = [text for text in page.problems if "415" not in text]


def test_looking_back_playing_on_and_branching(page):
  page.at(0)
  page.press("0" * 8)
  drawn = fake_world.solo(PROMPT, seed(page), [0] * 8)
  for number in (3, 6):
    page.page.locator("#slider").fill(str(number))
    assert shows(page, drawn[number])
  page.page.click("#branch")
  page.at(6)
  page.press("1")
  assert shows(page, fake_world.solo(PROMPT, seed(page), [0] * 6 + [1])[-1])
  page.page.select_option("#lines", "0")
  page.at(8)
  assert shows(page, drawn[8])
  page.page.locator("#slider").fill("2")
  page.page.keyboard.press("3")  # Continues from the frame shown.
  page.at(3)
  assert shows(page, fake_world.solo(PROMPT, seed(page), [0, 0, 3])[-1])


@pytest.mark.parametrize("kind", ["gif", "mp4"])
def test_a_video_is_saved(page, kind):
  page.at(0)
  page.press("012")
  page.page.click("#record")
  page.page.select_option("#record-format", kind)
  with page.page.expect_download() as saved:
    page.page.click("#record-save")
  content = pathlib.Path(saved.value.path()).read_bytes()
  assert saved.value.suggested_filename.endswith(f".{kind}")
  if kind == "gif":
    with Image.open(io.BytesIO(content)) as gif:
      assert gif.n_frames == 4 and gif.size == (96, 64)
  else:
    assert content[4:8] == b"ftyp"


def test_a_video_that_is_lost_with_the_connection_can_be_saved_again(
  page, server, monkeypatch
):
  held, whole = threading.Event(), images.to_video
  monkeypatch.setattr(
    images, "to_video", lambda *words: (held.wait(20), whole(*words))[1]
  )
  page.at(0)
  page.press("01")
  page.page.click("#record")
  save = page.page.locator("#record-save")
  save.click()
  sync_api.expect(save).to_be_disabled()
  [session] = server[0].hub
  session.connection.close(1011, "a test")
  sync_api.expect(save).to_be_enabled()
  sync_api.expect(save).to_have_text("Save")
  sync_api.expect(page.page.locator("#notice")).to_contain_text(
    "save the video again"
  )
  held.set()  # No page receives this video.
  while session.filming:
    page.page.wait_for_timeout(20)
  page.page.wait_for_selector("#connection[data-state=open]")
  with page.page.expect_download() as saved:
    save.click()
  assert pathlib.Path(saved.value.path()).read_bytes().startswith(b"GIF89a")


def test_a_run_ends_with_a_notice_and_continues_from_an_earlier_frame(
  chromium, monkeypatch
):
  monkeypatch.setattr(protocol, "MAX_ACTIONS", 6)
  with players.serving(fake_world.make_engine()) as (_, host):
    opened = browser.Page(chromium, f"http://{host}/")
    opened.at(0)
    opened.page.select_option("#speed", "most")
    opened.page.evaluate("document.activeElement.blur()")
    opened.page.keyboard.down("0")
    opened.at(6)
    opened.page.wait_for_timeout(600)  # Still held.
    opened.page.keyboard.up("0")
    opened.at(6)
    notice = opened.page.locator("#notice")
    sync_api.expect(notice).to_contain_text("6 frames, the maximum")
    errors = [
      text
      for text in opened.messages
      if isinstance(text, str) and '"error"' in text
    ]
    assert len(errors) < 20  # The page stops sending actions.
    opened.page.locator("#slider").fill("3")
    opened.page.keyboard.press("1")
    opened.at(4)
    assert shows(
      opened, fake_world.solo(PROMPT, seed(opened), [0, 0, 0, 1])[-1]
    )
    opened.close()


def test_a_shared_link_shows_the_same_frames_in_another_browser(page, chromium):
  page.at(0)
  page.page.click("#gallery button:nth-child(2)")
  page.at(0)
  page.press("0021")
  page.page.click("#share")
  link = page.page.input_value("#share-link")
  assert "actions=0x2,2,1" in link
  page.page.click("#share-dialog [data-close]")
  other = browser.Page(chromium, link)
  other.at(4)
  assert other.painted() == page.painted()
  frames = lambda each: [
    bytes(message[16:])
    for message in each.messages
    if isinstance(message, bytes) and message[1] == 1
  ][-5:]
  assert frames(other) == frames(page)
  other.close()


def test_the_page_can_be_used_by_keyboard_alone(page):
  page.at(0)
  press = page.page.keyboard.press
  focused = lambda: page.page.evaluate("document.activeElement.id")

  def reach(name):
    for _ in range(60):
      press("Tab")
      if focused() == name:
        return
    raise AssertionError(f"{name} cannot be reached by Tab")

  press("Tab")
  assert page.page.evaluate("document.activeElement.className") == "skip"
  press("Enter")
  press("Tab")
  before = int(page.page.inner_text("#newest"))
  press("Enter")  # On a button of the world.
  page.at(before + 1)
  reach("slider")
  page.press("0")
  press("ArrowLeft")  # On the slider, arrow keys show other frames.
  sync_api.expect(page.page.locator("#shown")).to_have_text("1")
  reach("rewind")
  press("Enter")
  page.at(1)
  reach("draw")
  press("Enter")
  sync_api.expect(page.page.locator("#editor")).to_be_focused()
  press("ArrowLeft")
  press(" ")
  reach("editor-use")
  press("Enter")
  page.at(0)
  reach("names")
  press("Enter")
  page.page.keyboard.type("jump")
  press("Escape")
  sync_api.expect(page.page.locator("#buttons b").first).to_have_text("jump")
  assert (
    page.page.evaluate("document.activeElement.id") == "names"
  )  # Focus came back.


def test_names_and_keys_are_kept_for_the_world(page, host):
  page.at(0)
  page.page.click("#names")
  page.page.fill("#name-rows .name-row:nth-child(3) input", "duck")
  page.page.click("#name-rows .name-row:nth-child(3) button")
  page.page.keyboard.press("s")
  page.page.click("#names-dialog .accent")
  page.open(f"http://{host}/")
  key = page.page.locator("#buttons [data-action='2']")
  sync_api.expect(key.locator("b")).to_have_text("duck")
  count = int(page.page.inner_text("#newest"))
  page.page.keyboard.press("s")
  page.at(count + 1)
  assert key.locator("kbd").inner_text() == "s"
  assert key.locator("small").inner_text() == "2"


def measured(number, name, share, source="world"):
  return {"button": number, "name": name, "share": share, "source": source}


NAMED = (
  measured(0, "jump", 0.6),
  measured(2, "left", 0.9),
  measured(3, "jump", 0.8),
)


@contextlib.contextmanager
def page_of(chromium, buttons, **options):
  """Opens the page of a fake world whose buttons were measured."""
  engine = fake_world.make_engine(buttons=buttons)
  with players.serving(engine) as (_, host):
    opened = browser.Page(chromium, f"http://{host}/", **options)
    opened.at(0)
    yield opened
    assert opened.problems == []
    opened.close()


def key_texts(page):
  """Returns what is printed on the key of each button."""
  return page.page.evaluate(
    "[...document.querySelectorAll('#buttons button')].sort((a, b) =>"
    " a.dataset.action - b.dataset.action).map((each) =>"
    " [...each.children].map((part) => part.textContent))"
  )


def test_buttons_that_were_measured_have_their_names_and_keys(chromium):
  with page_of(chromium, NAMED) as opened:
    # Of two that jump, the one that does it more often has the key.
    assert key_texts(opened) == [
      ["0", "jump", ""],
      ["1", "unclear", ""],
      ["←", "left", "2"],
      ["↑", "jump", "3"],
    ]
    label = opened.page.locator("[data-action='2']").get_attribute("aria-label")
    assert label == "left, button 2, key ArrowLeft or 2"
    opened.page.keyboard.press("ArrowLeft")
    opened.at(1)
    opened.page.keyboard.press("ArrowUp")
    opened.at(2)
    opened.page.keyboard.press("ArrowRight")  # Nothing was named "right".
    opened.page.wait_for_timeout(300)
    opened.at(2)
    assert shows(opened, fake_world.solo(PROMPT, seed(opened), [2, 3])[-1])


def test_arrow_keys_are_drawn_where_a_keyboard_has_them(chromium):
  four = [
    measured(number, name, 0.9)
    for number, name in enumerate(("fall", "left", "right", "jump"))
  ]
  with page_of(chromium, four) as opened:
    down, left, right, up = (
      opened.page.locator(f"[data-action='{number}']").bounding_box()
      for number in range(4)
    )
    assert left["y"] == down["y"] == right["y"] > up["y"]
    assert left["x"] < down["x"] == up["x"] < right["x"]
    focused = "document.activeElement.dataset.action"
    opened.page.locator("[data-action='1']").focus()
    for wanted in ("3", "0", "2"):  # From left to right.
      opened.page.keyboard.press("Tab")
      assert opened.page.evaluate(focused) == wanted


def test_a_world_without_measured_buttons_shows_numbers_only(page):
  page.at(0)
  assert key_texts(page) == [[str(number), "", ""] for number in range(4)]
  label = page.page.locator("[data-action='2']").get_attribute("aria-label")
  assert label == "button 2, key 2"
  assert page.page.locator("#buttons .arrows").count() == 0
  page.page.keyboard.press("ArrowUp")  # Presses the third button all the same.
  page.at(1)
  assert shows(page, fake_world.solo(PROMPT, seed(page), [2])[-1])


def test_keys_light_up_while_they_are_pressed_in_any_way(chromium):
  touch = {"has_touch": True}
  with page_of(chromium, NAMED, **touch) as opened:
    lit = lambda: opened.page.evaluate(
      "[...document.querySelectorAll('#buttons [aria-pressed=true]')].map("
      "(each) => each.dataset.action)"
    )
    colour = lambda: opened.page.evaluate(
      "getComputedStyle(document.querySelector('[data-action=\"2\"]'))"
      ".backgroundColor"
    )
    dark = colour()
    for key in ("ArrowLeft", "2"):
      opened.page.keyboard.down(key)
      assert lit() == ["2"]
      opened.page.wait_for_timeout(250)  # The colour fades in.
      assert colour() != dark
      opened.page.keyboard.up(key)
      assert lit() == []
    opened.page.locator("[data-action='2']").hover()
    opened.page.mouse.down()
    assert lit() == ["2"]
    opened.page.mouse.up()
    assert lit() == []
    box = opened.page.locator("[data-action='3']").bounding_box()
    finger = opened.context.new_cdp_session(opened.page)
    finger.send(
      "Input.dispatchTouchEvent",
      {
        "type": "touchStart",
        "touchPoints": [{"x": box["x"] + 20, "y": box["y"] + 20}],
      },
    )
    assert lit() == ["3"]
    finger.send(
      "Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []}
    )
    assert lit() == []


def test_the_banner_says_what_each_button_was_measured_to_do(chromium):
  with page_of(chromium, NAMED) as opened:
    banner = opened.page.locator("#banner")
    assert banner.locator("p").inner_text() == (
      "Measured while this world was played."
    )
    assert banner.locator("li").all_inner_texts() == [
      "Button 0: jump, in 60 % of moments",
      "Button 1: unclear",
      "Button 2: left, in 90 % of moments",
      "Button 3: jump, in 80 % of moments",
    ]
  # Names of recorded clips are no claim about the world.
  with page_of(chromium, [measured(1, "left", 0.7, "clips")]) as opened:
    assert opened.page.locator("#banner p").inner_text() == (
      "Measured in recorded clips; the world may not follow them."
    )


def test_a_world_without_measured_buttons_says_so(page):
  page.at(0)
  assert page.page.locator("#banner p").inner_text() == (
    "This world has no measured names for its buttons: they are shown as "
    "numbers, 0 to 3."
  )
  assert page.page.locator("#banner li").count() == 0


def test_a_closed_banner_stays_closed_until_the_world_is_measured_again(
  page, host, server, monkeypatch
):
  page.at(0)
  banner = page.page.locator("#banner")
  page.page.click("#banner button")
  sync_api.expect(banner).to_be_hidden()
  page.open(f"http://{host}/")
  page.at(0)
  sync_api.expect(banner).to_be_hidden()
  engine = server[0]._engine
  again = fake_world.make_engine(buttons=NAMED).description
  monkeypatch.setattr(engine, "description", again)
  page.open(f"http://{host}/")
  sync_api.expect(banner.locator("li")).to_have_count(4)
  # Another world has its own banner.
  page.page.click("#banner button")
  monkeypatch.setattr(
    engine, "description", dataclasses.replace(again, fingerprint="e" * 64)
  )
  page.open(f"http://{host}/")
  sync_api.expect(banner).to_be_visible()


def test_a_picture_unlike_those_of_the_world_is_played_with_a_word(chromium):
  engine = fake_world.make_engine(made_of=fake_world.SquaresWorld())
  striped = fake_world.picture(7)
  striped[::2] = 0
  with players.serving(engine) as (_, host):
    opened = browser.Page(chromium, f"http://{host}/")
    opened.at(0)
    line = opened.page.locator("#unlike")
    sync_api.expect(line).to_be_hidden()
    opened.drop(images.to_png(striped))
    sync_api.expect(line).to_have_text(
      "This picture is unlike those that the world knows, so it may be drawn "
      "poorly."
    )
    sync_api.expect(opened.page.locator("#said")).to_contain_text("is unlike")
    opened.press("01")
    sync_api.expect(line).to_be_visible()
    opened.page.reload()  # It is still true after a new connection.
    sync_api.expect(line).to_be_visible()
    opened.drop(images.to_png(fake_world.picture(8)))
    sync_api.expect(line).to_be_hidden()
    opened.drop(images.to_png(striped))
    sync_api.expect(line).to_be_visible()
    opened.page.click("#gallery button")
    sync_api.expect(line).to_be_hidden()
    assert opened.problems == []
    opened.close()


def wholly_visible(page, *selectors):
  """Returns whether elements are inside the window without scrolling."""
  return page.page.evaluate(
    "(all) => scrollY === 0 && all.flatMap((one) =>"
    " [...document.querySelectorAll(one)]).every((each) => {"
    " const box = each.getBoundingClientRect();"
    " return box.width > 0 && box.top >= 0 && box.left >= 0"
    " && box.right <= document.documentElement.clientWidth"
    " && box.bottom <= document.documentElement.clientHeight; })",
    list(selectors),
  )


FOUR = tuple(
  measured(number, name, 0.9)
  for number, name in enumerate(("left", "right", "jump", "left and jump"))
)


@pytest.mark.parametrize("buttons", [(), FOUR], ids=["numbers", "names"])
def test_game_keys_and_gallery_are_seen_without_scrolling(chromium, buttons):
  laptop = {"viewport": {"width": 1280, "height": 720}}
  with page_of(chromium, buttons, **laptop) as opened:
    assert wholly_visible(
      opened, "#frame", "#buttons .key", "#slider", "#gallery button", "#banner"
    )
    # One click starts from another picture.
    opened.page.click("#gallery button:nth-child(3)")
    sync_api.expect(
      opened.page.locator("#gallery button:nth-child(3)")
    ).to_have_attribute("aria-pressed", "true")
  phone = {
    "viewport": {"width": 360, "height": 640},
    "has_touch": True,
    "is_mobile": True,
    "device_scale_factor": 2,
  }
  with page_of(chromium, buttons, **phone) as opened:
    assert wholly_visible(opened, "#frame", "#buttons .key")
    # The canvas is not made tiny to achieve this.
    assert opened.page.locator("#frame").bounding_box()["width"] > 280


def test_every_button_is_compared_from_the_frame_shown(page):
  page.at(0)
  page.press("00")
  page.page.click("#compare")
  canvases = page.page.locator("#compared canvas")
  sync_api.expect(canvases).to_have_count(fake_world.NUM_ACTIONS)
  page.page.wait_for_timeout(2500)
  shown = {
    canvases.nth(i).evaluate("each => each.toDataURL()")
    for i in range(fake_world.NUM_ACTIONS)
  }
  assert len(shown) == fake_world.NUM_ACTIONS


def test_the_page_reconnects_after_the_connection_was_lost(page, server):
  page.at(0)
  page.press("01")
  [session] = server[0].hub
  session.connection.close(1011, "a test")
  page.page.wait_for_selector("#connection[data-state=lost]")
  page.page.wait_for_selector("#connection[data-state=open]")
  page.press("2")
  assert shows(page, fake_world.solo(PROMPT, seed(page), [0, 1, 2])[-1])
  # The server has removed the session: the page replays the run.
  server[0].hub.remove(session)
  session.connection.close(1011, "a test")
  page.page.wait_for_selector("#connection[data-state=lost]")
  page.page.wait_for_selector("#connection[data-state=open]")
  page.at(3)
  page.press("3")
  assert shows(page, fake_world.solo(PROMPT, seed(page), [0, 1, 2, 3])[-1])


def test_a_narrow_screen_shows_everything_without_scrolling_sideways(
  chromium, host
):
  opened = browser.Page(
    chromium,
    f"http://{host}/",
    viewport={"width": 360, "height": 740},
    has_touch=True,
    is_mobile=True,
    device_scale_factor=2,
  )
  opened.at(0)
  assert opened.page.evaluate("document.documentElement.scrollWidth") <= 360
  opened.page.locator("#buttons button").nth(1).tap()
  opened.at(1)
  assert shows(opened, fake_world.solo(PROMPT, seed(opened), [1])[-1])
  opened.close()


def test_every_control_has_a_name_and_colours_have_contrast(chromium, host):
  for scheme in ("light", "dark"):
    opened = browser.Page(chromium, f"http://{host}/", color_scheme=scheme)
    opened.at(0)
    nameless = opened.page.evaluate(
      "[...document.querySelectorAll('button, input, select')].filter("
      "(e) => !(e.ariaLabel || e.textContent.trim() || e.labels?.length))"
      ".map((e) => e.outerHTML)"
    )
    assert nameless == []
    variables = opened.page.evaluate(
      "(() => { const s = getComputedStyle(document.documentElement);"
      "return ['card', 'text', 'soft', 'accent', 'accent-text', 'bad'].map("
      "(n) => s.getPropertyValue('--' + n).trim()); })()"
    )
    card, text, soft, accent, accent_text, bad = map(luminance, variables)
    for one, other in (
      (text, card),
      (soft, card),
      (accent, card),
      (accent_text, accent),
      (bad, card),
    ):
      # WCAG 2.2, success criterion 1.4.3.
      assert (max(one, other) + 0.05) / (min(one, other) + 0.05) >= 4.5, scheme
    opened.close()


def luminance(colour):
  """Returns the relative luminance of #rrggbb, as WCAG defines it."""
  parts = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
  linear = np.where(
    parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4
  )
  return float(linear @ [0.2126, 0.7152, 0.0722])
