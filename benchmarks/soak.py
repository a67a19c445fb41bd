r"""Plays for an hour with as many players as the server admits.

Run:      make test-soak
          python benchmarks/soak.py --minutes 60 --players 16 --json soak.json
Needs:    the packages of `make setup`; Linux, for the server's memory.
Criteria: the median resident memory of the server in the last quarter of the
          time exceeds that of the second quarter by at most --grows MiB; no
          player waits for an answer for more than --hang seconds; no player
          loses its connection or gets a wrong frame. Ends with code 1
          otherwise.
Result:   the hour was not measured yet.

`genie play` runs in its own process, at its limit of players. Each player is a
WebSocket of its own and plays games of random length, up to --frames frames;
between buttons it goes back, branches, compares the buttons, makes a video,
loses its connection and reconnects, or leaves and comes back as somebody new.
The first quarter is the warm-up: programs are compiled, and the states and
frames that the server keeps for each player fill up. A leak of 1 KiB per frame,
at 20 frames per second, would be 35 MiB between the two medians of an hour. In
a run of a few minutes the warm-up may last longer than the first quarter.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import json
import os
import pathlib
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from websockets import exceptions
from websockets.asyncio import client

from genie_jax.core import errors, files
from genie_jax.serve import protocol

_ROOT = pathlib.Path(__file__).parent.parent
_WORLD = _ROOT / "experiments" / "coinrun" / "results" / "world"
_SAMPLES = 240  # Of the memory, in the whole time.
_ASIDE = 0.08  # Odds of something else than a button.


class Failed(Exception):
  """A player was not served as it should be; the message is one line."""


@dataclasses.dataclass
class Counts:
  """What all players together have done.

  Attributes:
    frames: Frames that were received in their place.
    asides: Name of an action that is not a button -> how often.
    longest: Longest wait for an answer, in seconds.
  """

  frames: int = 0
  asides: dict[str, int] = dataclasses.field(default_factory=dict)
  longest: float = 0.0


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--json", metavar="F", help="also write the result")
  parser.add_argument("--world", default=str(_WORLD), metavar="DIR")
  parser.add_argument("--minutes", type=float, default=60)
  parser.add_argument("--players", type=int, default=16)
  parser.add_argument("--frames", type=int, default=60)
  parser.add_argument("--grows", type=float, default=32, metavar="MIB")
  parser.add_argument("--hang", type=float, default=60, metavar="SECONDS")
  args = parser.parse_args()
  try:
    for name in ("minutes", "players", "frames", "hang"):
      if not getattr(args, name) > 0:
        raise errors.UserError(f"--{name}: give more than 0.")
    result = run(args)
  except errors.UserError as error:
    print(f"benchmarks/soak.py: {error}", file=sys.stderr)
    sys.exit(2)
  print(json.dumps(result, indent=2))
  if args.json:
    files.write_json(args.json, result)
  if result["failures"]:
    sys.exit(1)


def run(args: argparse.Namespace) -> dict[str, Any]:
  """Starts the server, plays, and returns the figures and the failures."""
  words = ["--world", args.world, "--max-sessions", str(args.players)]
  server = subprocess.Popen(
    [sys.executable, "-m", "genie_jax.cli.play", *words]
    + ["--port", "0", "--no-open"],
    stdout=subprocess.PIPE,
    text=True,
    cwd=_ROOT,
  )
  try:
    assert server.stdout is not None  # It is a pipe.
    for line in server.stdout:
      if line.startswith("Play at "):
        break
    else:
      raise errors.UserError("genie play did not start; see above.")
    return asyncio.run(
      soak(
        line.split()[2],
        lambda: resident_mib(server.pid),
        seconds=60 * args.minutes,
        players=args.players,
        frames=args.frames,
        hang=args.hang,
        grows=args.grows,
      )
    )
  finally:
    server.terminate()
    server.wait(30)


def resident_mib(pid: int) -> float:
  """Returns the resident memory of a process in MiB."""
  pages = int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1])
  return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


async def soak(
  url: str,
  memory: Callable[[], float],
  *,
  seconds: float,
  players: int,
  frames: int,
  hang: float,
  grows: float,
) -> dict[str, Any]:
  """Plays, and returns the figures and the failures.

  Args:
    url: Of the server.
    memory: Returns the server's memory in MiB.
    seconds: How long to play.
    players: Number of players.
    frames: Most frames of one game.
    hang: Seconds after which an answer is missing.
    grows: MiB by which the memory may grow, as in `growth`.
  """
  until, counts = time.monotonic() + seconds, Counts()
  failures: list[str] = []
  samples = []
  tasks = [
    asyncio.create_task(play(url, number, until, frames, hang, counts))
    for number in range(players)
  ]
  try:
    while time.monotonic() < until and not failures:
      samples.append(memory())
      done, _ = await asyncio.wait(
        tasks,
        timeout=seconds / _SAMPLES,
        return_when=asyncio.FIRST_EXCEPTION,
      )
      failures += [str(e) for task in done if (e := task.exception())]
    if not failures:
      ends = await asyncio.gather(*tasks, return_exceptions=True)
      failures += [str(end) for end in ends if end is not None]
  finally:
    for task in tasks:
      task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
  grown = None
  if len(samples) >= 8:
    grown = growth(samples)
    if grown > grows:
      failures.append(
        f"The server's memory grew by {grown:.1f} MiB from the second to the "
        f"last quarter; {grows:g} are allowed."
      )
  elif not failures:
    failures.append("The memory was sampled too rarely; play for longer.")
  return {
    "minutes": seconds / 60,
    "players": players,
    **dataclasses.asdict(counts),
    "frames_per_second": counts.frames / seconds,
    "memory_mib": [round(each, 1) for each in samples],
    "memory_grown_mib": grown,
    "failures": failures,
    "load_average": os.getloadavg()[0],
  }


def growth(samples: Sequence[float]) -> float:
  """Returns the median of the last quarter less that of the second."""
  quarter = len(samples) // 4
  return statistics.median(samples[-quarter:]) - statistics.median(
    samples[quarter : 2 * quarter]
  )


class Player:
  """One player's connection.

  Attributes:
    counts: What all players have done.
    token: Of the session.
    welcome: The server's first message.
  """

  def __init__(self, url: str, hang: float, counts: Counts):
    self._url = url.replace("http", "ws", 1) + "play"
    self._hang, self.counts = hang, counts
    self._socket: client.ClientConnection | None = None
    self._run = self._seq = 0
    self.token = ""
    self.welcome: dict[str, Any] = {}

  async def connect(self, resume: bool) -> None:
    """Connects: to the session so far, or as somebody new."""
    if self._socket is not None and resume:
      self._socket.transport.abort()  # As if the network was lost.
    await self.leave()
    async with asyncio.timeout(self._hang):
      self._socket = await client.connect(
        self._url, max_size=None, proxy=None, close_timeout=1
      )
    await self.send(
      type="hello",
      version=protocol.VERSION,
      token=self.token if resume else "",
    )
    self.welcome = await self.text("welcome")
    if resume and not self.welcome["resumed"]:
      raise Failed("A game was lost when its player reconnected.")
    if not resume:
      self._seq = 0
    self.token = self.welcome["token"]

  async def leave(self) -> None:
    """Closes the connection, if there is one."""
    if self._socket is not None:
      await self._socket.close()

  async def send(self, **message: Any) -> None:
    """Sends a message."""
    assert self._socket is not None  # After `connect`.
    await self._socket.send(json.dumps(message))

  async def take(self) -> dict[str, Any] | tuple[protocol.Header, bytes]:
    """Receives one message.

    Raises:
      Failed: It did not come in time, or it is an error.
    """
    assert self._socket is not None  # After `connect`.
    began = time.monotonic()
    try:
      async with asyncio.timeout(self._hang):
        message = await self._socket.recv()
    except TimeoutError:
      raise Failed(
        f"A player waited for more than {self._hang:g} seconds."
      ) from None
    self.counts.longest = max(self.counts.longest, time.monotonic() - began)
    if isinstance(message, bytes):
      return protocol.unpack(message)
    found = json.loads(message)
    if found["type"] == "error":
      raise Failed(f"The server refused a message: {found['error']}")
    return found

  async def text(self, kind: str) -> dict[str, Any]:
    """Receives messages up to a text of this type, which it returns."""
    while True:
      found = await self.take()
      if isinstance(found, dict) and found["type"] == kind:
        return found

  async def binary(self, kind: int, frame: int | None = None) -> None:
    """Receives messages up to one of this kind, of the run being played.

    Raises:
      Failed: Another frame came.
    """
    while True:
      found = await self.take()
      if isinstance(found, dict):
        if found["type"] == "line":
          self._run = found["run"]
        continue
      header, _ = found
      if header.kind != kind or header.run != self._run:
        continue
      if frame is not None and header.frame != frame:
        raise Failed(f"Frame {header.frame} came in place of frame {frame}.")
      self.counts.frames += header.kind == protocol.FRAME
      return

  async def line(self, **message: Any) -> int:
    """Sends a message that is answered by a line; returns its last frame."""
    await self.send(**message)
    found = await self.text("line")
    self._run = found["run"]
    return found["end"]

  async def press(self, action: int, frame: int) -> None:
    """Presses a button and receives the frame that it leads to."""
    self._seq += 1
    await self.send(type="act", action=action, seq=self._seq)
    await self.binary(protocol.FRAME, frame)


async def play(
  url: str,
  number: int,
  until: float,
  frames: int,
  hang: float,
  counts: Counts,
) -> None:
  """Plays games until a time of `time.monotonic`.

  Raises:
    Failed: The player was not served as it should be.
  """
  choose = random.Random(number)
  player = Player(url, hang, counts)
  try:
    await player.connect(resume=False)
    while time.monotonic() < until:
      await game(player, choose, choose.randint(1, frames), until)
  except (exceptions.WebSocketException, OSError) as error:
    raise Failed(f"Player {number} lost the connection: {error}") from error
  finally:
    with contextlib.suppress(exceptions.WebSocketException, OSError):
      await player.leave()


async def game(
  player: Player, choose: random.Random, frames: int, until: float
) -> None:
  """Plays one game of at most so many frames."""
  prompts = max(1, player.welcome["prompts"])
  buttons = player.welcome["world"]["num_actions"]
  await player.line(
    type="start", prompt=choose.randrange(prompts), seed=choose.randrange(1000)
  )
  await player.binary(protocol.FRAME, 0)
  end, branched = 0, False
  while end < frames and time.monotonic() < until:
    aside = None
    if choose.random() < _ASIDE:
      aside = choose.choice(
        ["rewind", "branch", "compare", "record", "reconnect", "leave"]
      )
      counts = player.counts.asides
      counts[aside] = counts.get(aside, 0) + 1
    if aside == "rewind" or (aside == "branch" and branched):
      end = await player.line(type="rewind", frame=choose.randint(0, end))
    elif aside == "branch":
      end = await player.line(type="branch", frame=choose.randint(0, end))
      branched = True  # There may be eight lines.
    elif aside == "compare":
      await player.send(type="compare", frame=end, frames=1)
      await player.text("compared")
    elif aside == "record":
      await player.send(
        type="record", format=choose.choice(["gif", "mp4"]), last=end
      )
      await player.binary(protocol.FILM)
    elif aside == "reconnect":
      await player.connect(resume=True)
      await player.binary(protocol.FRAME, 0)
      for frame in range(1, end + 1):
        await player.binary(protocol.FRAME, frame)
    elif aside == "leave":
      await player.connect(resume=False)
      return
    else:
      end += 1
      await player.press(choose.randrange(buttons), end)


if __name__ == "__main__":
  main()
