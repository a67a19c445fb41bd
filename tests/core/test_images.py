"""Tests of reading prompts and of writing strips and videos."""

import io

import av
import numpy as np
import pytest
from PIL import Image

from genie_jax.core import errors, images


def save(path, picture, **options):
  picture.save(path, **options)
  return path


def gradient(rows=12, columns=16):
  values = np.linspace(0, 255, rows * columns * 3)
  return values.reshape(rows, columns, 3).astype(np.uint8)


@pytest.mark.parametrize(
  "mode, suffix",
  [
    ("L", "png"),
    ("LA", "png"),
    ("P", "gif"),
    ("RGB", "png"),
    ("RGBA", "png"),
    ("CMYK", "jpg"),
    ("1", "png"),
    ("I;16", "png"),
    ("I", "tif"),
    ("F", "tif"),
    ("LAB", "tif"),
    ("RGB", "webp"),
    ("RGB", "bmp"),
  ],
)
def test_a_picture_of_any_mode_is_converted_to_rgb(tmp_path, mode, suffix):
  if mode == "I;16":
    picture = Image.fromarray(
      np.linspace(0, 65535, 12 * 16).reshape(12, 16).astype(np.uint16)
    )
  else:
    rgb = Image.fromarray(gradient())
    picture = (
      rgb.convert("L").convert(mode)
      if mode in ("F", "I")
      else Image.merge("LAB", rgb.split())
      if mode == "LAB"
      else rgb.convert(mode)
    )
  assert picture.mode == mode
  path = save(tmp_path / f"p.{suffix}", picture)
  frame = images.load_prompt(path, 6, 8)
  assert frame.shape == (6, 8, 3) and frame.dtype == np.uint8
  # The gradient's brightness increases downwards in all modes but LAB.
  if mode != "LAB":
    assert frame[-1].mean() > frame[0].mean() + 100


def test_a_picture_of_the_frames_size_is_unchanged(tmp_path):
  path = save(tmp_path / "p.png", Image.fromarray(gradient()))
  np.testing.assert_array_equal(images.load_prompt(path, 12, 16), gradient())


def test_16_bit_pictures_keep_their_brightness(tmp_path):
  for top in (65535, 200):  # Some programs store 8-bit values in 16 bits.
    values = np.full((4, 4), top, np.uint16)
    path = save(tmp_path / f"{top}.png", Image.fromarray(values))
    expected = 255 if top == 65535 else top
    assert (images.load_prompt(path, 4, 4) == expected).all()


def test_transparent_pixels_become_white(tmp_path):
  rgba = np.zeros((4, 4, 4), np.uint8)
  rgba[..., 0] = 200
  rgba[:, 2:, 3] = 255
  path = save(tmp_path / "rgba.png", Image.fromarray(rgba))
  frame = images.load_prompt(path, 4, 4)
  assert (frame[:, :2] == 255).all()
  assert (frame[:, 2:] == [200, 0, 0]).all()

  palette = Image.new("P", (4, 4), 0)
  palette.putpalette([255, 0, 0, 0, 255, 0])
  palette.paste(1, (2, 0, 4, 4))
  path = save(tmp_path / "p.png", palette, transparency=0)
  frame = images.load_prompt(path, 4, 4)
  assert (frame[:, :2] == 255).all()
  assert (frame[:, 2:] == [0, 255, 0]).all()


def test_the_first_frame_of_an_animation_is_read(tmp_path):
  pictures = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
  path = save(
    tmp_path / "a.gif", pictures[0], save_all=True, append_images=pictures[1:]
  )
  assert (images.load_prompt(path, 8, 8) == [255, 0, 0]).all()


@pytest.mark.parametrize("columns, rows", [(1, 1), (3, 500), (500, 3)])
def test_a_picture_of_any_size_is_cropped_and_resized(tmp_path, columns, rows):
  path = save(tmp_path / "p.png", Image.new("RGB", (columns, rows), "teal"))
  frame = images.load_prompt(path, 10, 7)
  assert frame.shape == (10, 7, 3)
  assert (frame == [0, 128, 128]).all()


def test_the_crop_is_centred_and_has_the_frames_aspect_ratio(tmp_path):
  wide = np.zeros((10, 40, 3), np.uint8)
  wide[:, 15:25] = 255
  path = save(tmp_path / "w.png", Image.fromarray(wide))
  assert (images.load_prompt(path, 5, 5) == 255).all()


def test_resizing_averages_areas(tmp_path):
  checkers = np.zeros((8, 8, 3), np.uint8)
  checkers[::2, ::2] = 200
  checkers[1::2, 1::2] = 200
  path = save(tmp_path / "c.png", Image.fromarray(checkers))
  assert (images.load_prompt(path, 4, 4) == 100).all()


def test_the_error_for_an_unreadable_picture_is_one_line(tmp_path):
  complete = io.BytesIO()
  noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
  Image.fromarray(noise).save(complete, "PNG")
  (tmp_path / "text.png").write_text("not a picture")
  (tmp_path / "empty.png").write_bytes(b"")
  (tmp_path / "cut.png").write_bytes(complete.getvalue()[:3000])
  # Decoders of other formats raise other exceptions than PNG's decoder.
  (tmp_path / "bad.ppm").write_bytes(b"P6 8 x8 255\n" + bytes(192))
  Image.fromarray(noise).save(tmp_path / "cut.dds")
  cut = (tmp_path / "cut.dds").read_bytes()[:200]
  (tmp_path / "cut.dds").write_bytes(cut)
  for name in ("text.png", "empty.png", "cut.png", "bad.ppm", "cut.dds"):
    with pytest.raises(
      errors.UserError, match=f"{name} is not a picture"
    ) as raised:
      images.load_prompt(tmp_path / name, 8, 8)
    assert "\n" not in str(raised.value)
  with pytest.raises(errors.UserError, match="does not exist"):
    images.load_prompt(tmp_path / "none.png", 8, 8)
  with pytest.raises(errors.UserError, match="is not a picture"):
    images.load_prompt(tmp_path, 8, 8)


@pytest.mark.parametrize("columns", [10_000, 30_000])
def test_a_picture_with_too_many_pixels_is_rejected(tmp_path, columns, recwarn):
  path = save(tmp_path / "big.png", Image.new("1", (columns, 10_000)))
  with pytest.raises(errors.UserError, match=r"big\.png.*pixels"):
    images.load_prompt(path, 8, 8)
  assert not recwarn.list  # Pillow's own warning is suppressed.


def test_png_round_trips(tmp_path):
  images.save_png(tmp_path / "p.png", gradient())
  np.testing.assert_array_equal(
    np.asarray(Image.open(tmp_path / "p.png")), gradient()
  )


def moving_line(count=5, rows=9, columns=11):
  """Returns black frames, each with a white column at its own index."""
  frames = np.zeros((count, rows, columns, 3), np.uint8)
  for t in range(count):
    frames[t, :, t] = 255
  return frames


def test_a_gif_has_the_given_frames_size_and_frame_rate(tmp_path):
  path = tmp_path / "v.gif"
  images.save_video(path, moving_line(), fps=10, scale=2)
  with Image.open(path) as gif:
    assert gif.n_frames == 5 and gif.size == (22, 18)
    assert gif.info["duration"] == 100 and gif.info["loop"] == 0
    for t in range(5):
      gif.seek(t)
      frame = np.asarray(gif.convert("RGB"))
      assert (frame[:, 2 * t : 2 * t + 2] > 200).all()
      assert frame.mean() < 40


def test_the_pressed_key_is_lit_below_each_frame():
  found = images.with_keys(
    moving_line(3, 10, 60), ["left", "right"], [None, 1, 0], scale=2
  )
  assert found.shape == (3, 40, 120, 3)
  np.testing.assert_array_equal(
    found[:, :20], moving_line(3, 10, 60).repeat(2, 1).repeat(2, 2)
  )
  brightness = lambda part: part.mean((1, 2, 3))
  left = brightness(found[:, 20:, :60])
  right = brightness(found[:, 20:, 60:])
  assert left[2] < 100 < left[0] == left[1]
  assert right[1] < 100 < right[0] == right[2]


def test_an_mp4_has_the_given_frames_and_even_sides(tmp_path):
  path = tmp_path / "v.mp4"
  images.save_video(path, moving_line(), fps=10, scale=3)
  with av.open(str(path)) as container:
    frames = [
      frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)
    ]
    assert container.streams.video[0].average_rate == 10
  assert [frame.shape for frame in frames] == [(28, 34, 3)] * 5
  for t, frame in enumerate(frames):
    columns = frame.mean((0, 2))
    assert abs(int(columns.argmax()) - (3 * t + 1)) <= 1


def test_a_video_can_have_a_single_frame(tmp_path):
  for name in ("one.gif", "one.mp4"):
    images.save_video(tmp_path / name, moving_line(1), fps=15, scale=2)
    assert (tmp_path / name).stat().st_size > 0


def test_an_unknown_video_format_is_rejected_and_no_file_is_written(tmp_path):
  with pytest.raises(errors.UserError, match=r"\.gif or \.mp4, not '\.avi'"):
    images.save_video(tmp_path / "v.avi", moving_line(), fps=10)
  assert not list(tmp_path.iterdir())


def test_a_strip_has_labelled_rows_with_one_cell_per_frame():
  white = np.full((3, 4, 6, 3), 255, np.uint8)
  strip = images.strip(
    {"truth": white, "prediction": white[:2]},
    scale=2,
    edges={"prediction": ["lime", "red"]},
  )
  cell_height, cell_width, label = 4 * 2 + 4, 6 * 2 + 4, 14
  assert strip.shape == (2 * (cell_height + label), 3 * cell_width, 3)
  top = cell_height + 2 * label
  assert (strip[top, 0] == [0, 255, 0]).all()
  assert (strip[top, cell_width] == [255, 0, 0]).all()
  # Pixels are enlarged without blur.
  black = np.zeros((1, 4, 6, 3), np.uint8)
  cell = images.strip({"x": black}, scale=3)[14 + 2 : 14 + 2 + 12, 2 : 2 + 18]
  assert (cell == 0).all()
  # The label is drawn.
  assert (strip[:label, :40] < 128).any()


def test_floats_are_rounded_and_clipped():
  found = images.to_uint8(np.array([-1.0, 0.0, 0.5, 0.999, 1.0, 7.0]))
  assert found.tolist() == [0, 0, 128, 255, 255, 255]
