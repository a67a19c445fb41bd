"""Tests of the labelling page, with a real server and a real Chromium."""

import contextlib
import json
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import browser
import numpy as np
import players
import pytest
from playwright import sync_api

from genie_jax.core import errors
from genie_jax.data import clip_list, manifest, ratings
from genie_jax.serve import labelling
from tests.fixtures import stage_data

SHAPE = (48, 64, 3)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
  """A folder with three clips, two of them for training."""
  folder = tmp_path_factory.mktemp("clips") / "clips"
  return manifest.Manifest.read(stage_data.write_clips(folder, SHAPE))


@pytest.fixture(scope="module")
def chromium():
  """One browser for all tests."""
  with browser.open_browser() as found:
    yield found


@contextlib.contextmanager
def serving(clips, path, clip_frames=12):
  """Runs the labelling server on a free port; yields it and its address."""
  sample = labelling.draw(clip_list.clips(clips, clip_frames), 100, 0)
  with ratings.Table(path, "ann") as table:
    found = labelling.Labelling(
      clips, sample, table, name="clips", labeller="ann"
    )
    with players.running(found.app, 4) as host:
      yield found, host


@pytest.fixture()
def table(tmp_path):
  return tmp_path / "labels.csv"


def opened(chromium, host):
  """Opens the page, and collects its errors and requests."""
  context = chromium.new_context(viewport={"width": 1100, "height": 760})
  page = context.new_page()
  page.problems, page.asked = [], []
  page.on("pageerror", lambda error: page.problems.append(str(error)))
  page.on(
    "console",
    lambda said: (
      page.problems.append(said.text) if said.type == "error" else None
    ),
  )
  page.on("request", lambda request: page.asked.append(request.url))
  page.goto(f"http://{host}/")
  page.wait_for_selector("#connection[data-state=open]")
  return page


def shown(page):
  """Waits until a clip is drawn; returns its identifier."""
  page.wait_for_selector("#frame[data-frame]:not([data-frame=''])")
  return page.evaluate("document.body.dataset.clip")


def expect_count(page, text):
  sync_api.expect(page.locator("#count")).to_contain_text(text)


def test_keys_rate_skip_and_undo_and_each_press_is_a_row_of_the_table(
  chromium, clips, table
):
  with serving(clips, table) as (server, host):
    page = opened(chromium, host)
    first = shown(page)
    page.keyboard.press("5")
    expect_count(page, "1 of 6 rated")
    second = shown(page)
    assert second != first
    page.keyboard.press("1")
    expect_count(page, "2 of 6 rated")
    shown(page)
    page.keyboard.press("u")  # The second clip comes back.
    expect_count(page, "1 of 6 rated")
    assert shown(page) == second
    page.keyboard.press("s")
    expect_count(page, "1 of 6 rated, 1 skipped")
    shown(page)
    page.click("[data-rating='3']")
    expect_count(page, "2 of 6 rated, 1 skipped")
    assert page.problems == []
    assert all(url.startswith(f"http://{host}/") for url in page.asked)
    page.context.close()
    third = server.state()["last"]["id"]
  lines = table.read_text().splitlines()
  assert lines[0] == "clip,rating,time,labeller"
  assert [line.split(",")[:2] for line in lines[1:]] == [
    [first, "5"],
    [second, "1"],
    [second, "undo"],
    [second, "skip"],
    [third, "3"],
  ]
  assert all(line.endswith("Z,ann") for line in lines[1:])
  assert ratings.read(table).rated == {first: 5, third: 3}


def test_a_clip_that_fails_late_says_nothing_about_the_next_one(
  chromium, clips, table
):
  with serving(clips, table) as (_, host):
    page = chromium.new_context().new_page()
    waiting = []
    page.route("**/clips/0.png", lambda route: waiting.append(route))
    page.goto(f"http://{host}/")
    page.wait_for_function("document.body.dataset.clip")
    page.keyboard.press("s")
    expect_count(page, "1 skipped")
    shown(page)
    waiting[0].abort()
    page.wait_for_timeout(500)
    assert page.is_hidden("#notice")
    page.context.close()


def test_the_canvas_plays_the_clips_own_frames_in_a_loop(
  chromium, clips, table
):
  with serving(clips, table) as (server, host):
    page = opened(chromium, host)
    name = shown(page)
    clip = next(clip for clip in server._sample if clip.id == name)
    page.wait_for_selector("#frame[data-frame='7']")
    page.keyboard.press(" ")
    page.wait_for_timeout(300)
    number = int(page.get_attribute("#frame", "data-frame"))
    found = page.evaluate(
      "(() => { const c = document.getElementById('frame');"
      "return [...c.getContext('2d').getImageData("
      "0, 0, c.width, c.height).data]; })()"
    )
    page.context.close()
  found = np.array(found, np.uint8).reshape(*SHAPE[:2], 4)[..., :3]
  truth = clip_list.Reader(clips).frames(clip)[number]
  np.testing.assert_array_equal(found, truth)
  assert (
    len({frame.tobytes() for frame in clip_list.Reader(clips).frames(clip)})
    == clip.length
  )  # So it is this frame and no other.


def test_the_page_says_when_all_clips_are_rated_and_can_still_undo(
  chromium, clips, table
):
  with serving(clips, table, clip_frames=24) as (_, host):
    page = opened(chromium, host)
    for count in (1, 2, 3):
      shown(page)
      page.keyboard.press("4")
      expect_count(page, f"{count} of 3 rated")
    sync_api.expect(page.locator("#done")).to_be_visible()
    page.keyboard.press("4")  # There is nothing to rate.
    page.keyboard.press("u")
    expect_count(page, "2 of 3 rated")
    sync_api.expect(page.locator("#done")).to_be_hidden()
    assert page.problems == []
    page.context.close()


def test_a_rating_that_cannot_be_stored_is_reported_and_not_counted(
  chromium, clips, table, monkeypatch
):
  def full(self, row):
    raise OSError(28, "No space left on device")

  with serving(clips, table) as (_, host):
    page = opened(chromium, host)
    name = shown(page)
    monkeypatch.setattr(ratings.Table, "_write", full)
    page.keyboard.press("5")
    sync_api.expect(page.locator("#notice")).to_contain_text("No space left")
    expect_count(page, "0 of 6 rated")
    monkeypatch.undo()
    page.keyboard.press("5")
    expect_count(page, "1 of 6 rated")
    page.context.close()
  assert ratings.read(table).rated == {name: 5}


def post(host, message, **headers):
  request = urllib.request.Request(
    f"http://{host}/rate",
    message if isinstance(message, bytes) else json.dumps(message).encode(),
    {"content-type": "application/json", **headers},
  )
  try:
    with urllib.request.urlopen(request) as answer:
      return answer.status, json.load(answer)
  except urllib.error.HTTPError as error:
    return error.code, json.load(error)


def test_a_message_that_arrives_twice_counts_once(clips, table):
  with serving(clips, table) as (server, host):
    clip = server.state()["clip"]["id"]
    assert post(host, {"clip": clip, "rating": "5"})[0] == 200
    code, answer = post(host, {"clip": clip, "rating": "5"})
    assert code == 409 and answer["state"]["rated"] == 1


@pytest.mark.parametrize(
  "message",
  [
    b"",
    b"[1, 2",
    b"[" * 4000,
    b" " * 5000,
    {"clip": "x"},
    {"clip": 1, "rating": "5"},
    {"clip": "none", "rating": "5"},
    {"clip": "FIRST", "rating": "6"},
    {"clip": "FIRST", "rating": "undo"},
    {"clip": "FIRST", "rating": "5", "more": "x"},
  ],
)
def test_nonsense_messages_are_refused_and_change_nothing(
  clips, table, message
):
  with serving(clips, table) as (server, host):
    if isinstance(message, dict) and message["clip"] == "FIRST":
      message = {**message, "clip": server.state()["clip"]["id"]}
    code, answer = post(host, message)
    assert 400 <= code < 500 and answer["error"]
    assert answer["state"]["rated"] == 0
  assert len(table.read_text().splitlines()) == 1


def test_pages_of_other_sites_cannot_rate(clips, table):
  with serving(clips, table) as (server, host):
    message = {"clip": server.state()["clip"]["id"], "rating": "1"}
    assert post(host, message, **{"Origin": "http://evil.example"})[0] == 403
    assert post(host, message, **{"Host": "evil.example"})[0] == 403
    assert server.state()["rated"] == 0


def test_ratings_survive_a_restart_and_the_same_sample_goes_on(clips, table):
  with serving(clips, table) as (server, host):
    first = server.state()["clip"]["id"]
    post(host, {"clip": first, "rating": "2"})
    second = server.state()["clip"]["id"]
  with open(table, "a") as file:
    file.write(f"{second},5,2026")  # A machine that was killed while writing.
  with serving(clips, table) as (server, host):
    assert server._table.torn == f"{second},5,2026"
    assert server.state()["clip"]["id"] == second
    post(host, {"clip": second, "rating": "5"})
  assert ratings.read(table).rated == {first: 2, second: 5}


def test_ctrl_c_ends_the_command_without_a_traceback(clips, table):
  words = [sys.executable, "-m", "genie_jax", "data", "label"]
  words += [str(clips.folder), "--labels", str(table), "--port", "0"]
  process = subprocess.Popen(
    words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
  )
  try:
    lines = [process.stdout.readline() for _ in range(2)]
    assert "Rate clips at http://127.0.0.1:" in lines[1]
    host = lines[1].split("//")[1].split("/")[0]
    with urllib.request.urlopen(f"http://{host}/state") as answer:
      clip = json.load(answer)["clip"]["id"]
    assert post(host, {"clip": clip, "rating": "5"})[0] == 200
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
  finally:
    process.kill()
    process.wait()
  assert process.returncode == 0 and err == ""
  assert out.splitlines()[-1] == f"Stopped; 1 ratings are in {table}."


def test_two_programs_do_not_write_to_one_table(clips, table):
  with (
    serving(clips, table),
    pytest.raises(errors.UserError, match="Another `genie data label` writes"),
  ):
    ratings.Table(table, "bob").__enter__()


def test_a_sample_takes_turns_among_sources_and_depends_on_the_seed_alone():
  clips = [
    clip_list.Clip(f"{source}-{n}", "train", "s", source, n, 0, 10)
    for source, count in ((0, 50), (1, 3), (2, 8))
    for n in range(count)
  ]
  drawn = labelling.draw(clips, 12, seed=1)
  counts = [sum(clip.source == source for clip in drawn) for source in range(3)]
  assert sum(counts) == 12 and counts[1] == 3 and abs(counts[0] - counts[2]) < 2
  assert len({clip.id for clip in drawn}) == 12
  assert labelling.draw(clips, 12, seed=1) == drawn
  assert labelling.draw(clips, 12, seed=2) != drawn
  assert len(labelling.draw(clips, 1000, seed=1)) == len(clips)


def test_a_message_of_a_few_bytes_a_second_ends(clips, table, monkeypatch):
  monkeypatch.setattr(labelling, "_BODY_SECONDS", 0.5)
  with serving(clips, table) as (_, host):
    name, port = host.split(":")
    with socket.create_connection((name, int(port)), timeout=0.1) as line:
      line.sendall(
        f"POST /rate HTTP/1.1\r\nHost: {host}\r\n"
        "Content-Length: 999\r\n\r\n".encode()
      )
      answer = b""
      for _ in range(100):
        line.sendall(b" ")
        with contextlib.suppress(TimeoutError):
          answer += line.recv(1000)
          if b"again" in answer:
            break
      assert b" 408 " in answer and b"press the key again" in answer
