"""Pictures of every supported format, and damaged copies of them."""

import io

import numpy as np
from PIL import Image


def png(picture, kind="PNG", **options):
  buffer = io.BytesIO()
  picture.save(buffer, kind, **options)
  return buffer.getvalue()


def sample_pictures():
  """Returns valid files of every supported format."""
  random_ = np.random.default_rng(0)
  noise = Image.fromarray(random_.integers(0, 256, (24, 32, 3), np.uint8))
  return [
    png(noise),
    png(noise.convert("P")),
    png(noise.convert("LA")),
    png(noise, "JPEG"),
    png(noise.convert("CMYK"), "JPEG"),
    png(noise, "JPEG", progressive=True),
    png(noise, "GIF"),
    png(noise, "GIF", save_all=True, append_images=[noise]),
    png(noise, "WEBP"),
    png(noise, "WEBP", lossless=True),
    png(noise, "BMP"),
    png(noise, "TIFF"),
    png(noise, "PPM"),
    png(noise, "TIFF", compression="tiff_lzw"),
    png(noise.convert("F"), "TIFF"),
    png(noise.convert("I;16"), "TIFF"),
    png(noise.convert("1"), "TIFF", compression="group4"),
  ]


def damaged(content, choose):
  """Returns a copy of the bytes with random errors."""
  content = bytearray(content)
  for _ in range(choose.choice([1, 1, 2, 5, 30])):
    where = choose.randrange(len(content) or 1)
    kind = choose.randrange(5)
    if kind == 0 and content:
      content[where] = choose.choice(
        [0, 1, 127, 128, 255, choose.randrange(256)]
      )
    elif kind == 1:
      del content[where:]
    elif kind == 2:
      content[where:where] = choose.randbytes(choose.randrange(9))
    elif kind == 3:
      del content[where : where + choose.randrange(9)]
    else:
      content[where : where + 4] = choose.choice(
        [b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", b"\x7f\xff\xff\xff"]
      )
  return bytes(content)
