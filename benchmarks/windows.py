r"""Measures random windows of video from clips in several formats.

Run:       python benchmarks/windows.py --films DIR --json windows.json
Films:     files that PyAV reads, brought to 160 x 90 and 10 frames a second by
           area averaging; from each, clips of 160 frames from --start on.
Ours:      records of 16 frames as H.264 (YCgCo 4:4:4), read by WindowSource.
Recipe:    one mp4 file for each film, opened for each window: seek, decode, and
           convert. The same frames, encoder and options (crf, preset, tune, a
           key frame each 16 frames, no B pictures) as BT.601, once 4:4:4 and
           once 4:2:0, as films usually are. "mp4_444" and "mp4_420" decode with
           one thread and reuse the converter; "mp4_444_plain" is the usual few
           lines, with PyAV's threads and `to_ndarray(format="rgb24")`.
           "mp4_420_default" has x264's own spacing of key frames (up to 250)
           and B pictures, as films have that nobody wrote for training.
Original:  the film files themselves, opened for each window, scaled to the same
           size: what training on films without preparing them would cost.
Beside:    records of raw frames with zstd (lossless), and of JPEG (4:4:4).
Target:    2.5 times the windows of "mp4_444" a CPU-second, at 36 dB or better.

All readers read the same windows in turns, several times in one process with
one thread. Rates are medians over the turns, in windows a CPU-second; ratios
are medians of the ratios within each turn. PSNR is that of the mean squared
error over all pixels of all frames.
"""

import argparse
import io
import json
import pathlib
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import av
import numpy as np
from av import error as av_error
from av import filter as av_filter
from av.video import reformatter
from PIL import Image

from genie_jax.core import errors, files
from genie_jax.data import (
  manifest,
  records,
  shards,
  sources,
  stored_frames,
  video_codec,
)

HEIGHT, WIDTH, FPS = 90, 160, 10
RECORD_FRAMES, CLIP_FRAMES, WINDOW_FRAMES = 16, 160, 16
_JPEG_QUALITY = 95
_SHORT_GROUPS = (
  f"keyint={RECORD_FRAMES}:min-keyint={RECORD_FRAMES}:scenecut=0:bframes=0:"
  "mbtree=0:rc-lookahead=0:threads=1"
)
_SUFFIXES = (".mp4", ".mkv", ".webm", ".mov", ".avi")

Read = Callable[[int, int], np.ndarray]  # Clip, first frame -> frames.


def read_film(path: pathlib.Path, start: float, clips: int) -> np.ndarray:
  """Returns up to `clips` clips of a film, uint8 [clips, 160, H, W, 3]."""
  frames = []
  with av.open(str(path)) as container:
    stream = container.streams.video[0]
    stream.thread_count = 1
    graph = av_filter.Graph()
    made = [
      graph.add_buffer(template=stream),
      graph.add("fps", str(FPS)),
      graph.add("scale", f"{WIDTH}:{HEIGHT}:flags=area"),
      graph.add("format", "rgb24"),
      graph.add("buffersink"),
    ]
    graph.link_nodes(*made).configure()
    wanted = round(start * FPS) + clips * CLIP_FRAMES
    for frame in container.decode(stream):
      graph.push(frame)
      while len(frames) < wanted:
        try:
          frames.append(graph.pull().to_ndarray())
        except (av_error.BlockingIOError, av_error.EOFError):
          break
      if len(frames) >= wanted:
        break
  frames = frames[round(start * FPS) :]
  count = len(frames) // CLIP_FRAMES
  return np.array(frames[: count * CLIP_FRAMES], np.uint8).reshape(
    count, CLIP_FRAMES, HEIGHT, WIDTH, 3
  )


def write_records(
  folder: pathlib.Path, clips: np.ndarray, codec: str | None, options: Any
) -> float:
  """Writes a clips folder; returns the frames encoded in a CPU-second."""
  path, episodes = folder / "train" / shards.shard_name(0, 1), []
  began = time.process_time()
  with shards.ShardWriter(
    path, shards.CODED_OPTIONS if codec else shards.FRAMES_OPTIONS
  ) as writer:
    for number, clip in enumerate(clips):
      episodes.append(
        [number, number * CLIP_FRAMES // RECORD_FRAMES, 0, CLIP_FRAMES]
      )
      for start in range(0, CLIP_FRAMES, RECORD_FRAMES):
        frames = clip[start : start + RECORD_FRAMES]
        writer.write(
          records.pack(
            stored_frames.store(frames, codec, options),
            {
              "fps": FPS,
              "source": number,
              "start": start,
              "num_frames": len(frames),
            },
          )
        )
  seconds = time.process_time() - began
  entry = {**writer.entry, "episodes": episodes}
  total = len(clips) * CLIP_FRAMES
  manifest.Manifest(
    kind="clips",
    name="windows",
    fps=FPS,
    frame_shape=(HEIGHT, WIDTH, 3),
    frames_per_record=RECORD_FRAMES,
    splits={"train": manifest.split_summary([entry], total)},
    num_actions=None,
    action_aliases={},
    frames_codec=codec,
    made_by={},
  ).write(folder)
  return total / seconds


def records_reader(folder: pathlib.Path) -> Read:
  """Returns a reader of windows of a clips folder."""
  source = sources.WindowSource(
    folder, "train", WINDOW_FRAMES, keys=("frames",)
  )
  per_clip = CLIP_FRAMES - WINDOW_FRAMES + 1
  return lambda clip, start: source.gather([clip * per_clip + start])["frames"][
    0
  ]


def write_containers(
  folder: pathlib.Path,
  films: Sequence[np.ndarray],
  pixels: str,
  options: video_codec.H264Options,
  params: str = _SHORT_GROUPS,
) -> float:
  """Writes one mp4 for each film; returns the frames in a CPU-second."""
  folder.mkdir()
  began = time.process_time()
  for number, clips in enumerate(films):
    with av.open(str(folder / f"{number}.mp4"), "w") as container:
      stream = container.add_stream("libx264", rate=FPS)
      stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, pixels
      stream.thread_count = 1
      stream.options = {
        "preset": options.preset,
        "crf": str(options.crf),
        "x264-params": params,
      }
      if params == _SHORT_GROUPS:
        stream.options |= {"tune": "psnr,fastdecode"}
      for frame in clips.reshape(-1, HEIGHT, WIDTH, 3):
        picture = av.VideoFrame.from_ndarray(frame, "rgb24")
        container.mux(stream.encode(picture))
      container.mux(stream.encode(None))
  frames = sum(len(clips) for clips in films) * CLIP_FRAMES
  return frames / (time.process_time() - began)


def containers_reader(
  paths: Sequence[pathlib.Path],
  places: Sequence[tuple[int, int]],
  plain: bool = False,
  offset: float = 0.0,
) -> Read:
  """Returns a reader that opens a container for each window.

  Args:
    paths: The file of each film.
    places: For each clip, its film and its first frame at 10 frames a second.
    plain: Whether to convert frames as in PyAV's first examples.
    offset: Seconds of the file before the film's first frame.
  """
  converter = reformatter.VideoReformatter()

  def read(clip: int, start: int) -> np.ndarray:
    film, first = places[clip]
    frames = []
    with av.open(str(paths[film])) as container:
      stream = container.streams.video[0]
      if not plain:
        stream.thread_count = 1
      assert stream.time_base is not None  # Every container states it.
      tick = float(stream.time_base)
      begin = offset + (first + start) / FPS
      container.seek(int(begin / tick), stream=stream)
      for picture in container.decode(stream):
        # The next frame at or after each tenth of a second.
        if (picture.pts or 0) * tick < begin + len(frames) / FPS - 0.01:
          continue
        if plain:
          frames.append(picture.to_ndarray(format="rgb24"))
        else:
          frames.append(
            converter.reformat(
              picture, WIDTH, HEIGHT, "rgb24", interpolation="AREA"
            ).to_ndarray()
          )
        if len(frames) == WINDOW_FRAMES:
          break
    return np.stack(frames)

  return read


def write_jpegs(path: pathlib.Path, clips: np.ndarray) -> float:
  """Writes records of 16 JPEG files; returns the frames in a CPU-second."""
  began = time.process_time()
  with shards.ShardWriter(path, shards.CODED_OPTIONS) as writer:
    for clip in clips:
      for start in range(0, CLIP_FRAMES, RECORD_FRAMES):
        coded = []
        for frame in clip[start : start + RECORD_FRAMES]:
          buffer = io.BytesIO()
          Image.fromarray(frame).save(
            buffer, "JPEG", quality=_JPEG_QUALITY, subsampling=0
          )
          coded.append(buffer.getvalue())
        writer.write(
          records.pack(
            {
              "jpeg": np.frombuffer(b"".join(coded), np.uint8),
              "ends": np.cumsum([len(each) for each in coded]),
            },
            {},
          )
        )
  files.write_json(path.with_suffix(".json"), writer.entry)
  return len(clips) * CLIP_FRAMES / (time.process_time() - began)


def jpegs_reader(path: pathlib.Path) -> Read:
  """Returns a reader that decodes only the frames of the window."""
  reader = shards.ShardReader(path, files.read_json(path.with_suffix(".json")))
  per_clip = CLIP_FRAMES // RECORD_FRAMES

  def read(clip: int, start: int) -> np.ndarray:
    head, tail = (
      start // RECORD_FRAMES,
      (start + WINDOW_FRAMES - 1) // RECORD_FRAMES,
    )
    first = clip * per_clip
    out = np.empty((WINDOW_FRAMES, HEIGHT, WIDTH, 3), np.uint8)
    found = reader.read(range(first + head, first + tail + 1))
    for number, (arrays, _) in enumerate(found, start=head):
      data, ends = arrays["jpeg"].tobytes(), arrays["ends"]
      for place in range(RECORD_FRAMES):
        row = number * RECORD_FRAMES + place - start
        if 0 <= row < WINDOW_FRAMES:
          begin = ends[place - 1] if place else 0
          with Image.open(io.BytesIO(data[begin : ends[place]])) as image:
            out[row] = np.asarray(image)
    return out

  return read


def profile(folder: pathlib.Path, windows: Sequence[tuple[int, int]]) -> Any:
  """Returns milliseconds of CPU a window of each step of reading H.264."""
  found = manifest.Manifest.read(folder)
  path, entry = found.shards("train")[0]
  reader = shards.ShardReader(path, entry)
  reader.open()
  per_clip = CLIP_FRAMES // RECORD_FRAMES
  spent = {"records": 0.0, "H.264": 0.0, "copy of planes, RGB": 0.0}
  for clip, start in windows:
    head, tail = (
      start // RECORD_FRAMES,
      (start + WINDOW_FRAMES - 1) // RECORD_FRAMES,
    )
    began = time.process_time()
    read = reader.read(
      range(clip * per_clip + head, clip * per_clip + tail + 1)
    )
    spent["records"] += time.process_time() - began
    for number, (arrays, meta) in enumerate(read, start=head):
      low = max(start - number * RECORD_FRAMES, 0)
      high = min(start + WINDOW_FRAMES - number * RECORD_FRAMES, RECORD_FRAMES)
      packets, shape = arrays["h264"], (meta["num_frames"], HEIGHT, WIDTH, 3)
      began = time.process_time()
      units = video_codec._split(packets.tobytes())
      video_codec._pictures(units[:high], "record")
      decoded = time.process_time() - began
      began = time.process_time()
      video_codec.decode(packets, shape, low, high)
      whole = time.process_time() - began
      spent["H.264"] += decoded
      spent["copy of planes, RGB"] += max(whole - decoded, 0.0)
  return {name: 1000 * value / len(windows) for name, value in spent.items()}


def psnr_of(read: Read, clips: np.ndarray) -> float:
  """Returns the PSNR of all frames of all clips, in dB."""
  error = 0.0
  for number, clip in enumerate(clips):
    for start in range(0, CLIP_FRAMES, WINDOW_FRAMES):
      wanted = clip[start : start + WINDOW_FRAMES].astype(np.float64)
      error += ((read(number, start) - wanted) ** 2).sum()
  return float(10 * np.log10(255**2 * clips.size / error)) if error else np.inf


def run(folder: pathlib.Path, args: argparse.Namespace) -> dict[str, Any]:
  """Writes all formats, measures them in turns, returns the figures."""
  films, paths = [], []
  for path in sorted(args.films.rglob("*")):
    if path.suffix in _SUFFIXES:
      found = read_film(path, args.start, args.clips_per_film)
      if found.size:
        films.append(found)
        paths.append(path)
  if not films:
    raise errors.UserError(
      f"--films {args.films} has no film of {args.start + 16:g} seconds."
    )
  clips = np.concatenate(films)
  places = [
    (film, number * CLIP_FRAMES)
    for film, found in enumerate(films)
    for number in range(len(found))
  ]
  options = video_codec.H264Options(args.crf, args.preset)
  h264, zstd = folder / "h264", folder / "zstd"
  mp4 = {name: folder / name for name in ("yuv444p", "yuv420p", "default")}
  jpeg = folder / "jpeg.array_record"
  encoded = {
    "h264": write_records(h264, clips, video_codec.NAME, options),
    "mp4_444": write_containers(mp4["yuv444p"], films, "yuv444p", options),
    "mp4_420": write_containers(mp4["yuv420p"], films, "yuv420p", options),
    "mp4_420_default": write_containers(
      mp4["default"], films, "yuv420p", options, "threads=1"
    ),
    "zstd": write_records(zstd, clips, None, None),
    "jpeg": write_jpegs(jpeg, clips),
  }
  names = [f"{number}.mp4" for number in range(len(films))]
  open_each = lambda pixels, plain=False: containers_reader(
    [mp4[pixels] / name for name in names], places, plain
  )
  readers: dict[str, Read] = {
    "h264": records_reader(h264),
    "mp4_444": open_each("yuv444p"),
    "mp4_444_plain": open_each("yuv444p", plain=True),
    "mp4_420": open_each("yuv420p"),
    "mp4_420_default": open_each("default"),
    "original": containers_reader(paths, places, offset=args.start),
    "zstd": records_reader(zstd),
    "jpeg": jpegs_reader(jpeg),
  }
  size_of = lambda part: sum(
    path.stat().st_size
    for path in ([part] if part.is_file() else part.rglob("*.*"))
    if path.suffix in (".array_record", ".mp4")
  )
  sizes = {
    "h264": size_of(h264),
    "mp4_444": size_of(mp4["yuv444p"]),
    "mp4_420": size_of(mp4["yuv420p"]),
    "mp4_420_default": size_of(mp4["default"]),
    "zstd": size_of(zstd),
    "jpeg": size_of(jpeg),
  }
  rng = np.random.default_rng(0)
  draw = lambda: [
    (
      int(rng.integers(len(clips))),
      int(rng.integers(CLIP_FRAMES - WINDOW_FRAMES + 1)),
    )
    for _ in range(args.windows)
  ]
  for read in readers.values():
    read(0, 1)
  turns: dict[str, list[float]] = {name: [] for name in readers}
  for _ in range(args.rounds):
    windows = draw()
    for name, read in readers.items():
      began = time.process_time()
      for clip, start in windows:
        read(clip, start)
      turns[name].append(len(windows) / (time.process_time() - began))
  over = lambda other: statistics.median(
    mine / theirs
    for mine, theirs in zip(turns["h264"], turns[other], strict=True)
  )
  total = len(clips) * CLIP_FRAMES
  return {
    "machine": f"{platform.machine()}, Python {platform.python_version()}, "
    f"PyAV {av.__version__}",
    "films": [path.name for path in paths],
    "frames": total,
    "size": f"{WIDTH}x{HEIGHT}",
    "options": {"crf": args.crf, "preset": args.preset},
    "formats": {
      name: {
        "windows_per_cpu_second": statistics.median(turns[name]),
        "bytes_per_frame": sizes[name] / total,
        "psnr": psnr_of(readers[name], clips),
        "frames_encoded_per_cpu_second": encoded[name],
      }
      if name in sizes
      else {"windows_per_cpu_second": statistics.median(turns[name])}
      for name in readers
    },
    "h264_over": {name: over(name) for name in readers if name != "h264"},
    "milliseconds_of_a_window": profile(h264, draw()),
    "targets": {"h264_over": {"mp4_444": 2.5}, "psnr": 36},
  }


def main() -> None:
  """Entry point."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add("--films", type=pathlib.Path, required=True, help="folder of films")
  add("--start", type=float, default=0.0, help="seconds to skip (default: 0)")
  add("--clips-per-film", type=int, default=2, help="default: 2")
  add("--windows", type=int, default=200, help="in each turn (default: 200)")
  add("--rounds", type=int, default=5, help="default: 5")
  add("--crf", type=float, default=video_codec.H264Options().crf)
  add("--preset", default=video_codec.H264Options().preset)
  add("--json", metavar="FILE", help="also write the figures here")
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as name:
    result = run(pathlib.Path(name), args)
  result["formats"]["zstd"]["psnr"] = "lossless"
  print(json.dumps(result, indent=2))
  if args.json:
    files.write_json(args.json, result)


if __name__ == "__main__":
  main()
