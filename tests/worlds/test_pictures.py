"""Tests of images of any kind as frames and as prompts of a world."""

import numpy as np
import pytest
from PIL import Image

from genie_jax.core import errors, images
from genie_jax.worlds import pictures
from genie_jax.worlds import world as world_lib
from tests.fixtures import tiny_world

SHAPE = tiny_world.SHAPE


def photo(rows=50, columns=70, seed=0):
  random = np.random.default_rng(seed)
  return random.integers(0, 256, (rows, columns, 3), dtype=np.uint8)


def test_path_image_and_array_of_a_photo_give_the_same_frame(tmp_path):
  path = tmp_path / "photo.png"
  images.save_png(path, photo())
  wanted = images.load_prompt(path, *SHAPE[:2])[None]
  for given in (path, str(path), Image.fromarray(photo()), photo()):
    np.testing.assert_array_equal(pictures.as_frames(given, SHAPE), wanted)
  np.testing.assert_array_equal(
    pictures.as_frames([path, photo(9, 9), Image.fromarray(photo())], SHAPE),
    np.concatenate([wanted, pictures.as_frames(photo(9, 9), SHAPE), wanted]),
  )


def test_frames_of_the_worlds_size_are_not_changed():
  frames = np.stack([photo(*SHAPE[:2], seed=seed) for seed in range(3)])
  np.testing.assert_array_equal(pictures.as_frames(frames, SHAPE), frames)
  np.testing.assert_array_equal(
    pictures.as_frames(frames[0], SHAPE), frames[:1]
  )
  np.testing.assert_array_equal(
    pictures.as_frames(frames.tolist(), SHAPE), frames
  )


def test_a_clip_of_another_size_is_cropped_and_resized_frame_by_frame():
  clip = np.stack([photo(seed=seed) for seed in range(2)])
  np.testing.assert_array_equal(
    pictures.as_frames(clip, SHAPE),
    np.concatenate([pictures.as_frames(one, SHAPE) for one in clip]),
  )


@pytest.mark.parametrize("dtype", (np.float32, np.float64, np.uint16, np.int64))
def test_numbers_of_other_dtypes_are_scaled_to_eight_bits(dtype):
  frame = photo(*SHAPE[:2])
  frame[0, 0] = 255
  scale = {"f": 1 / 255, "u": 257, "i": 1}[np.dtype(dtype).kind]
  given = (frame.astype(np.float64) * scale).astype(dtype)
  np.testing.assert_array_equal(pictures.as_frames(given, SHAPE)[0], frame)


def test_grey_transparent_and_nan_pixels_are_converted():
  grey = photo(*SHAPE[:2])[..., 0]
  for given in (grey, grey[..., None]):
    found = pictures.as_frames(given, SHAPE)[0]
    np.testing.assert_array_equal(found, np.stack([grey] * 3, -1))
  clear = np.zeros((*SHAPE[:2], 4), np.uint8)
  assert (pictures.as_frames(clear, SHAPE) == 255).all()
  undefined = np.full(SHAPE, np.nan, np.float32)
  assert (pictures.as_frames(undefined, SHAPE) == 0).all()
  assert (pictures.as_frames(np.ones(SHAPE, bool), SHAPE) == 255).all()


def test_a_given_image_is_not_changed(tmp_path):
  path = tmp_path / "photo.jpg"
  Image.fromarray(photo(800, 900)).save(path)
  with Image.open(path) as opened:
    pictures.as_frames(opened, SHAPE)
    assert opened.size == (900, 800)


@pytest.mark.parametrize(
  "given, message",
  (
    ([[1, 2], [3]], "not an array"),
    (np.zeros((0, *SHAPE), np.uint8), "at least one pixel"),
    (np.zeros((4, 4, 5), np.uint8), "1 to 4 channels"),
    (np.zeros((2, 2, 4, 4, 3), np.uint8), "shape"),
    (np.array(["a"]), "give numbers"),
    (7, "give numbers"),
    ("missing.png", "does not exist"),
  ),
)
def test_other_values_raise_a_one_line_error(given, message):
  with pytest.raises(errors.UserError, match=message) as caught:
    pictures.as_frames(given, SHAPE)
  assert "\n" not in str(caught.value)


def test_reset_takes_any_image_or_the_first_prompt(parts, tmp_path):
  path = tmp_path / "prompt.png"
  images.save_png(path, photo())
  world = world_lib.World(parts, prompts=[path], name="noise")
  wanted = world.show(world.reset(pictures.as_frames(photo(), SHAPE), seed=3))
  for given in ((), (photo(),), (Image.fromarray(photo()),), (path,)):
    state = world.reset(*given, seed=3)
    np.testing.assert_array_equal(world.show(state), wanted)
  with pytest.raises(errors.UserError, match="has no prompts"):
    world_lib.World(parts).reset()


def test_a_world_and_its_states_are_printed_on_one_line(parts):
  world = world_lib.World(parts, name="noise")
  assert repr(world) == (
    "World('noise', 5 latent actions, 8x12x3 frames at 10 a second, window 4, "
    "exact slide, 18,573 parameters)"
  )
  state = world.reset(photo())
  assert repr(state) == "State(at frame 0, frame 8x12x3)"
  after, _ = world.step(state, 1)
  assert repr(after) == "State(at frame 1, frame 8x12x3)"
  assert repr(state) == "State(used up by a step, frame 8x12x3)"
  assert "of other leaves" in repr(after.replace(number=None, frame=None))
