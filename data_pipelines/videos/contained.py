"""Runs jobs on films in child processes that may crash, hang or grow.

    with contained.Nursery() as nursery:
      for header, blob in nursery.run("some.module:function", job, ...):
        ...

A decoder reads what strangers wrote: it may crash its process, never return or
ask for all memory. The nursery is a process that has imported the libraries
already and forks one child for each job, so that a child starts within
milliseconds and takes nothing with it when it ends. `nursery` is its program.
"""

import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from typing import Any, Self

Message = tuple[dict[str, Any], bytes]

# Of the header and of the blob that follows it.
_LENGTHS = struct.Struct("<IQ")
_PIPE_BYTES = 1 << 20
_END_SECONDS = 10.0


class Failure(Exception):
  """A job failed; the message says why, in words for the list of bad films."""


def send(descriptor: int, header: dict[str, Any], blob: bytes = b"") -> None:
  """Writes one message to a pipe.

  Args:
    descriptor: The pipe.
    header: JSON values.
    blob: Any bytes.
  """
  text = json.dumps(header).encode()
  message = b"".join([_LENGTHS.pack(len(text), len(blob)), text, blob])
  view = memoryview(message)
  while view:
    view = view[os.write(descriptor, view) :]


class Nursery:
  """The parent's end; used as a context manager, by one thread."""

  def __enter__(self) -> Self:
    self._start()
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: types.TracebackType | None,
  ) -> None:
    self._stop()

  def run(
    self,
    function: str,
    job: dict[str, Any],
    *,
    memory_mb: int,
    seconds: float,
    stalled_seconds: float,
  ) -> Iterator[Message]:
    """Calls function(job, send) in a child and yields what it sends.

    Args:
      function: "module:name".
      job: JSON values.
      memory_mb: MiB that the child may use beyond what it starts with.
      seconds: Wall time that it may take.
      stalled_seconds: Wall time from one message to the next.

    Raises:
      Failure: The child raised, crashed, or went over a limit. What it sent
        before was yielded.
    """
    request = {"function": function, "job": job, "memory_mb": memory_mb}
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
      try:
        socket.send_fds(
          self._control, [json.dumps(request).encode() + b"\n"], [writer]
        )
      finally:
        os.close(writer)
      child = self._line()["pid"]
      yield from self._messages(
        reader, child, time.monotonic() + seconds, seconds, stalled_seconds
      )
    finally:
      os.close(reader)

  def _messages(
    self,
    pipe: int,
    child: int,
    end: float,
    seconds: float,
    stalled: float,
  ) -> Iterator[Message]:
    error, reaped = None, False
    try:
      while True:
        try:
          found = _message(pipe, end, seconds, stalled)
        except Failure:
          os.kill(child, signal.SIGKILL)
          self._line()
          reaped = True
          raise
        if found is None:
          break
        if "uncaught" in found[0]:
          error = found[0]["uncaught"]
          continue
        yield found
      status = self._line()["status"]
      reaped = True
    finally:
      if not reaped:  # The caller stopped reading.
        os.kill(child, signal.SIGKILL)
        self._line()
    if error is not None:
      raise Failure(error)
    if os.WIFSIGNALED(status):
      name = signal.Signals(os.WTERMSIG(status)).name
      raise Failure(f"the decoder crashed its process ({name})")
    if status:
      code = os.waitstatus_to_exitcode(status)
      raise Failure(f"the decoder ended its process (code {code})")

  def _line(self) -> dict[str, Any]:
    """Returns the nursery's next answer on the control socket."""
    line = self._answers.readline()
    if not line:
      raise ChildProcessError(
        "The process that decodes films was killed (out of memory?); run the "
        "same command again: it keeps finished files."
      )
    return json.loads(line)

  def _start(self) -> None:
    self._control, theirs = socket.socketpair()
    with theirs:
      self._process = subprocess.Popen(
        [
          sys.executable,
          "-m",
          "data_pipelines.videos.nursery",
          str(theirs.fileno()),
        ],
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env={
          **os.environ,
          # A child is one of many: libraries must not start threads, which
          # would not survive the fork either.
          "OPENBLAS_NUM_THREADS": "1",
          "OMP_NUM_THREADS": "1",
          # The same modules as this process finds, also in tests.
          "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        },
      )
    self._answers = self._control.makefile("rb")

  def _stop(self) -> None:
    self._answers.close()
    self._control.close()  # The nursery ends when it sees this.
    try:
      self._process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
      self._process.kill()
      self._process.wait()


def _message(
  pipe: int, end: float, seconds: float, stalled: float
) -> Message | None:
  """Returns the next message; None when the child closed the pipe."""
  head = _read(pipe, _LENGTHS.size, end, seconds, stalled)
  if head is None:
    return None
  text_length, blob_length = _LENGTHS.unpack(head)
  body = _read(pipe, text_length + blob_length, end, seconds, stalled)
  if body is None:
    return None  # It died while it was writing.
  return json.loads(body[:text_length]), body[text_length:]


def _read(
  pipe: int, count: int, end: float, seconds: float, stalled: float
) -> bytes | None:
  pieces = []
  poll = select.poll()
  poll.register(pipe, select.POLLIN)
  while count:
    left = min(end - time.monotonic(), stalled)
    if left <= 0 or not poll.poll(left * 1000):
      if time.monotonic() >= end:
        raise Failure(f"took longer than {seconds:.0f} s")
      raise Failure(f"no frame was decoded for {stalled:.0f} s")
    piece = os.read(pipe, min(count, _PIPE_BYTES))
    if not piece:
      return None
    pieces.append(piece)
    count -= len(piece)
  return b"".join(pieces)
