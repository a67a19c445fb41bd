"""One run on several processes, by the command line, over gloo."""

import json
import os
import pathlib
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genie_jax.checkpoints import reader
from genie_jax.cli import main
from genie_jax.core import buckets
from tests.fixtures import stage_data
from tests.multihost import digests, fleet

CONFIG = f"{fleet.ROOT / 'experiments' / 'coinrun' / 'dynamics.py'}:smoke"
# Processes add up in another order than devices of one.
RTOL = 1e-5


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
  return stage_data.write_tokens(
    tmp_path_factory.mktemp("data") / "tokens",
    (64, 64, 3),
    grid=(4, 4),
    num_codes=64,
  )


def arguments(tokens, workdir, **changes):
  """Returns arguments of a run of 4 steps; "__" in a name is a dot."""
  # AdamW compiles faster than the Muon of the smoke mode.
  fields = {
    "data__path": tokens,
    "data__batch_size": 8,
    "start": "random",
    "eval_batches": 0,
    "optimizer__name": "adamw",
  } | changes
  return (
    "--config",
    CONFIG,
    "--workdir",
    str(workdir),
    *(
      f"--config.{name.replace('__', '.')}={value}"
      for name, value in fields.items()
    ),
  )


def alone(*args):
  """Trains on this process's eight devices."""
  with digests.kept():
    assert main.main(["train", *args]) == 0


def together(folder, count, *args, devices, module="tests.multihost.digests"):
  """Trains on several processes, which keep digests too."""
  # JAX keeps compiled steps for process 0 alone. Found there, it would wait
  # while the others compile, and gives up after 30 seconds.
  return fleet.train(
    folder,
    count,
    *args,
    "--compilation-cache",
    "off",
    devices=devices,
    module=module,
  )


@pytest.fixture(scope="module")
def straight(tokens, tmp_path_factory):
  """A run on one process with 8 devices."""
  workdir = tmp_path_factory.mktemp("straight")
  alone(*arguments(tokens, workdir))
  return workdir


def lines(workdir):
  text = (pathlib.Path(workdir) / "metrics.jsonl").read_text()
  return [json.loads(line) for line in text.splitlines()]


def position(workdir, step):
  """Returns where the data is after a step."""
  return reader.read_note(
    buckets.run_folder(workdir) / "checkpoints" / str(step)
  )["iterator"]


def assert_same_run(workdir, straight, steps=(1, 2, 3, 4)):
  mine, other = lines(workdir), lines(straight)
  other = [line for line in other if line["step"] in steps]
  assert [line["step"] for line in mine] == [line["step"] for line in other]
  for a, b in zip(mine, other, strict=True):
    for name in b:
      if name == "loss" or name.startswith("losses/"):
        np.testing.assert_allclose(a[name], b[name], rtol=RTOL, err_msg=name)
    if "loss" in b:
      # The very same global batch and mask, token by token.
      for name in digests.METRICS:
        assert a[name] == b[name], name
  last = max(steps)
  assert position(workdir, last) == position(straight, last)


def test_a_digest_tells_every_change_and_no_layout():
  x = jax.random.randint(jax.random.key(0), (8, 4, 4, 4), 0, 64)
  of = lambda x: tuple(
    float(digests.digest(x, which).total) for which in digests.SUMS
  )
  whole = of(x)
  rows = jax.make_mesh((8,), ("rows",), (jax.sharding.AxisType.Auto,))
  split = jax.device_put(x, jax.NamedSharding(rows, jax.P("rows")))
  assert (
    tuple(
      float(jax.jit(digests.digest, static_argnums=1)(split, which).total)
      for which in digests.SUMS
    )
    == whole
  )
  others = [
    x.at[3, 2, 1, 0].add(1),
    x[::-1],
    x.swapaxes(2, 3),
    x.at[0, 0, 0, :2].set(x[0, 0, 0, 1::-1]),
  ]
  assert all((other != x).any() for other in others)
  assert whole not in [of(other) for other in others]
  hidden = jnp.zeros((8, 4), bool)
  assert of(hidden) != of(hidden.at[7, 3].set(True))


def test_every_step_has_a_batch_and_a_mask_of_its_own(straight):
  steps = [line for line in lines(straight) if "loss" in line]
  for name in digests.NAMES:
    sums = [
      tuple(line[f"digest/{name}_{which}"] for which in digests.SUMS)
      for line in steps
    ]
    assert len(set(sums)) == len(steps) == 4, name


def test_two_processes_train_as_one_and_one_goes_on(tokens, straight, tmp_path):
  args = arguments(tokens, tmp_path / "run", steps=2)
  ended = together(tmp_path / "logs", 2, *args, devices=4)
  assert_same_run(tmp_path / "run", straight, steps=(1, 2))
  # Only process 0 tells of the run.
  assert "trained to step 2" in ended.text(0) and "loss" in ended.text(0)
  for word in ("trained to", "loss", "step 1/2", "dynamics:"):
    assert word not in ended.text(1), ended.text(1)
  # One process goes on with what two wrote.
  alone(*arguments(tokens, tmp_path / "run"))
  assert_same_run(tmp_path / "run", straight)


def test_hosts_that_are_blocks_of_a_torus_train_as_one(
  tokens, straight, tmp_path
):
  args = arguments(tokens, tmp_path / "run", steps=2)
  ended = together(
    tmp_path / "logs", 2, *args, devices=4, module="tests.multihost.torus"
  )
  # Rows 2 and 3 of the mesh are not its own.
  assert "parts (0, 1, 4, 5) of 8" in ended.text(0), ended.text(0)
  assert_same_run(tmp_path / "run", straight, steps=(1, 2))


def test_different_configs_end_in_one_line_on_each(tokens, tmp_path):
  args = arguments(tokens, tmp_path / "run")
  with fleet.running(
    tmp_path / "logs",
    2,
    *args,
    extra=[(), ("--config.optimizer.peak_lr=1e-5",)],
  ) as both:
    assert both.codes() == [2, 2], both.text(0) + both.text(1)
  said = [
    [
      line
      for line in both.text(n).splitlines()
      if line.startswith("genie train:")
    ]
    for n in (0, 1)
  ]
  assert said[0] == said[1] and len(said[0]) == 1
  assert "config's fingerprint is" in said[0][0]
  assert "on process 0, but" in said[0][0] and "on process 1" in said[0][0]
  assert "Traceback" not in both.text(0) + both.text(1)
  assert not (tmp_path / "run").exists()


def test_a_missing_host_ends_in_one_line_within_the_time(tokens, tmp_path):
  args = arguments(tokens, tmp_path / "run")
  with fleet.running(
    tmp_path / "logs",
    2,
    *args,
    "--initialization-timeout",
    "2",
    extra=[(), ("--config.nothing=1",)],
  ) as both:
    assert both.codes() == [2, 2]
  assert "1 of 2 processes came within 2 s; process 1 did not" in both.text(0)
  assert "has no field config.nothing" in both.text(1)
  for n in (0, 1):
    assert "Traceback" not in both.text(n)
  assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
  "mesh",
  [{}, {"mesh__data": 2, "mesh__fsdp": 1, "mesh__tensor": 2, "mesh__frame": 2}],
)
def test_four_processes_train_as_one(tokens, straight, tmp_path, mesh):
  args = arguments(tokens, tmp_path / "run", **mesh)
  together(tmp_path / "logs", 4, *args, devices=2)
  assert_same_run(tmp_path / "run", straight)


@pytest.mark.slow
def test_four_processes_judge_held_out_clips_as_one(tokens, tmp_path):
  found = {}
  for name in ("alone", "together"):
    args = arguments(
      tokens, tmp_path / name, steps=2, eval_batches=1, eval_every=1
    )
    if name == "alone":
      alone(*args)
    else:
      logs = together(tmp_path / "logs", 4, *args, devices=2)
      # The folder has no tokenizer, so there is nothing to show.
      assert "no more pictures" in logs.text(0)
    found[name] = [
      {key: value for key, value in line.items() if key.startswith("eval/")}
      for line in lines(tmp_path / name)
    ]
  scores = [line for line in found["alone"] if line]
  assert len(scores) == 2 and "eval/cross_entropy" in scores[0]
  for one, other in zip(found["together"], found["alone"], strict=True):
    assert one.keys() == other.keys()
    for key in one:
      np.testing.assert_allclose(one[key], other[key], rtol=RTOL, err_msg=key)


@pytest.mark.slow
def test_a_run_of_four_processes_goes_on_alone_on_another_mesh(
  tokens, straight, tmp_path
):
  args = arguments(tokens, tmp_path / "run", steps=2)
  together(tmp_path / "logs", 4, *args, devices=2)
  alone(
    *arguments(
      tokens, tmp_path / "run", mesh__fsdp=2, mesh__tensor=2, mesh__frame=2
    )
  )
  assert_same_run(tmp_path / "run", straight)


@pytest.mark.slow
def test_data_that_one_host_lacks_ends_all_with_code_2(tokens, tmp_path):
  args = arguments(tokens.name, tmp_path / "run")
  with fleet.running(
    tmp_path / "logs", 2, *args, devices=1, folders=[tokens.parent, tmp_path]
  ) as both:
    assert both.codes() == [2, 2], both.text(0) + both.text(1)
  assert "Another process of this run could not start" in both.text(0)
  assert "tokens/manifest.json does not exist" in both.text(1)
  for n in (0, 1):
    assert "Traceback" not in both.text(n)


@pytest.mark.slow
def test_a_workdir_that_hosts_do_not_share_ends_all_with_code_2(
  tokens, tmp_path
):
  (tmp_path / "a").mkdir()
  (tmp_path / "b").mkdir()
  run = pathlib.Path("run")
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(tmp_path / "a")
    alone(*arguments(tokens, run, steps=2))
  with fleet.running(
    tmp_path / "logs",
    2,
    *arguments(tokens, run),
    folders=[tmp_path / "a", tmp_path / "b"],
  ) as both:
    assert both.codes() == [2, 2], both.text(0) + both.text(1)
  for n in (0, 1):
    assert "is 2 on process 0, but -1 on process 1" in both.text(n)
    assert "storage that all hosts share" in both.text(n)


@pytest.mark.slow
def test_sigterm_to_one_saves_on_all_and_a_restart_goes_on(
  tokens, straight, tmp_path
):
  args = arguments(
    tokens,
    tmp_path / "run",
    steps=100_000,
    checkpoint_every=100_000,
    eval_every=100_000,
  )
  with fleet.running(tmp_path / "logs", 2, *args, devices=4) as both:
    both.wait_for(0, "step 3/")
    both.processes[1].send_signal(signal.SIGTERM)
    assert both.codes() == [143, 143], both.text(0)[-3000:]
  (step,) = reader.valid_steps(tmp_path / "run")
  assert step >= 3 and f"stopped by SIGTERM at step {step}" in both.text(0)
  again = arguments(tokens, tmp_path / "run", steps=step + 1)
  ended = fleet.train(tmp_path / "again", 2, *again, devices=4)
  assert f"Going on from step {step}" in ended.text(0)
  assert [
    line["step"] for line in lines(tmp_path / "run") if "loss" in line
  ] == list(range(1, step + 2))


@pytest.mark.slow
@pytest.mark.parametrize(
  "number, sent",
  [(0, signal.SIGKILL), (1, signal.SIGKILL), (1, signal.SIGSTOP)],
)
def test_a_lost_host_ends_the_others_and_a_restart_goes_on(
  tokens, tmp_path, number, sent
):
  args = arguments(
    tokens,
    tmp_path / "run",
    steps=100_000,
    checkpoint_every=2,
    eval_every=100_000,
  )
  with fleet.running(
    tmp_path / "logs", 2, *args, "--heartbeat-timeout", "10", devices=4
  ) as both:
    both.wait_for(0, "step 7/")
    begin = time.monotonic()
    os.kill(both.processes[number].pid, sent)
    codes = both.codes(timeout=120, without=(number,))
    took = time.monotonic() - begin
  # Twice the heartbeat's silence, on a machine that does other things too.
  assert codes[1 - number] not in (0, None), both.text(1 - number)[-3000:]
  assert took < 30
  saved = reader.valid_steps(tmp_path / "run")
  assert saved and saved[-1] >= 4
  again = arguments(tokens, tmp_path / "run", steps=saved[-1] + 2)
  ended = fleet.train(tmp_path / "again", 2, *again, devices=4)
  assert f"Going on from step {saved[-1]}" in ended.text(0)
