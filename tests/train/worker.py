"""A training run as a process of its own, to be killed.

Usage: python worker.py JSON, with workdir, changes, and kill_after: the step
after which the process kills itself while a checkpoint is being written.
"""

import json
import os
import signal
import sys

import jax

from genie_jax.train import checkpoint, loop
from tests.train import toy


def main(options: dict) -> None:
  if "processes" in options:
    jax.distributed.initialize(
        f"127.0.0.1:{options['port']}", options["processes"],
        options["index"], cluster_detection_method="deactivate")
  fields = toy.config(**options["changes"])
  if options.get("kill_after"):
    save = checkpoint.Checkpoints.save

    def save_and_die(self, state, data, note):
      step = int(state.step)
      save(self, state, data, note)
      if step == options["kill_after"]:
        os.kill(os.getpid(), signal.SIGKILL)

    checkpoint.Checkpoints.save = save_and_die
  if options.get("term_after"):
    draw = toy.Batches.__next__

    def draw_and_ask(self):
      if self._seed == 0 and self._next == options["term_after"] - 1:
        os.kill(os.getpid(), signal.SIGTERM)
      return draw(self)

    toy.Batches.__next__ = draw_and_ask
  result = loop.train(
      toy.make_stage(), fields, options["workdir"], *toy.makers(fields))
  print("RESULT", json.dumps([result.step, result.stopped_by]))


if __name__ == "__main__":
  main(json.loads(sys.argv[1]))
