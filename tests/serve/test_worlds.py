"""Tests of a server with several worlds."""

import dataclasses
import urllib.error
import urllib.request

import browser
import fake_world
import numpy as np
import players
import pytest
from playwright import sync_api

from genie_jax.core import images
from genie_jax.serve import worlds


def named(name, first):
  """Returns a warm engine of a world whose prompts begin with this number."""
  engine = fake_world.make_engine(
    gallery=[fake_world.picture(first), fake_world.picture(first + 1)]
  )
  engine.description = dataclasses.replace(engine.description, name=name)
  return engine


@pytest.fixture()
def host():
  app = worlds.serve([named("hills", 0), named("caves & co", 7)])
  with players.running(app) as address:
    yield address


SECOND = "/worlds/caves-co/"


def test_paths_are_plain_and_different():
  assert worlds.paths(["a", "b c/../d", "b c", "b-c", "..", "é"]) == [
    "/",
    "/worlds/b-c-..-d/",
    "/worlds/b-c/",
    "/worlds/b-c-2/",
    "/worlds/world/",
    "/worlds/world-2/",
  ]


def test_each_world_has_its_own_players_and_pictures(host):
  with players.Player(host) as one, players.Player(host, path=SECOND) as other:
    offered = [
      {"name": "hills", "path": "/"},
      {"name": "caves & co", "path": SECOND},
    ]
    for player, name, first in ((one, "hills", 0), (other, "caves & co", 7)):
      assert player.welcome["world"]["name"] == name
      assert player.welcome["worlds"] == offered
      player.start(prompt=0, seed=3)
      player.play([1, 2, 3])
      wanted = fake_world.solo(fake_world.picture(first), 3, [1, 2, 3])
      for (_, png), frame in zip(player.frames, wanted, strict=True):
        np.testing.assert_array_equal(images.from_png(png), frame)


def read(host, path):
  with urllib.request.urlopen(f"http://{host}{path}", timeout=20) as answer:
    return answer.url, answer.headers, answer.read()


def test_pages_and_prompts_are_below_the_path_of_their_world(host):
  for path, first in (("/", 0), (SECOND, 7)):
    _, headers, page = read(host, path)
    assert b"play.js" in page and "content-security-policy" in headers
    png = read(host, f"{path}prompts/0.png")[2]
    np.testing.assert_array_equal(
      images.from_png(png), fake_world.picture(first)
    )
    assert read(host, f"{path}play.css")[1]["content-type"].startswith(
      "text/css"
    )
  url, _, _ = read(host, SECOND.rstrip("/"))
  assert url.endswith(SECOND)  # The page's addresses need the slash.
  with pytest.raises(urllib.error.HTTPError, match="404"):
    read(host, "/worlds/none/")


def test_the_page_changes_worlds(host):
  with browser.open_browser() as chromium:
    page = browser.Page(chromium, f"http://{host}/")
    page.at(0)
    choice = page.page.locator("#worlds")
    sync_api.expect(choice).to_be_visible()
    page.press("0")
    choice.select_option("caves & co")
    page.page.wait_for_url(f"**{SECOND}")
    page.at(0)
    assert page.page.title().startswith("caves & co")
    assert (
      choice.evaluate("each => each.selectedOptions[0].text") == "caves & co"
    )
    page.press("12")
    # A link leads to the same world.
    page.page.click("#share")
    assert SECOND in page.page.input_value("#share-link")
    page.page.keyboard.press("Escape")
    # The other world's game has gone on.
    choice.select_option("hills")
    page.at(1)
    assert page.problems == []
    page.close()


def test_one_world_alone_has_no_choice(server):
  _, host = server
  with browser.open_browser() as chromium:
    page = browser.Page(chromium, f"http://{host}/")
    page.at(0)
    sync_api.expect(page.page.locator("#others")).to_be_hidden()
    page.close()
