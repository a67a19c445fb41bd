r"""Measures how fast films are cut into clips, against decoding alone.

Run:       python benchmarks/videos.py --json videos.json
           python benchmarks/videos.py --films a.mp4 b.mp4 --json videos.json
           python benchmarks/videos.py --processes --json videos.json
Film:      without --films, a scrolling game of tiles that this program draws,
           at 1280 x 720 and 640 x 360, 30 frames a second, H.264 by x264's
           preset "medium" (kept in --folder).
Decoding:  PyAV, one thread, every frame, nothing done with them.
Chain:     everything that `genie data videos` does with a film: bars, frames by
           time, scaling, cuts, looks, hashes, H.264 records.
Targets:   70 % of decoding at 720p30 and 55 % at 640 x 360, in frames of the
           film a CPU-second; two processes of Beam's runner for one machine in
           1/1.6 of the time of one.

Decoding and the chain take turns in one process. CPU time, because other work
on the machine changes the wall time; results are medians of the turns, and the
ratio is the median of the ratios within each turn.
"""

import argparse
import json
import os
import pathlib
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import av
import cv2
import numpy as np

from data_pipelines.videos import collect, cut
from data_pipelines.videos import options as options_lib
from genie_jax.core import files, provenance

_SIZES = ((1280, 720), (640, 360))
_RATE = 30
_TILES = 18  # Rows of tiles on the screen.
_KINDS = 12


def draw_game(
  count: int, width: int, height: int, seed: int = 0
) -> Iterator[np.ndarray]:
  """Yields frames of a side-scrolling game, uint8 [height, width, 3]."""
  rng = np.random.default_rng(seed)
  size = height // _TILES
  tiles = [_tile(rng, size) for _ in range(_KINDS)]
  columns = 400
  world = np.zeros((_TILES * size, columns * size, 3), np.uint8)
  solid = np.zeros(world.shape[:2], bool)

  def place(row: int, column: int, kind: int) -> None:
    where = np.s_[
      row * size : (row + 1) * size, column * size : (column + 1) * size
    ]
    world[where], solid[where] = tiles[kind], True

  ground = 14
  for column in range(columns):
    if rng.random() < 0.2:
      ground = int(np.clip(ground + rng.integers(-2, 3), 8, 16))
    for row in range(ground, _TILES):
      place(row, column, 4 if row == ground else int(rng.integers(4)))
    if rng.random() < 0.12:
      place(ground - int(rng.integers(2, 5)), column, int(rng.integers(5, 12)))
  sky = cv2.resize(
    rng.integers(90, 240, (9, 40, 3), dtype=np.uint8),
    (width * 4, _TILES * size),
    interpolation=cv2.INTER_CUBIC,
  )
  sprites = [_tile(rng, size) for _ in range(6)]
  left, speed = 0.0, 0.0
  for number in range(count):
    if number % 20 == 0:
      speed = size * float(rng.choice([0, 1 / 9, 1 / 5, -1 / 12, 1 / 5]))
    left = float(np.clip(left + speed, 0, columns * size - width - 1))
    near, far = int(left), int(left / 3)
    frame = sky[:height, far : far + width].copy()
    shown = solid[:height, near : near + width]
    frame[shown] = world[:height, near : near + width][shown]
    for k, sprite in enumerate(sprites):
      across = width * (k + 0.5) / 6 + 40 * np.sin(number / (9 + k))
      down = height * (0.55 + 0.25 * np.sin(number / (5 + k) + k))
      x, y = int(across) % (width - size), int(down)
      frame[y : y + size, x : x + size] = sprite
    yield frame


def _tile(rng: np.random.Generator, size: int) -> np.ndarray:
  colour = rng.integers(40, 220, 3)
  noise = rng.normal(0, 14, (size, size, 1)) + rng.normal(0, 6, (size, size, 3))
  tile = np.clip(colour + noise, 0, 255).astype(np.uint8)
  return cv2.GaussianBlur(tile, (0, 0), size / 24)


def make_film(path: pathlib.Path, width: int, height: int, count: int) -> None:
  """Writes a film of the game, unless it is there."""
  if path.exists():
    return
  temporary = path.with_name(f"part-{path.name}")
  with av.open(str(temporary), "w") as container:
    stream = container.add_stream(
      "libx264", rate=_RATE, options={"preset": "medium", "crf": "20"}
    )
    stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
    for frame in draw_game(count, width, height):
      container.mux(
        stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24"))
      )
    container.mux(stream.encode(None))
  temporary.rename(path)


def decode_only(path: pathlib.Path) -> tuple[int, float]:
  """Returns the frames of a film and the CPU-seconds to decode them."""
  began = time.process_time()
  with av.open(str(path)) as container:
    stream = container.streams.video[0]
    stream.codec_context.thread_count = 1
    count = sum(1 for _ in container.decode(stream))
  return count, time.process_time() - began


def cut_film(path: pathlib.Path) -> tuple[int, float]:
  """Returns the bytes of a film's records and the CPU-seconds to make them."""
  sizes = []
  began = time.process_time()
  cut.job(
    {"path": str(path), "source": 0, "options": {}},
    lambda header, blob=b"": sizes.append(len(blob)),
  )
  return sum(sizes), time.process_time() - began


def compare(path: pathlib.Path, turns: int) -> dict[str, Any]:
  """Returns the rates of one film."""
  with av.open(str(path)) as container:
    stream = container.streams.video[0]
    film = {
      "film": path.name,
      "width": stream.width,
      "height": stream.height,
      "fps": round(float(stream.average_rate or 0), 3),
      "codec": stream.codec_context.name,
      "kbit_per_s": round((container.bit_rate or 0) / 1000),
    }
  decoding, chain = [], []
  for _ in range(turns):
    count, seconds = decode_only(path)
    decoding.append(count / seconds)
    chain.append(count / cut_film(path)[1])
  ratios = [c / d for c, d in zip(chain, decoding, strict=True)]
  return {
    **film,
    "frames": count,
    "decode_frames_per_cpu_s": round(statistics.median(decoding)),
    "chain_frames_per_cpu_s": round(statistics.median(chain)),
    "ratio": round(statistics.median(ratios), 3),
    "ratios": [round(ratio, 3) for ratio in ratios],
  }


def compare_processes(
  film: pathlib.Path, copies: int, turns: int
) -> dict[str, Any]:
  """Returns wall seconds with one and with two processes of Beam's runner.

  Args:
    film: Is cut `copies` times. Copies are told apart by a byte at their end.
    copies: Number of equal films.
    turns: How often each is measured.
  """
  walls: dict[int, list[float]] = {1: [], 2: []}
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    films = folder / "films"
    films.mkdir()
    for number in range(copies):
      copy = films / f"{number:02d}{film.suffix}"
      shutil.copy(film, copy)
      with open(copy, "ab") as file:
        file.write(bytes([number]))
    options = options_lib.Options(keep_duplicates=True)
    for turn in range(turns):
      for workers in (1, 2):
        out = folder / f"out-{turn}-{workers}"
        report = collect.collect(str(films), out, options, workers=workers)
        walls[workers].append(report.seconds)
        shutil.rmtree(out)
  medians = {
    workers: statistics.median(some) for workers, some in walls.items()
  }
  return {
    "film": film.name,
    "copies": copies,
    "seconds_one": round(medians[1], 2),
    "seconds_two": round(medians[2], 2),
    "speed_up": round(medians[1] / medians[2], 3),
    "load_average": [round(load, 2) for load in os.getloadavg()],
    "cores": len(os.sched_getaffinity(0)),
  }


def main() -> None:
  """Measures, prints and writes the results."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add("--films", nargs="*", default=[], help="films instead of drawn ones")
  add("--seconds", type=int, default=60, help="length of a drawn film")
  add("--turns", type=int, default=3)
  add("--folder", default=None, help="where drawn films are kept")
  add(
    "--processes",
    action="store_true",
    help="one against two processes of Beam's runner instead",
  )
  add("--copies", type=int, default=8, help="films for --processes")
  add("--json", default=None, metavar="FILE")
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(args.folder or name)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [pathlib.Path(film) for film in args.films]
    if not paths:
      for width, height in _SIZES:
        paths.append(folder / f"game-{width}x{height}.mp4")
        make_film(paths[-1], width, height, args.seconds * _RATE)
    if args.processes:
      results = [compare_processes(p, args.copies, args.turns) for p in paths]
    else:
      results = [compare(path, args.turns) for path in paths]
  for result in results:
    print(json.dumps(result))
  if args.json:
    files.write_json(
      args.json,
      {**provenance.collect(["python", *sys.argv]), "results": results},
    )


if __name__ == "__main__":
  main()
