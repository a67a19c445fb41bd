"""A training run in a separate process that a test can kill.

Usage: python worker.py JSON, with workdir, changes, and kill_after: the step
after which the process kills itself while it writes a checkpoint. term_after
and hang_after: the step after which it sends itself SIGTERM, or waits for ever
for the next batch.
"""

import json
import os
import signal
import sys
import time

import jax

from genie_jax.checkpoints import manager
from genie_jax.train import loop
from tests.fixtures import toy_stage


def main(options: dict) -> None:
  if "processes" in options:
    jax.distributed.initialize(
      f"127.0.0.1:{options['port']}",
      options["processes"],
      options["index"],
      cluster_detection_method="deactivate",
    )
  fields = toy_stage.config(**options["changes"])
  if options.get("kill_after"):
    save = manager.Checkpoints.save

    def save_and_die(self, state, data, note):
      step = int(state["step"])
      save(self, state, data, note)
      if step == options["kill_after"]:
        os.kill(os.getpid(), signal.SIGKILL)

    manager.Checkpoints.save = save_and_die
  if options.get("term_after"):
    draw = toy_stage.Batches.__next__

    def draw_and_terminate(self):
      if self._seed == 0 and self._next == options["term_after"] - 1:
        os.kill(os.getpid(), signal.SIGTERM)
      return draw(self)

    toy_stage.Batches.__next__ = draw_and_terminate
  if options.get("hang_after"):
    draw = toy_stage.Batches.__next__

    def hang(self):
      if self._seed == 0 and self._next == options["hang_after"]:
        time.sleep(1000)
      return draw(self)

    toy_stage.Batches.__next__ = hang
  result = loop.train(
    toy_stage.make_stage(),
    fields,
    options["workdir"],
    *toy_stage.makers(fields),
  )
  print("RESULT", json.dumps([result.step, result.stopped_by]))


if __name__ == "__main__":
  main(json.loads(sys.argv[1]))
