r"""Measures speed and latency of play in a browser, and with many players.

Run:      python benchmarks/play.py --json play.json
Needs:    Chromium on the PATH or in $CHROMIUM, and Playwright.
Targets:  10 frames per second on two CPU cores with the shipped world; the
          first frame after a prompt within one second once warm; frames of 16
          players arrive complete and in order.

`genie play` runs in its own process, and the page in a headless Chromium. A
frame counts as painted when the first task after the browser's next paint runs,
and as distinct if its pixels differ from those of every other frame of the run.
`browser_fps` counts distinct frames while buttons are held at the speed "as
fast as it goes"; `latency_ms_*` is the time from one key press to its painted
frame. The load average is stated, because other programs slow the machine.

The players start from different prompts and seeds, and each presses its own
random buttons at its own pace. Every run is then replayed alone, and each
frame must be bit-identical: `lost_or_out_of_order` counts frames whose number,
action or sequence number is not the expected one, `unlike_alone` counts frames
whose pixels differ. (On accelerators players are stepped together, and pixels
may differ by one 8-bit level.)
"""

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import pathlib
import platform
import signal
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import chromium
import numpy as np
from websockets.asyncio import client

from genie_jax.core import errors, files

_ROOT = pathlib.Path(__file__).parent.parent
_WORLD = _ROOT / "experiments" / "coinrun" / "results" / "world"
_LONGEST_PAUSE = 0.15  # Mean seconds between presses of the slowest player.
_HEADER = struct.Struct("<BBHIII")  # docs/play.md
_FRAME = 1
_ENTRIES = (
  "performance.getEntriesByName('genie:frame').map("
  "(e) => [e.detail.frame, e.detail.seq, e.startTime,"
  " e.startTime + e.duration])"
)
_FIRST_FRAME = """async (n) => {
  performance.clearMeasures();
  const began = performance.now();
  document.querySelectorAll('#gallery button')[n].click();
  for (;;) {
    const [entry] = performance.getEntriesByName('genie:frame');
    if (entry) return entry.startTime + entry.duration - began;
    await new Promise((done) => setTimeout(done, 1));
  }
}"""


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--json", metavar="F", help="also write the result")
  parser.add_argument("--world", default=str(_WORLD), metavar="DIR")
  parser.add_argument("--seconds", type=float, default=20)
  parser.add_argument("--presses", type=int, default=60)
  parser.add_argument("--players", type=int, default=16)
  parser.add_argument("--refinements", type=int, default=None)
  parser.add_argument("--slide", default=None)
  args = parser.parse_args()
  try:
    result = run(args)
  except (errors.UserError, FileNotFoundError) as error:
    sys.exit(f"benchmarks/play.py: {error}")
  print(json.dumps(result, indent=2))
  if args.json:
    files.write_json(args.json, result)


def run(args: argparse.Namespace) -> dict[str, Any]:
  """Measures and returns all figures."""
  result: dict[str, Any] = {
    "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python "
    f"{platform.python_version()}",
    "command": " ".join(["python", "benchmarks/play.py", *sys.argv[1:]]),
    "refinements": args.refinements,
    "slide": args.slide,
    "load_average_before": os.getloadavg()[0],
  }
  with serving(args) as (url, started):
    result |= started
    with chromium.launch() as browser:
      result["chromium"] = browser.version
      result |= in_browser(browser, url, args)
    result["load_average_between"] = os.getloadavg()[0]
    result["players"] = asyncio.run(crowd(url, args.players, args.seconds))
  result["load_average_after"] = os.getloadavg()[0]
  result["targets"] = {"browser_fps": 10, "first_frame_ms": 1000}
  return result


@contextlib.contextmanager
def serving(args: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
  """Runs `genie play`; yields its address and the time that it took to start.

  Raises:
    UserError: It did not start; it has printed the reason.
  """
  words = [
    sys.executable,
    "-m",
    "genie_jax.cli.play",
    "--world",
    args.world,
    "--port",
    "0",
    "--no-open",
    "--max-sessions",
    str(args.players + 1),
  ]
  for name in ("refinements", "slide"):
    if getattr(args, name) is not None:
      words += [f"--{name}", str(getattr(args, name))]
  began = time.monotonic()
  server = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=_ROOT)
  try:
    for line in server.stdout:
      if line.startswith("Play at "):
        break
    else:
      raise errors.UserError("genie play did not start; see above.")
    yield line.split()[2], {"start_seconds": time.monotonic() - began}
  finally:
    server.send_signal(signal.SIGINT)
    server.wait(30)


def in_browser(
  browser: Any, url: str, args: argparse.Namespace
) -> dict[str, Any]:
  """Plays in a browser with key presses, and returns the figures."""
  page = browser.new_page()
  frames: dict[tuple[int, int], str] = {}  # (run, number) -> hash

  def receive(message: Any) -> None:
    if isinstance(message, bytes) and message[1] == _FRAME:
      header = _HEADER.unpack_from(message)
      frames[header[3], header[4]] = hashlib.sha256(
        message[_HEADER.size :]
      ).hexdigest()

  page.on(
    "websocket",
    lambda opened: opened.on("framereceived", lambda message: receive(message)),
  )
  page.goto(url)
  page.wait_for_selector("#connection[data-state=open]")
  page.select_option("#speed", "most")
  count = page.locator("#gallery button").count()
  page.wait_for_timeout(500)
  first = [page.evaluate(_FIRST_FRAME, number % count) for number in range(10)]

  buttons = page.locator("#buttons button").count()
  press_and_wait(page, 12, buttons)  # Fills the window, so that it slides.
  page.evaluate("performance.clearMeasures()")
  press_and_wait(page, args.presses, buttons)
  taps = [end - start for _, seq, start, end in page.evaluate(_ENTRIES) if seq]

  page.evaluate("performance.clearMeasures()")
  latest = max(run for run, _ in frames)
  held_for = 1.0
  for number in range(max(1, round(args.seconds / held_for))):
    key = str(number % buttons)
    page.keyboard.down(key)
    page.wait_for_timeout(1000 * held_for)
    page.keyboard.up(key)
  page.wait_for_timeout(500)
  entries = [entry for entry in page.evaluate(_ENTRIES) if entry[1]]
  times = [entry[3] for entry in entries]
  distinct = {frames[latest, entry[0]] for entry in entries}
  numbers = [entry[0] for entry in entries]
  page.close()
  seconds = (times[-1] - times[0]) / 1000
  held = [entry[3] - entry[2] for entry in entries]
  return {
    "browser_fps": (len(distinct) - 1) / seconds,
    "painted_fps": (len(times) - 1) / seconds,
    "painted_frames": len(times),
    "distinct_frames": len(distinct),
    "in_order": numbers == sorted(set(numbers)),
    "latency_ms_p50": percentile(taps, 50),
    "latency_ms_p95": percentile(taps, 95),
    "latency_ms_worst": max(taps),
    "presses": len(taps),
    "held_latency_ms_p50": percentile(held, 50),
    "held_latency_ms_p95": percentile(held, 95),
    "first_frame_ms_p50": percentile(first, 50),
    "first_frame_ms_worst": max(first),
  }


def press_and_wait(page: Any, count: int, buttons: int) -> None:
  """Presses keys one by one, each after the previous frame was painted."""
  for number in range(count):
    before = page.evaluate("performance.getEntriesByName('genie:frame').length")
    page.keyboard.press(str(number % buttons))
    while (
      page.evaluate("performance.getEntriesByName('genie:frame').length")
      == before
    ):
      page.wait_for_timeout(5)


async def crowd(url: str, count: int, seconds: float) -> dict[str, Any]:
  """Runs many players at once, each at its own pace, and replays each alone."""
  until = time.monotonic() + seconds
  found = await asyncio.gather(
    *(
      play(url, number, _LONGEST_PAUSE * number / count, until)
      for number in range(count)
    )
  )
  # One at a time, so that each is alone.
  unlike = [differences(each, await replay(url, each)) for each in found]
  waits = [wait for each in found for wait in each["waits"]]
  return {
    "players": count,
    "frames": len(waits),
    "fps_of_all": len(waits) / seconds,
    "fewest_frames": min(len(each["waits"]) for each in found),
    "most_frames": max(len(each["waits"]) for each in found),
    "lost_or_out_of_order": sum(each["disorder"] for each in found),
    "same_as_alone": not any(unlike),
    "unlike_alone": sum(unlike),
    "latency_ms_p50": percentile(waits, 50),
    "latency_ms_p95": percentile(waits, 95),
    "latency_ms_p99": percentile(waits, 99),
  }


@contextlib.asynccontextmanager
async def connected(url: str):
  """Yields a WebSocket after its handshake, and the welcome message."""
  address = url.replace("http", "ws", 1) + "play"
  async with client.connect(address, max_size=None, proxy=None) as socket:
    await socket.send(json.dumps({"type": "hello", "version": 1}))
    yield socket, json.loads(await socket.recv())


async def next_frame(socket: Any) -> tuple[tuple[int, ...], bytes]:
  """Returns header and encoded image of the next frame."""
  while True:
    message = await socket.recv()
    if isinstance(message, bytes):
      return _HEADER.unpack_from(message), message[_HEADER.size :]


async def play(
  url: str, number: int, pause: float, until: float
) -> dict[str, Any]:
  """Plays random buttons until a time.

  Args:
    url: Of the server.
    number: Of the player, also its seed.
    pause: Mean seconds between a frame and the next press.
    until: Time of `time.monotonic`.
  """
  random = np.random.default_rng(number)
  waits, hashes, actions, disorder = [], [], [], 0
  async with connected(url) as (socket, welcome):
    buttons = welcome["world"]["num_actions"]
    start = {"prompt": number % welcome["prompts"], "seed": number}
    await socket.send(json.dumps({"type": "start", **start}))
    _, picture = await next_frame(socket)
    hashes.append(hashlib.sha256(picture).hexdigest())
    while time.monotonic() < until:
      await asyncio.sleep(random.uniform(0, 2 * pause))
      actions.append(int(random.integers(buttons)))
      began = time.monotonic()
      await socket.send(
        json.dumps({"type": "act", "action": actions[-1], "seq": len(actions)})
      )
      header, picture = await next_frame(socket)
      waits.append(1000 * (time.monotonic() - began))
      hashes.append(hashlib.sha256(picture).hexdigest())
      disorder += header[4:6] != (len(actions), len(actions)) or (
        header[2] != actions[-1]
      )
  return {
    "waits": waits,
    "hashes": hashes,
    "actions": actions,
    "disorder": disorder,
    "start": start,
  }


async def replay(url: str, run: dict[str, Any]) -> list[str]:
  """Returns hashes of the frames of a player's run, played alone."""
  async with connected(url) as (socket, _):
    await socket.send(
      json.dumps({"type": "start", **run["start"], "actions": run["actions"]})
    )
    found = [
      hashlib.sha256((await next_frame(socket))[1]).hexdigest()
      for _ in range(len(run["actions"]) + 1)
    ]
    await socket.send(json.dumps({"type": "stop"}))  # Frees the session.
    return found


def differences(run: dict[str, Any], alone: list[str]) -> int:
  """Returns how many frames of a run differ from those of its replay."""
  return sum(
    one != other for one, other in zip(run["hashes"], alone, strict=True)
  )


def percentile(values: list[float], share: float) -> float:
  """Returns a percentile; the median is from the statistics module."""
  if share == 50:
    return statistics.median(values)
  return float(np.percentile(values, share))


if __name__ == "__main__":
  main()
