"""Jobs for `contained` that do what decoders of damaged films do."""

import ctypes
import os
import signal
import time


def talk(job, send):
  """Sends messages with blobs of the asked sizes."""
  for number, size in enumerate(job["sizes"]):
    send({"k": number}, b"x" * size)


def crash(job, send):
  """Reads memory that is not there."""
  ctypes.string_at(0)


def crash_in_a_message(job, send):
  """Ends in the middle of a message."""
  pipe = send.args[0]
  os.write(pipe, b"\xff\0\0\0")
  os.kill(os.getpid(), signal.SIGKILL)


def leave(job, send):
  """Ends the process without a word."""
  os._exit(3)


def hang(job, send):
  """Never sends anything."""
  time.sleep(100)


def say_and_hang(job, send):
  """Says who it is and never sends anything more."""
  send({"pid": os.getpid()})
  time.sleep(100)


def chatter(job, send):
  """Never ends, but sends messages."""
  while True:
    send({"pid": os.getpid()})
    time.sleep(0.01)


def grow(job, send):
  """Takes ever more memory."""
  taken = []
  while True:
    taken.append(bytearray(10_000_000))


def fail(job, send):
  """Raises something that nobody expects."""
  raise KeyError("what")


def cut_or_crash(job, send):
  """Cuts a film as usual, but crashes, hangs or grows if its name says so."""
  from data_pipelines.videos import cut

  name = os.path.basename(job["path"])
  for bad in (crash, hang, grow):
    if name.startswith(bad.__name__):
      bad(job, send)
  cut.job(job, send)
