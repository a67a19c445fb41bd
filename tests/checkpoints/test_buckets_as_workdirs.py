"""Tests of workdirs in a bucket, with a bucket in memory."""

import json

import numpy as np
import pytest

from genie_jax.core import buckets, errors, files
from genie_jax.train import goodput, metrics, profile, workdir
from tests.fixtures import memory_bucket


@pytest.fixture
def bucket():
  """A run's folder in an empty bucket."""
  return memory_bucket.empty()


def test_a_folder_on_a_disk_becomes_absolute_and_a_bucket_is_unchanged():
  assert buckets.run_folder("runs/x").is_absolute()
  assert str(buckets.run_folder("gs://b/x") / "y") == "gs://b/x/y"
  assert str(buckets.run_folder("s3://b/x")) == "s3://b/x"
  assert buckets.is_remote(buckets.run_folder("gs://b"))
  assert not buckets.is_remote("runs/x")


def test_an_unknown_kind_of_storage_raises_a_clear_error():
  with pytest.raises(errors.UserError, match="did you mean 'gs'"):
    buckets.run_folder("gcs://b/x")


def test_a_missing_driver_raises_a_clear_error():
  with pytest.raises(errors.UserError, match="pip install gcsfs"):
    buckets.reached("gs://no-such-bucket/x")
  buckets.reached("runs/x")


@pytest.mark.parametrize("where", ["disk", "bucket"])
def test_config_start_and_metrics_can_be_written_to_disk_and_bucket(
  where, bucket, tmp_path
):
  folder = buckets.run_folder(bucket if where == "bucket" else tmp_path / "run")
  buckets.reached(folder)
  workdir.write(folder, {"stage": "toy", "steps": 1})
  workdir.check(folder, {"stage": "toy", "steps": 2}, resumes=True)
  with pytest.raises(errors.UserError, match=r"config\.stage='toy'"):
    workdir.check(folder, {"stage": "other", "steps": 1}, resumes=True)
  assert workdir.first_start(folder) == pytest.approx(
    workdir.first_start(folder), abs=1
  )
  for resumed, steps in ((0, (1, 2, 3)), (2, (3, 4))):
    lines = metrics.JsonLines(folder, resumed)
    for step in steps:
      lines.scalars(step, {"loss": resumed})
    lines.close()
  text = (folder / "metrics.jsonl").read_text()
  found = [json.loads(line) for line in text.splitlines()]
  assert [(x["step"], x["loss"]) for x in found] == [
    (1, 0),
    (2, 0),
    (3, 2),
    (4, 2),
  ]
  files.write_atomic(folder / "previews" / "a.png", b"png")
  assert (folder / "previews" / "a.png").read_bytes() == b"png"
  with pytest.raises(errors.UserError, match="does not exist"):
    files.read_json(folder / "none.json")


def test_a_trace_is_uploaded_to_a_bucket(bucket):
  profiler = profile.Profiler(buckets.run_folder(bucket), (1, 1))
  with profiler.step(1):
    np.ones(3).sum()
  profiler.after(1, np.ones(3))
  names = [
    name for name in memory_bucket.Bucket.store if name.endswith(".xplane.pb")
  ]
  assert len(names) == 1 and names[0].startswith("/bucket/run/profile/")


def test_a_clock_adds_earlier_starts_and_goodput_is_at_most_one():
  clock = goodput.Clock(2000.0)
  clock.add_earlier(
    {"started": 1000.0, "productive": 300.0, "lost": {"compile": 50.0}}
  )
  with clock.count_lost("checkpoint"):
    pass
  note = json.loads(json.dumps(clock.note()))
  assert note["started"] == 1000.0 and note["productive"] == 300.0
  assert note["lost"]["compile"] == 50.0
  assert 0 <= clock.read()["goodput"] <= 1


def test_a_clock_can_add_a_note_of_the_first_version():
  clock = goodput.Clock(2000.0)
  clock.add_earlier({"started": 1000.0, "productive": 3.0})
  assert clock.productive == 3.0 and sum(clock.lost.values()) == 0
