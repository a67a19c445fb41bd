"""Tests of `genie train` with several processes on CPUs, over gloo."""

import json
import os
import pathlib
import signal
import socket
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genie_jax.checkpoints import reader
from genie_jax.cli import main
from genie_jax.core import buckets
from tests.multihost import digests, fleet, slow_reader
from tests.plan import tpu_compiler

CONFIG = f"{fleet.ROOT / 'experiments' / 'coinrun' / 'dynamics.py'}:smoke"
# Several processes add up in another order than the devices of one process.
RTOL = 1e-5


def arguments(tokens, workdir, **changes):
  """Returns the arguments of a run of 4 steps.

  Args:
    tokens: Folder of the token records.
    workdir: Folder of the run.
    **changes: Fields of the config, with "__" in place of dots.
  """
  # AdamW compiles faster than Muon, the optimizer of the smoke mode.
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


def train_alone(*args):
  """Trains in this process, which has eight devices."""
  with digests.recorded():
    assert main.main(["train", *args]) == 0


def train_together(
  folder, count, *args, devices, module="tests.multihost.digests"
):
  """Trains with several processes, and records digests."""
  # JAX caches compiled steps for process 0 only. With a cached step, process 0
  # would wait for the others to compile, and fail after 30 seconds.
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
def reference(tokens, tmp_path_factory):
  """A run of one process with 8 devices."""
  workdir = tmp_path_factory.mktemp("reference")
  train_alone(*arguments(tokens, workdir))
  return workdir


def read_metrics(workdir):
  text = (pathlib.Path(workdir) / "metrics.jsonl").read_text()
  return [json.loads(line) for line in text.splitlines()]


def position(workdir, step):
  """Returns the position in the data after a step."""
  return reader.read_note(
    buckets.run_folder(workdir) / "checkpoints" / str(step)
  )["iterator"]


def assert_same_run(workdir, reference, steps=(1, 2, 3, 4)):
  found, expected = read_metrics(workdir), read_metrics(reference)
  expected = [line for line in expected if line["step"] in steps]
  assert [line["step"] for line in found] == [line["step"] for line in expected]
  for a, b in zip(found, expected, strict=True):
    for name in b:
      if name == "loss" or name.startswith("losses/"):
        np.testing.assert_allclose(a[name], b[name], rtol=RTOL, err_msg=name)
    if "loss" in b:
      # The global batch and the mask are the same, token by token.
      for name in digests.METRICS:
        assert a[name] == b[name], name
  last = max(steps)
  assert position(workdir, last) == position(reference, last)


def test_a_digest_depends_on_values_and_not_on_the_layout():
  x = jax.random.randint(jax.random.key(0), (8, 4, 4, 4), 0, 64)
  of = lambda x: tuple(
    float(digests.digest(x, which).total) for which in digests.SUMS
  )
  original = of(x)
  rows = jax.make_mesh((8,), ("rows",), (jax.sharding.AxisType.Auto,))
  split = jax.device_put(x, jax.NamedSharding(rows, jax.P("rows")))
  assert (
    tuple(
      float(jax.jit(digests.digest, static_argnums=1)(split, which).total)
      for which in digests.SUMS
    )
    == original
  )
  others = [
    x.at[3, 2, 1, 0].add(1),
    x[::-1],
    x.swapaxes(2, 3),
    x.at[0, 0, 0, :2].set(x[0, 0, 0, 1::-1]),
  ]
  assert all((other != x).any() for other in others)
  assert original not in [of(other) for other in others]
  hidden = jnp.zeros((8, 4), bool)
  assert of(hidden) != of(hidden.at[7, 3].set(True))


def test_every_step_has_a_different_batch_and_mask(reference):
  steps = [line for line in read_metrics(reference) if "loss" in line]
  for name in digests.NAMES:
    sums = [
      tuple(line[f"digest/{name}_{which}"] for which in digests.SUMS)
      for line in steps
    ]
    assert len(set(sums)) == len(steps) == 4, name


@pytest.mark.slow
def test_two_processes_train_as_one_and_one_resumes(
  tokens, reference, tmp_path
):
  args = arguments(tokens, tmp_path / "run", steps=2)
  ended = train_together(tmp_path / "logs", 2, *args, devices=4)
  assert_same_run(tmp_path / "run", reference, steps=(1, 2))
  for line in read_metrics(tmp_path / "run"):
    if "loss" in line:
      assert line["slowest_host"] in (0, 1)
      assert line["slowest_host_seconds"] >= line["host_seconds"] >= 0
  # Only process 0 reports on the run.
  assert "trained to step 2" in ended.text(0) and "loss" in ended.text(0)
  for word in ("trained to", "loss", "step 1/2", "dynamics:"):
    assert word not in ended.text(1), ended.text(1)
  # One process resumes the run of two.
  train_alone(*arguments(tokens, tmp_path / "run"))
  assert_same_run(tmp_path / "run", reference)


@pytest.mark.slow
@tpu_compiler.required
def test_hosts_whose_devices_are_not_neighbours_train_as_one(
  tokens, reference, tmp_path
):
  args = arguments(tokens, tmp_path / "run", steps=2)
  ended = train_together(
    tmp_path / "logs", 2, *args, devices=4, module="tests.multihost.torus"
  )
  assert "parts (0, 2, 4, 6) of 8" in ended.text(0), ended.text(0)
  assert_same_run(tmp_path / "run", reference, steps=(1, 2))


def test_different_configs_are_reported_by_each_process(tokens, tmp_path):
  args = arguments(tokens, tmp_path / "run")
  with fleet.running(
    tmp_path / "logs",
    2,
    *args,
    extra=[(), ("--config.optimizer.peak_lr=1e-5",)],
  ) as both:
    assert both.codes() == [2, 2], both.text(0) + both.text(1)
  messages = [
    [
      line
      for line in both.text(n).splitlines()
      if line.startswith("genie train:")
    ]
    for n in (0, 1)
  ]
  assert messages[0] == messages[1] and len(messages[0]) == 1
  (message,) = messages[0]
  assert "config's fingerprint is" in message
  assert "on process 0, but" in message and "on process 1" in message
  assert "Traceback" not in both.text(0) + both.text(1)
  assert not (tmp_path / "run").exists()


def test_sigterm_ends_a_host_that_waits_for_the_others(tokens, tmp_path):
  args = arguments(tokens, tmp_path / "run")
  number = ("--num-processes", "2", "--process-id", "0")
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  waiting = fleet.Fleet(
    tmp_path / "logs",
    [[*args, *number, "--coordinator", f"127.0.0.1:{port}"]],
    devices=4,
  )
  try:
    waiting.wait_for(0, "Process 0 of 2")
    time.sleep(1)
    waiting.processes[0].send_signal(signal.SIGTERM)
    # A launcher kills what has not ended after 30 seconds.
    assert waiting.codes(timeout=20) == [-signal.SIGTERM]
  finally:
    waiting.kill()
  assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_slow_host_is_named(tokens, tmp_path):
  args = arguments(tokens, tmp_path / "run", steps=6, data__num_threads=0)
  both = fleet.train(
    tmp_path / "logs",
    2,
    *args,
    devices=4,
    module="tests.multihost.slow_reader",
  )
  assert "slowest host 1 (0.3" in both.text(0)
  lines = [line for line in read_metrics(tmp_path / "run") if "loss" in line]
  slow = [line["slowest_host_seconds"] for line in lines[1:]]
  assert min(slow) >= slow_reader.SECONDS
  assert all(line["slowest_host"] == 1 for line in lines[1:])


def test_a_missing_host_is_reported_after_the_timeout(tokens, tmp_path):
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
  assert (
    "1 of 2 processes connected within 2 s; process 1 did not" in both.text(0)
  )
  assert "has no field config.nothing" in both.text(1)
  for n in (0, 1):
    assert "Traceback" not in both.text(n)
  assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
  "mesh",
  [{}, {"mesh__data": 2, "mesh__fsdp": 1, "mesh__tensor": 2, "mesh__frame": 2}],
)
def test_four_processes_train_as_one(tokens, reference, tmp_path, mesh):
  args = arguments(tokens, tmp_path / "run", **mesh)
  train_together(tmp_path / "logs", 4, *args, devices=2)
  assert_same_run(tmp_path / "run", reference)


@pytest.mark.slow
def test_four_processes_evaluate_as_one(tokens, tmp_path):
  found = {}
  for name in ("alone", "together"):
    args = arguments(
      tokens, tmp_path / name, steps=2, eval_batches=1, eval_every=1
    )
    if name == "alone":
      train_alone(*args)
    else:
      logs = train_together(tmp_path / "logs", 4, *args, devices=2)
      # Without a tokenizer in the folder there are no previews.
      assert "no more previews" in logs.text(0)
    found[name] = [
      {key: value for key, value in line.items() if key.startswith("eval/")}
      for line in read_metrics(tmp_path / name)
    ]
  scores = [line for line in found["alone"] if line]
  assert len(scores) == 2 and "eval/cross_entropy" in scores[0]
  for one, other in zip(found["together"], found["alone"], strict=True):
    assert one.keys() == other.keys()
    for key in one:
      np.testing.assert_allclose(one[key], other[key], rtol=RTOL, err_msg=key)


@pytest.mark.slow
def test_one_process_resumes_a_run_of_four_on_another_mesh(
  tokens, reference, tmp_path
):
  args = arguments(tokens, tmp_path / "run", steps=2)
  train_together(tmp_path / "logs", 4, *args, devices=2)
  train_alone(
    *arguments(
      tokens, tmp_path / "run", mesh__fsdp=2, mesh__tensor=2, mesh__frame=2
    )
  )
  assert_same_run(tmp_path / "run", reference)


@pytest.mark.slow
def test_data_missing_on_one_host_ends_all_with_code_2(tokens, tmp_path):
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
def test_a_workdir_that_is_not_shared_ends_all_with_code_2(tokens, tmp_path):
  (tmp_path / "a").mkdir()
  (tmp_path / "b").mkdir()
  run = pathlib.Path("run")
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(tmp_path / "a")
    train_alone(*arguments(tokens, run, steps=2))
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
def test_sigterm_to_one_process_saves_on_all_and_a_restart_resumes(
  tokens, reference, tmp_path
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
  assert f"Resuming from step {step}" in ended.text(0)
  assert [
    line["step"] for line in read_metrics(tmp_path / "run") if "loss" in line
  ] == list(range(1, step + 2))


@pytest.mark.slow
@tpu_compiler.required
@pytest.mark.parametrize(
  "number, sent",
  [(0, signal.SIGKILL), (1, signal.SIGKILL), (1, signal.SIGSTOP)],
)
def test_a_lost_host_ends_the_others_and_a_restart_resumes(
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
    tmp_path / "logs",
    2,
    *args,
    "--heartbeat-timeout",
    "10",
    devices=4,
    module="tests.multihost.torus",
  ) as both:
    both.wait_for(0, "step 7/")
    begin = time.monotonic()
    os.kill(both.processes[number].pid, sent)
    codes = both.codes(timeout=120, without=(number,))
    took = time.monotonic() - begin
  # The limit is three heartbeat timeouts, as the machine may be busy.
  assert codes[1 - number] not in (0, None), both.text(1 - number)[-3000:]
  assert took < 30
  saved = reader.valid_steps(tmp_path / "run")
  assert saved and saved[-1] >= 4
  again = arguments(tokens, tmp_path / "run", steps=saved[-1] + 2)
  ended = fleet.train(
    tmp_path / "again", 2, *again, devices=4, module="tests.multihost.torus"
  )
  assert f"Resuming from step {saved[-1]}" in ended.text(0)
