"""Sends changed inputs to everything that reads what strangers write.

Each input is answered, accepted, or refused in one line, within seconds, and
leaves no memory behind.
"""

import asyncio
import contextlib
import functools
import hashlib
import io
import json
import os
import pathlib
import random
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
from PIL import Image

import genie_jax
from genie_jax.cli import main as cli
from genie_jax.core import config as config_lib
from genie_jax.core import errors
from genie_jax.data import manifest as manifest_lib
from genie_jax.serve import app, connection, protocol, uploads
from genie_jax.worlds import world_manifest
from tests.faults import trials
from tests.fixtures import tiny_world
from tests.serve import fake_world

_TRIAL = 500  # Inputs.
_SLOW = 10.0  # Seconds that one input may take on a busy machine.
_LONG = 2200  # Characters of a line.
_GROWS = 64 << 20  # Bytes that a trial may leave behind, after the first.
_WORDS = [
  *(None, True, False, 0, -1, 1, 0.5, 1e300, 2**31, 2**63, -(2**70)),
  *("", "x", "left", "\0", "\x1b[2J", "\udcff", "x" * 5000, "../../etc"),
  *([], {}, [None], [[[]]], {"a": {}}, [1] * 300),
]
_TEXTS = [
  *("", " ", "0", "-1", "1e999", "nan", "inf", "None", "True", "(1,", "()"),
  *("[" * 3000, "1" * 4000, "a\nb", "\x1b[2J", "\0", "\udcff", "/", "."),
  *("/proc/self/mem", "/dev/null", "nothing/here", "x" * 300, "a=b", "=", ","),
  *("drop=3", "temperature=2", "http://[::1/x", "hf://", "--help", "--"),
]


# A door gets a random generator and answers one input: it returns an answer to
# check, or raises UserError.
Door = Callable[[random.Random], str | None]


def changed_bytes(content: bytes, rng: random.Random) -> bytes:
  """Returns bytes with some replaced, removed, repeated or added."""
  out = bytearray(content)
  for _ in range(rng.choice((1, 1, 2, 5, 20))):
    place = rng.randrange(len(out) + 1)
    length = rng.choice((1, 1, 4, 16, 200))
    kind = rng.randrange(4)
    if kind == 0:
      out[place : place + length] = rng.randbytes(
        len(out[place : place + length])
      )
    elif kind == 1:
      del out[place : place + length]
    elif kind == 2:
      out[place:place] = out[max(0, place - length) : place]
    else:
      out[place:place] = rng.choice((b"\0", b"\xff", b'"', b"9", b"{")) * length
  return bytes(out)


def changed_json(value: Any, rng: random.Random) -> Any:
  """Returns JSON with one value replaced, removed or added."""
  value = json.loads(json.dumps(value))
  groups = [value] if isinstance(value, dict | list) else []
  for group in groups:
    inner = group.values() if isinstance(group, dict) else group
    groups += [one for one in inner if isinstance(one, dict | list)]
  filled = [group for group in groups if group]
  if not filled:
    return rng.choice(_WORDS)
  group = rng.choice(filled)
  keys = list(group) if isinstance(group, dict) else range(len(group))
  key = rng.choice(list(keys))
  kind = rng.randrange(4)
  if kind == 0:
    del group[key]
  elif kind == 1 and isinstance(group, dict):
    group[rng.choice(("x", "", "a\0", str(key) * 2))] = rng.choice(_WORDS)
  else:
    group[key] = rng.choice(_WORDS)
  return value


def as_text(value: Any) -> bytes:
  """Returns JSON as bytes, even if it is not valid text."""
  return json.dumps(value).encode("utf-8", "surrogatepass")


def manifests(scratch: pathlib.Path) -> Iterator[Door]:
  """A folder of clips whose manifest was changed, and signed again."""
  folder = tiny_world.write_clips(scratch / "clips", {"train": [0, 1]})
  path = folder / "manifest.json"
  pristine = json.loads(path.read_text())

  def door(rng: random.Random) -> None:
    found = changed_json(pristine, rng)
    if isinstance(found, dict) and "fingerprint" in found:
      stated = {k: v for k, v in found.items() if k != "fingerprint"}
      with contextlib.suppress(UnicodeEncodeError):
        found["fingerprint"] = config_lib.fingerprint(stated)
    content = as_text(found)
    if rng.random() < 0.3:
      content = changed_bytes(content, rng)
    path.write_bytes(content)
    read = manifest_lib.Manifest.read(folder)
    for split in read.splits:
      read.sources(split)
      read.shards(split)

  yield door


def worlds(scratch: pathlib.Path) -> Iterator[Door]:
  """A world whose manifest was changed, and sealed again."""
  folder = tiny_world.write_world(scratch / "world")
  path = folder / "manifest.json"
  pristine = json.loads(path.read_text())

  def door(rng: random.Random) -> None:
    found = changed_json(pristine, rng)
    if isinstance(found, dict):
      found.pop("seal", None)
      with contextlib.suppress(UnicodeEncodeError):
        found["seal"] = world_manifest.seal(found)
    content = as_text(found)
    if rng.random() < 0.3:
      content = changed_bytes(content, rng)
    if rng.random() < 0.995:
      world_manifest.check_manifest("manifest.json", content)
      return
    path.write_bytes(content)
    genie_jax.load_world(folder)

  yield door


def model_files(scratch: pathlib.Path) -> Iterator[Door]:
  """A world whose other JSON files were changed, and listed as they are."""
  folder = tiny_world.write_world(scratch / "world")
  copy = scratch / "copy"
  names = [
    path.relative_to(folder)
    for path in sorted(folder.rglob("*.json"))
    if path.name != "manifest.json"
  ]
  manifest = json.loads((folder / "manifest.json").read_text())

  def door(rng: random.Random) -> None:
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    path = rng.choice(names)
    content = as_text(
      changed_json(json.loads((folder / path).read_text()), rng)
    )
    (copy / path).write_bytes(content)
    stated = {k: v for k, v in manifest.items() if k != "seal"}
    stated = json.loads(json.dumps(stated))
    digest = hashlib.sha256(content).hexdigest()
    entry = stated["files"][str(path)]
    if isinstance(entry, dict):
      entry.update(bytes=len(content), sha256=digest)
    else:
      stated["files"][str(path)] = digest
    stated["seal"] = world_manifest.seal(stated)
    (copy / "manifest.json").write_text(json.dumps(stated))
    genie_jax.load_world(copy)

  yield door


def configs(scratch: pathlib.Path) -> Iterator[Door]:
  """Fields of a config that are set on the command line."""
  del scratch
  coinrun = pathlib.Path(__file__).parents[2] / "experiments" / "coinrun"
  path = f"{coinrun / 'joint.py'}:smoke"
  names = list(config_lib.dotted(config_lib.to_dict(config_lib.load(path))))

  def door(rng: random.Random) -> None:
    name = rng.choice(names)
    if rng.random() < 0.2:
      name = changed_bytes(name.encode(), rng).decode("latin-1")
    value = (
      rng.choice(_TEXTS) if rng.random() < 0.5 else repr(rng.choice(_WORDS))
    )
    words = ["train", "--config", path, "--workdir", "none"]
    answer = _answer([*words, f"--config.{name}={value}"])
    if answer:
      raise AssertionError(f"{name}={value!r:.300}: {answer}")

  def load(args) -> int:
    config_lib.load(args.config, args.overrides)
    return 0

  with mock.patch.object(cli._module("train"), "run", load):
    yield door


def command_lines(scratch: pathlib.Path) -> Iterator[Door]:
  """Flags of every command, with commands that would begin to work left out."""
  del scratch
  flags = {name: _flags(name) for name in cli.COMMANDS}

  def door(rng: random.Random) -> None:
    name = rng.choice(list(flags))
    words = [name]
    for _ in range(rng.randrange(1, 6)):
      if rng.random() < 0.8 and flags[name]:
        words.append(rng.choice(flags[name]))
      if rng.random() < 0.8:
        words.append(rng.choice(_TEXTS))
    answer = _answer(words)
    if answer:
      raise AssertionError(f"{words!r:.300}: {answer}")

  with contextlib.ExitStack() as stack:
    for name in cli.COMMANDS:
      module = cli._module(name)
      stack.enter_context(mock.patch.object(module, "run", lambda args: 0))
    yield door


def _flags(name: str) -> list[str]:
  """Returns the flags in a command's help, and its sub-commands."""
  out = io.StringIO()
  with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
    cli.main([name, "--help"])
  words = out.getvalue().replace(",", " ").replace("[", " ").split()
  return (
    sorted({word for word in words if word.startswith("--")})
    + [word for word in words[:80] if word.isalpha() and word.islower()][:8]
  )


def _answer(words: list[str]) -> str | None:
  """Runs a command line; returns what is wrong with its answer."""
  out, err = io.StringIO(), io.StringIO()
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    try:
      code = cli.main(words)
    except SystemExit as ended:  # argparse's --help and --version.
      code = ended.code
  if code in (0, None):
    return None
  lines = err.getvalue().splitlines()
  if code != 2 or len(lines) != 1 or len(lines[0]) > _LONG:
    return f"code {code} and {len(lines)} lines: {err.getvalue()[-300:]!r}"
  return None


class _NoLimits(uploads.Limiter):
  """Takes any number of uploads."""

  def __init__(self):
    super().__init__(0.0)

  def take(self, visitor, now):
    del visitor, now
    return contextlib.nullcontext()


class _Game:
  """A server in this process, and requests to it without a network."""

  def __init__(self):
    self.server = app.Server(fake_world.make_engine())
    self.server._limiter = _NoLimits()
    self.loop = asyncio.new_event_loop()
    self._lifespan = self.server.lifespan(None)
    self.loop.run_until_complete(self._lifespan.__aenter__())

  def close(self) -> None:
    self.loop.run_until_complete(self._lifespan.__aexit__(None, None, None))
    self.loop.close()

  def upload(self, body: bytes) -> tuple[int, bytes]:
    """Returns the status and content of the answer to an upload."""
    headers = [(b"host", b"localhost"), (b"content-type", b"image/png")]
    return self.loop.run_until_complete(self._upload(headers, body))

  async def _upload(self, headers, body) -> tuple[int, bytes]:
    scope = _scope("http", "/pictures", headers)
    scope |= {"method": "POST", "http_version": "1.1"}
    pieces = [{"type": "http.request", "body": body, "more_body": False}]
    answers = []

    async def receive():
      return pieces.pop() if pieces else {"type": "http.disconnect"}

    async def send(message):
      answers.append(message)

    await self.server.app(scope, receive, send)
    content = b"".join(one.get("body", b"") for one in answers)
    return answers[0]["status"], content

  def talk(self, texts: list[str]) -> list[Any]:
    """Sends messages over a new connection; returns the answers."""
    return self.loop.run_until_complete(self._talk(texts))

  async def _talk(self, texts: list[str]) -> list[Any]:
    scope = _scope("websocket", "/play", [(b"host", b"localhost")])
    scope |= {"subprotocols": []}
    waiting = [{"type": "websocket.connect"}]
    waiting += [{"type": "websocket.receive", "text": one} for one in texts]
    answers = []

    async def receive():
      await asyncio.sleep(0)
      if waiting:
        return waiting.pop(0)
      await asyncio.sleep(0.002)
      return {"type": "websocket.disconnect", "code": 1000}

    async def send(message):
      answers.append(message)

    await self.server.app(scope, receive, send)
    return answers


def _scope(kind: str, path: str, headers) -> dict[str, Any]:
  return {
    "type": kind,
    "asgi": {"version": "3.0"},
    "path": path,
    "raw_path": path.encode(),
    "query_string": b"",
    "root_path": "",
    "scheme": "http" if kind == "http" else "ws",
    "headers": headers,
    "client": ("127.0.0.1", 1),
    "server": ("127.0.0.1", 8000),
  }


@contextlib.contextmanager
def _game() -> Iterator[_Game]:
  game = _Game()
  with mock.patch.object(connection, "_MESSAGES_PER_SECOND", 10**9):
    try:
      yield game
    finally:
      game.close()


def pictures(scratch: pathlib.Path) -> Iterator[Door]:
  """Uploads of damaged pictures of all formats, over HTTP."""
  del scratch
  picture = Image.fromarray(
    np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
  )
  samples = []
  for kind in (
    "PNG",
    "JPEG",
    "GIF",
    "WEBP",
    "BMP",
    "TIFF",
    "PPM",
    "ICO",
    "TGA",
  ):
    for mode in ("RGB", "L", "P"):
      content = io.BytesIO()
      with contextlib.suppress(OSError, KeyError):
        picture.convert(mode).save(content, kind)
        samples.append(content.getvalue())

  with _game() as game:

    def door(rng: random.Random) -> None:
      body = changed_bytes(rng.choice(samples), rng)
      if rng.random() < 0.05:
        body = rng.randbytes(rng.randrange(2000))
      status, content = game.upload(body)
      if status == 200:
        Image.open(io.BytesIO(content)).verify()  # The fitted frame.
        return
      text = content.decode()
      if status >= 500 or "Traceback" in text or len(text.splitlines()) != 1:
        raise AssertionError(f"status {status}: {text[:300]}")

    yield door


def messages(scratch: pathlib.Path) -> Iterator[Door]:
  """Changed messages of the play protocol, ten to a connection."""
  del scratch
  good = [
    {"type": "hello", "version": protocol.VERSION, "token": ""},
    {"type": "start", "prompt": 0, "seed": 1, "actions": [0, 1]},
    {"type": "act", "action": 1, "seq": 1},
    {"type": "rewind", "frame": 0},
    {"type": "branch", "frame": 1},
    {"type": "switch", "line": 1},
    {"type": "compare", "frame": 1, "frames": 2},
    {"type": "record", "format": "gif", "last": 1},
    {"type": "ping", "time": 1},
  ]
  with _game() as game:

    def one(rng: random.Random) -> str:
      message = rng.choice(good)
      if rng.random() < 0.8:
        message = changed_json(message, rng)
      content = as_text(message)
      if rng.random() < 0.3:
        content = changed_bytes(content, rng)
      return content.decode("utf-8", "replace")

    def door(rng: random.Random) -> None:
      texts = [one(rng) for _ in range(_MESSAGES)]
      if rng.random() < 0.9:
        texts[:2] = json.dumps(good[0]), json.dumps(good[1])
      for answer in game.talk(texts):
        text = answer.get("text") or ""
        if "Traceback" in text or len(text.splitlines()) > 1:
          raise AssertionError(text[:300])

    yield door


# Of one connection, which count as that many inputs.
_MESSAGES = 10
_DOORS = {
  "pictures": (pictures, 25_000, 1),
  "messages": (messages, 30_000, _MESSAGES),
  "configs": (configs, 15_000, 1),
  "manifests": (manifests, 14_000, 1),
  "worlds": (worlds, 10_000, 1),
  "model-files": (model_files, 1_000, 1),
  "command-lines": (command_lines, 5_000, 1),
}
_open: dict[str, tuple[contextlib.ExitStack, Door]] = {}


def _trial(name: str, scratch: pathlib.Path, number: int) -> trials.Outcome:
  """Sends some hundred inputs to one door, which stays open."""
  make, _, each = _DOORS[name]
  fresh = name not in _open
  if fresh:
    stack = contextlib.ExitStack()
    folder = scratch / f"inputs-{name}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    _open[name] = (
      stack,
      stack.enter_context(contextlib.contextmanager(make)(folder)),
    )
  _, door = _open[name]
  rng = random.Random(f"{name} {number}")
  failures, slowest, before = [], 0.0, _memory()
  for index in range(_TRIAL // each):
    began = time.monotonic()
    try:
      door(rng)
    except errors.UserError as error:
      if len(str(error).splitlines()) != 1 or len(str(error)) > _LONG:
        failures.append(f"input {index}: not one line: {error!s:.300}")
    except Exception as error:
      failures.append(f"input {index}: {type(error).__name__}: {error!s:.400}")
    slowest = max(slowest, time.monotonic() - began)
  if slowest > _SLOW:
    failures.append(f"one input took {slowest:.0f} seconds")
  grown = _memory() - before
  if grown > _GROWS and not fresh:
    failures.append(f"{grown >> 20} MiB stayed in memory")
  measured = {"seconds for one": round(slowest, 2)}
  if not fresh:
    measured["MiB left by 500"] = max(0, grown >> 20)
  return trials.Outcome(_TRIAL, tuple(failures), measured)


def close() -> None:
  """Closes all doors: what they have replaced in this process is put back."""
  while _open:
    stack, _ = _open.popitem()[1]
    stack.close()


def _memory() -> int:
  """Returns the resident memory of this process, in bytes."""
  if sys.platform == "linux":
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def campaigns(
  base: pathlib.Path, scratch: pathlib.Path
) -> dict[str, trials.Campaign]:
  """Returns the campaigns: 100,000 inputs over all doors."""
  del base
  return {
    f"inputs-{name}": trials.Campaign(
      f"changed {name.replace('-', ' ')}",
      "accepted, or refused in one line",
      faults,
      functools.partial(_trial, name, scratch),
    )
    for name, (_, faults, _) in _DOORS.items()
  }
