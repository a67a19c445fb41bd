"""Tests of metric files and of the meter."""

import json
import resource
import threading
import time

import numpy as np
import pytest

from genie_jax.core import chips
from genie_jax.train import goodput, metrics


def read(workdir):
  return [
    json.loads(line)
    for line in (workdir / "metrics.jsonl").read_text().splitlines()
  ]


def test_lines_are_appended_and_unknown_numbers_are_null(tmp_path):
  for step in (1, 2):
    writer = metrics.JsonLines(tmp_path, resumed_step=step - 1)
    writer.scalars(step, {"loss": 0.5, "mfu": None, "odd": float("nan")})
    writer.close()
  first, second = read(tmp_path)
  assert (first["step"], second["step"]) == (1, 2)
  assert first["loss"] == 0.5
  assert first["mfu"] is None and first["odd"] is None


def test_resuming_drops_lines_of_steps_that_will_be_repeated(tmp_path):
  writer = metrics.JsonLines(tmp_path, resumed_step=0)
  for step in (1, 2, 3, 4):
    writer.scalars(step, {"loss": float(step)})
  writer.close()
  with open(tmp_path / "metrics.jsonl", "a") as file:
    file.write('{"step": 2, "lo')  # cut short by a kill
  metrics.JsonLines(tmp_path, resumed_step=2).close()
  assert [line["step"] for line in read(tmp_path)] == [1, 2]


def test_tensorboard_files_contain_numbers_and_images(tmp_path):
  writer = metrics.TensorBoard(tmp_path, resumed_step=0)
  writer.scalars(1, {"loss": 1.0, "mfu": None})
  writer.image(1, "strip", np.zeros((4, 6, 3), np.uint8))
  writer.close()
  content = b"".join(
    path.read_bytes() for path in (tmp_path / "tensorboard").iterdir()
  )
  assert b"loss" in content and b"PNG" in content and b"mfu" not in content


def test_lines_that_a_full_disk_refused_are_written_later(tmp_path, caplog):
  writer = metrics.JsonLines(tmp_path, resumed_step=0)
  writer.scalars(1, {"loss": 1.0})
  size = (tmp_path / "metrics.jsonl").stat().st_size
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, hard))
  try:
    for step in (2, 3):
      writer.scalars(step, {"loss": float(step)})
      assert [line["step"] for line in read(tmp_path)] == [1]
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert caplog.text.count("metrics.jsonl cannot be written") == 1
  writer.scalars(4, {"loss": 4.0})
  writer.close()
  assert [line["loss"] for line in read(tmp_path)] == [1, 2, 3, 4]


@pytest.mark.parametrize("fault", ["the disk is full", "the disk hangs"])
def test_tensorboard_never_stops_training(fault, tmp_path, monkeypatch, caplog):
  writer = metrics.TensorBoard(tmp_path, resumed_step=0)
  release = threading.Event()

  def write_event(self, event):
    if fault == "the disk hangs":
      release.wait()
    raise OSError(28, "No space left on device")

  kind = metrics.event_file_writer.EventsWriter
  monkeypatch.setattr(kind, "write_event", write_event)
  monkeypatch.setattr(metrics, "_CLOSE_SECONDS", 0.5)
  begin = time.monotonic()
  for step in range(20_000):
    writer.scalars(step, {"loss": 1.0})
  writer.close()
  assert time.monotonic() - begin < 10
  release.set()
  assert caplog.text.count("are incomplete from here on") == 1


def test_meter_excludes_time_that_is_not_training():
  clock = goodput.Clock(time.time())
  meter = metrics.Meter(8, 1e6, 1e9, clock)
  with meter.excluded("compile"):
    time.sleep(0.3)
  for _ in range(4):
    time.sleep(0.02)
    meter.step(waited=0.01)
  found = meter.read()
  assert 20 < found["steps_per_second"] < 50  # 4 steps in 0.08 s and more
  np.testing.assert_allclose(
    found["clips_per_second"], 8 * found["steps_per_second"]
  )
  np.testing.assert_allclose(
    found["mfu"], found["clips_per_second"] * 1e6 / 1e9
  )
  assert 0.2 < found["data_wait"] <= 0.5
  assert 0 < found["goodput"] < 0.5  # Most of the time was excluded.
  assert 0.3 <= found["lost_seconds/compile"] < 0.6
  assert found["lost_seconds/data_wait"] == pytest.approx(0.04)


def test_mfu_is_null_if_the_devices_peak_is_unknown():
  assert chips.device_peak_flops("cpu") is None
  # A v4 chip is one device, a v3 chip is two.
  assert chips.device_peak_flops("TPU v4") == 275e12
  assert chips.device_peak_flops("TPU v3") == 61.5e12
  assert chips.device_peak_flops("NVIDIA H100 80GB HBM3") == 989e12
  meter = metrics.Meter(8, 1e6, None, goodput.Clock(time.time()))
  meter.step(0.0)
  found = meter.read()
  assert found["mfu"] is None and found["model_flops_per_second"] > 0


def test_a_checkpoint_between_two_lines_counts_each_second_once():
  clock = goodput.Clock(time.time())
  meter = metrics.Meter(8, 1e6, None, clock)
  time.sleep(0.1)
  meter.step(waited=0.04)
  note = meter.note()
  assert 0.06 <= note["productive"] < 0.2
  assert note["lost"]["data_wait"] == pytest.approx(0.04)
  time.sleep(0.1)
  meter.step(waited=0.0)
  meter.read()  # counts the first step once, not twice
  assert 0.16 <= clock.productive < 0.4
  assert clock.lost["data_wait"] == pytest.approx(0.04)


def test_the_slowest_host_is_named(monkeypatch):
  monkeypatch.setattr(metrics.jax, "process_count", lambda: 3)
  others = [0.01, 0.5]
  monkeypatch.setattr(
    metrics.hosts, "gather", lambda mine: np.array([mine, *others])
  )
  meter = metrics.Meter(8, 1e6, None, goodput.Clock(time.time()))
  for host in (0.02, 0.04):
    meter.step(0.0, host)
  found = meter.read()
  assert found["slowest_host"] == 2 and found["slowest_host_seconds"] == 0.5
  assert found["host_seconds"] == pytest.approx(0.03)
  assert metrics.summary(1, 2, found).endswith(
    "slowest host 2 (0.5 s a batch, median 0.03 s)"
  )


def test_summary_names_speed_and_mfu():
  line = metrics.summary(
    3,
    10,
    {
      "loss": 1.25,
      "steps_per_second": 2.0,
      "clips_per_second": 16.0,
      "mfu": 0.41,
      "goodput": 0.934,
    },
  )
  assert line == (
    "step 3/10, loss 1.25, 2 steps/s, 16 clips/s, MFU 41.0%, goodput 93%"
  )
