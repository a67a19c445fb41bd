"""Runs `genie play` as in a terminal."""

import os
import pathlib
import signal
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]


class Command:
  """`genie play` in its own process."""

  def __init__(self, world, *flags):
    self.process = subprocess.Popen(
      [
        sys.executable,
        "-m",
        "genie_jax.cli.play",
        "--world",
        str(world),
        "--port",
        "0",
        "--no-open",
        *flags,
      ],
      cwd=ROOT,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    self.lines = []
    for line in self.process.stdout:
      self.lines.append(line)
      if line.startswith("Play at "):
        break
    else:
      raise AssertionError(self.process.stderr.read())
    self.url = self.lines[-1].split()[2]
    self.host = self.url.split("/")[2]

  def stop(self):
    """Sends Ctrl-C; returns the exit code and all output."""
    self.process.send_signal(signal.SIGINT)
    out, err = self.process.communicate(timeout=60)
    return self.process.returncode, "".join(self.lines) + out, err

  def __enter__(self):
    return self

  def __exit__(self, *error):
    self.process.kill()
    self.process.communicate()
