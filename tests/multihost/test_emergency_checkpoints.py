"""Tests of emergency checkpoints: two processes stand for two slices."""

import os
import pathlib
import shutil
import signal
import types

import numpy as np
import pytest

from genie_jax.checkpoints import emergency, reader
from genie_jax.core import errors
from tests.faults import disks, jobs
from tests.fixtures import toy_stage
from tests.multihost import fleet

CONFIG = f"{fleet.ROOT / 'experiments' / 'coinrun' / 'dynamics.py'}:smoke"
STEPS, EVERY = 12, 2


def mesh(*rows):
  """Returns a mesh whose rows along `data` belong to these processes."""
  devices = [
    [types.SimpleNamespace(process_index=process) for process in row]
    for row in rows
  ]
  return types.SimpleNamespace(
    devices=np.array(devices, object), shape={"data": len(rows)}
  )


@pytest.mark.parametrize(
  "rows, count",
  [
    (((0, 0), (1, 1)), 2),
    (((0, 1), (2, 3)), 2),
    (((0,), (1,), (2,), (3,)), 4),
    # A process has two rows.
    (((0,), (0,), (1,), (1,)), 2),
    # All processes have a part of each row.
    (((0, 1), (0, 1)), 1),
    (((0, 0),), 1),
    (((0,), (1,), (1,)), 1),
  ],
)
def test_replicas_are_groups_of_processes_with_the_whole_state(rows, count):
  assert emergency.replicas(mesh(*rows)) == count


def test_without_replicas_or_a_local_folder_there_are_no_copies(tmp_path):
  opened = lambda rows=((0,), (1,)), **changes: emergency.opened(
    toy_stage.config(**changes), tmp_path, 0.0, mesh(*rows), {}
  )
  assert isinstance(opened(), emergency.NoCopies)
  for folder in ("", "gs://bucket/copies"):
    with pytest.raises(errors.UserError, match="emergency_folder is '"):
      opened(emergency_every=2, emergency_folder=folder)
  with pytest.raises(errors.UserError, match="set config"):
    opened(
      ((0, 1),), emergency_every=2, emergency_folder=str(tmp_path / "copies")
    )


def arguments(tokens, folder, every=EVERY, checkpoint_every=100):
  fields = {
    "data.path": tokens,
    "data.batch_size": 8,
    "start": "random",
    "eval_batches": 0,
    "held_out_clips": 0,
    "optimizer.name": "adamw",
    "mesh.data": 2,
    "steps": STEPS,
    "eval_every": 100,
    "checkpoint_every": checkpoint_every,
    "emergency_every": every,
    "emergency_folder": folder / "copies",
  }
  return (
    "--config",
    CONFIG,
    "--workdir",
    str(folder / "run"),
    *(f"--config.{name}={value}" for name, value in fields.items()),
    "--heartbeat-timeout",
    "10",
    # Only process 0 would find compiled steps, and wait for the other.
    "--compilation-cache",
    "off",
  )


@pytest.fixture(scope="module")
def content(tokens, tmp_path_factory):
  """The content of a run without emergency checkpoints."""
  folder = tmp_path_factory.mktemp("reference")
  fleet.train(
    folder / "logs", 2, *arguments(tokens, folder, every=0), devices=2
  )
  assert not (folder / "copies").exists()
  return jobs.run_content(folder / "run")


def copies(folder: pathlib.Path, process: int) -> pathlib.Path:
  """Returns the folder of the copies of a process."""
  (found,) = (folder / "copies").glob(f"genie-*/{process}")
  return found


def lose(tokens, folder, victim, **options):
  """Trains until a process is killed; returns the steps that were made."""
  args = arguments(tokens, folder, **options)
  with fleet.running(folder / "logs", 2, *args, devices=2) as both:
    both.wait_for(0, f"step {3 * EVERY + 1}/")
    os.kill(both.processes[victim].pid, signal.SIGKILL)
    codes = both.codes(timeout=120, without=(victim,))
  assert codes[1 - victim] not in (0, None)
  return jobs.last_step(both.text(0))


def again(tokens, folder, **options):
  """Trains to the end; returns the step at which it resumed, and the log."""
  args = arguments(tokens, folder, **options)
  both = fleet.train(folder / "again", 2, *args, devices=2)
  return jobs.resumed_step(both.text(0)) or 0, both


@pytest.mark.slow
def test_the_state_of_a_lost_slice_comes_from_the_other(
  tokens, content, tmp_path
):
  # A checkpoint at step 4, copies at steps 2 and 6.
  seen = lose(tokens, tmp_path, victim=0, checkpoint_every=2 * EVERY)
  assert 2 * EVERY in reader.valid_steps(tmp_path / "run")
  # The slice comes back on other machines.
  shutil.rmtree(copies(tmp_path, 0))
  resumed, both = again(tokens, tmp_path, checkpoint_every=2 * EVERY)
  assert 2 * EVERY < resumed <= seen
  assert f"Emergency checkpoint of step {resumed} found" in both.text(0)
  assert jobs.run_content(tmp_path / "run") == content
  # A run that has finished leaves no copies.
  assert not list((tmp_path / "copies").glob("*/?"))


@pytest.mark.slow
def test_without_a_whole_copy_the_workdir_decides(tokens, content, tmp_path):
  lose(tokens, tmp_path, victim=1)
  shutil.rmtree(copies(tmp_path, 1))
  resumed, _ = again(tokens, tmp_path)
  assert resumed == 0
  assert jobs.run_content(tmp_path / "run") == content


@pytest.mark.slow
def test_a_damaged_copy_is_not_used(tokens, content, tmp_path):
  lose(tokens, tmp_path, victim=0)
  for path in copies(tmp_path, 1).rglob("*"):
    if path.is_file() and "/d/" in str(path) and path.stat().st_size > 1000:
      data = bytearray(path.read_bytes())
      data[len(data) // 2] ^= 1
      path.write_bytes(data)
  args = arguments(tokens, tmp_path)
  with fleet.running(tmp_path / "damaged", 2, *args, devices=2) as both:
    codes = both.codes()
  texts = both.text(0) + both.text(1)
  if codes != [0, 0]:
    # Orbax noticed it, on one process only. The next start goes on.
    message = "it was deleted, and the same command resumes"
    assert message in both.text(1) and message not in both.text(0)
    assert codes[1] == 1
    again(tokens, tmp_path)
  else:
    assert "is damaged and is not used" in texts
  assert jobs.run_content(tmp_path / "run") == content


@pytest.fixture(scope="module")
def copy_bytes(tokens, tmp_path_factory):
  """The size of the files of one copy."""
  folder = tmp_path_factory.mktemp("copy")
  lose(tokens, folder, victim=0)
  # One more may have been begun.
  return max(
    sum(path.stat().st_size for path in copy.rglob("*") if path.is_file())
    for copy in copies(folder, 1).iterdir()
  )


@pytest.mark.slow
# Too small for the first copy, full while it is written, and too small for the
# second.
@pytest.mark.parametrize("share", [0.3, 0.97, 1.5])
def test_a_copy_on_a_full_disk_costs_only_the_copies(
  tokens, content, copy_bytes, tmp_path, share
):
  if not disks.available():
    pytest.skip("this machine has no namespaces for users")
  disk = {
    "SMALL_DISK_FOLDER": str(tmp_path / "copies"),
    "SMALL_DISK_BYTES": str(int(share * copy_bytes)),
  }
  both = fleet.train(
    tmp_path / "logs",
    2,
    *arguments(tokens, tmp_path),
    devices=2,
    variables=[disk, disk],
    module="tests.multihost.small_disk",
  )
  assert "No more emergency checkpoints until the next start" in both.text(1)
  assert "Traceback" not in both.text(0) + both.text(1)
  assert jobs.run_content(tmp_path / "run") == content
