"""Tests of `genie sample`, from its flags to a video file."""

import argparse

import PIL.Image
import pytest

from genie_jax.cli import sample
from genie_jax.core import errors
from genie_jax.worlds import buttons
from tests.fixtures import tiny_world


@pytest.fixture(scope="module")
def folder(parts, tmp_path_factory):
  return tiny_world.write_world(tmp_path_factory.mktemp("world"), parts)


def run(folder, tmp_path, *flags):
  parser = argparse.ArgumentParser()
  sample.add_arguments(parser)
  out = tmp_path / "film.gif"
  code = sample.run(
    parser.parse_args(
      ["--world", str(folder), "--out", str(out), "--scale", "1", *flags]
    )
  )
  assert code == 0
  with PIL.Image.open(out) as film:
    return film.n_frames, film.size


@pytest.mark.parametrize("mode", ("RGB", "L", "RGBA", "P", "1", "I;16"))
@pytest.mark.parametrize("size", ((12, 8), (1, 1), (300, 20)))
def test_a_prompt_of_any_size_and_mode_is_played(folder, tmp_path, mode, size):
  picture = tmp_path / "prompt.png"
  PIL.Image.new("L", size, 100).convert("RGB").convert(
    "L" if mode == "I;16" else mode
  ).convert(mode).save(picture)
  frames, shown = run(
    folder, tmp_path, "--prompt", str(picture), "--actions", "0,3x2"
  )
  assert frames <= 4 and shown == (12, 8)  # A GIF joins equal frames.


def test_buttons_can_be_shown_below_the_frames(folder, tmp_path):
  _, size = run(
    folder, tmp_path, "--actions", "0x2,3x2", "--show-buttons", "--scale", "20"
  )
  assert size == (240, 180)


def test_the_worlds_own_prompt_is_the_default(folder, tmp_path):
  frames, _ = run(
    folder,
    tmp_path,
    "--actions",
    "random:3",
    "--temperature",
    "0",
    "--refinements",
    "3",
  )
  assert frames == 4  # The prompt and one frame per action.


@pytest.mark.parametrize(
  "slide",
  (("exact", "--drop", "2"), ("rolling",), ("re-encode", "--drop", "3")),
)
def test_a_video_can_be_longer_than_the_window_in_any_mode(
  folder, tmp_path, slide
):
  frames, _ = run(
    folder,
    tmp_path,
    "--actions",
    "random:9",
    "--slide",
    *slide,
    "--top-k",
    "5",
    "--top-p",
    "0.9",
  )
  assert 2 <= frames <= 10  # A GIF joins equal frames.


@pytest.mark.parametrize(
  "flags, message",
  (
    (("--actions", "0,7"), "Action 7 is out of range"),
    (("--actions", "0,jump"), "'jump' is neither a number"),
    (("--actions", ""), "neither a number"),
    (("--actions", "random:0"), "neither a number"),
    (("--actions", "0x1000000000"), "neither a number"),
    (("--actions", "0", "--prompt", "absent.png"), "absent.png does not"),
    (("--actions", "0", "--prompt", __file__), "is not a picture"),
    (("--actions", "0", "--temperature", "-1"), "number from 0 to 1e6"),
    (("--actions", "0", "--refinements", "0"), "at least 1"),
    (("--actions", "0", "--order", "best"), "use one of random"),
    (("--actions", "0", "--slide", "rollin"), "did you mean 'rolling'"),
    (("--actions", "0", "--slide", "exact", "--drop", "4"), "1 to 3 at once"),
    (("--actions", "0", "--slide", "rolling", "--drop", "2"), "leave it at 1"),
    (("--actions", "0", "--top-k", "-1"), "whole number of tokens"),
    (("--actions", "0", "--top-p", "0"), "above 0"),
    (("--actions", "0", "--out", "film.avi"), ".gif or .mp4"),
    (("--actions", "0", "--seed", "-1"), "--seed -1"),
  ),
)
def test_an_invalid_flag_raises_a_one_line_error(
  folder, tmp_path, flags, message
):
  with pytest.raises(errors.UserError, match=message) as caught:
    run(folder, tmp_path, *flags)
  assert "\n" not in str(caught.value)


def test_a_folder_that_is_not_a_world_is_refused(tmp_path):
  with pytest.raises(errors.UserError, match="is not a world"):
    run(tmp_path, tmp_path, "--actions", "0")


def test_lists_of_actions_are_parsed():
  five = buttons.of({}, 5)
  assert sample.parse_actions("0, 3x2,1", five, 0) == [0, 3, 3, 1]
  drawn = sample.parse_actions("random:200", five, 0)
  assert set(drawn) == set(range(5)) and len(drawn) == 200
  assert drawn == sample.parse_actions("random:200", five, 0)


def test_buttons_can_be_called_by_what_they_do():
  rows = [
    {"button": 3, "name": "left", "share": 0.9, "source": "world"},
    {"button": 1, "name": "left", "share": 0.6, "source": "world"},
    {"button": 2, "name": "right and jump", "share": 0.8, "source": "world"},
  ]
  named = buttons.of({"buttons": rows}, 5)
  assert sample.parse_actions("leftx2, right and jump,4", named, 0) == [
    3, 3, 2, 4,
  ]  # fmt: skip
  with pytest.raises(errors.UserError, match=r"'up'.*\(left, right and jump\)"):
    sample.parse_actions("up", named, 0)
