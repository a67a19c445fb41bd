"""Runs a server in a thread, and clients of its protocol."""

import contextlib
import json
import pathlib
import threading
import urllib.error
import urllib.request

import uvicorn
from websockets.sync import client as websocket_client

from genie_jax.serve import app, protocol
from genie_jax.serve import server as server_lib


@contextlib.contextmanager
def serving(engine, **options):
  """Runs a server on a free port; yields it and its address."""
  server = app.Server(engine, **options)
  with running(server.app, options.get("max_sessions", 16)) as address:
    yield server, address


@contextlib.contextmanager
def running(served, max_sessions=16):
  """Runs an app on a free port; yields its address."""
  taken = server_lib.bind("127.0.0.1", 0)
  port = taken.getsockname()[1]
  runner = uvicorn.Server(server_lib.configure(served, max_sessions))
  thread = threading.Thread(
    target=runner.run, kwargs={"sockets": [taken]}, daemon=True
  )
  thread.start()
  try:
    yield f"127.0.0.1:{port}"
  finally:
    runner.should_exit = True
    thread.join(20)
    taken.close()
    assert not thread.is_alive()


class Player:
  """A client that records all messages that it receives."""

  def __init__(self, host, token="", hello=True, path="/", **options):
    self._stack = contextlib.ExitStack()
    self.socket = self._stack.enter_context(
      websocket_client.connect(
        f"ws://{host}{path}play", max_size=64 << 20, proxy=None, **options
      )
    )
    self.texts, self.frames, self.others = [], [], []
    self.welcome = None
    if hello:
      self.send(type="hello", version=protocol.VERSION, token=token)
      self.welcome = self.until("welcome")

  def send(self, **message):
    self.socket.send(json.dumps(message))

  def take(self, timeout=20):
    """Receives one message: a dict, or (header, content)."""
    message = self.socket.recv(timeout)
    if isinstance(message, str):
      found = json.loads(message)
      self.texts.append(found)
      return found
    header, content = protocol.unpack(message)
    (self.frames if header.kind == protocol.FRAME else self.others).append(
      (header, content)
    )
    return header, content

  def until(self, kind):
    """Receives messages up to a text of this type, which it returns."""
    while True:
      found = self.take()
      if isinstance(found, dict) and found["type"] == kind:
        return found

  def until_frame(self, number, run=None):
    """Receives messages up to this frame; returns its header and PNG."""
    while True:
      found = self.take()
      if isinstance(found, dict) or found[0].kind != protocol.FRAME:
        continue
      if found[0].frame == number and run in (None, found[0].run):
        return found

  def start(self, prompt=0, seed=0, **fields):
    """Starts a game and waits for frame 0."""
    self.send(type="start", prompt=prompt, seed=seed, **fields)
    run = self.until("line")["run"]
    self.frames.clear()
    return self.until_frame(0, run)

  def play(self, actions, first_seq=1):
    """Presses buttons and waits for the last frame."""
    for seq, action in enumerate(actions, first_seq):
      self.send(type="act", action=action, seq=seq)
    while not self.frames or self.frames[-1][0].seq < (
      first_seq + len(actions) - 1
    ):
      self.take()

  def __enter__(self):
    return self

  def __exit__(self, *error):
    self._stack.close()


def post(host, content, **headers):
  """Posts a picture; returns status, headers and body."""
  request = urllib.request.Request(
    f"http://{host}/pictures", content, headers, method="POST"
  )
  try:
    with urllib.request.urlopen(request, timeout=30) as answer:
      return answer.status, answer.headers, answer.read()
  except urllib.error.HTTPError as error:
    return error.code, error.headers, error.read()


def page_folder() -> pathlib.Path:
  """Returns the folder of the page."""
  return pathlib.Path(app.__file__).parent / "page"
