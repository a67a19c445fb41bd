"""Tests that files of earlier versions load and give the recorded results.

`tests/golden/README.md` describes the files and how to add new ones. Results
that depend on rounding must be bit-identical on the kind of machine on which
they were recorded, and close on other machines.
"""

import dataclasses
import json
import pathlib
import shutil

import google_crc32c
import numpy as np
import pytest

import genie_jax
from genie_jax.core import errors, files
from genie_jax.data import counterfactuals, manifest, records
from genie_jax.models import store
from genie_jax.ports.stablehlo import runtime
from genie_jax.worlds import world_manifest
from tests.golden import contents

GOLDEN = pathlib.Path(__file__).parent / "golden"
FOLDERS = sorted(GOLDEN.glob("v*"), key=lambda path: int(path.name[1:]))
NEWEST = FOLDERS[-1]

each_folder = pytest.mark.parametrize(
  "folder", FOLDERS, ids=lambda path: path.name
)
# For tests that compile: the folders after the first are in the slow tier.
each_folder_slowly = pytest.mark.parametrize(
  "folder",
  [FOLDERS[0]]
  + [pytest.param(path, marks=pytest.mark.slow) for path in FOLDERS[1:]],
  ids=lambda path: path.name,
)


def expected(folder, name):
  """Returns the recorded results of a part of a version folder."""
  return files.read_json(folder / contents.EXPECTED)[name]


def as_json(value):
  """Returns a value after a round trip through JSON."""
  return json.loads(json.dumps(value))


def check_frames(folder, name, frames):
  """Asserts that frames equal the recorded ones."""
  with np.load(folder / contents.FRAMES) as recorded:
    wanted = recorded[name]
  if expected(folder, "machine") == contents.machine():
    np.testing.assert_array_equal(frames, wanted)
  else:
    # The tokens are the same, but their pixels may be rounded differently.
    np.testing.assert_allclose(frames.astype(int), wanted.astype(int), atol=1)


@each_folder
def test_clips_are_read_as_when_they_were_written(folder):
  assert as_json(contents.clips(folder / "clips")) == expected(folder, "clips")


@pytest.mark.parametrize(
  "folder",
  [path for path in FOLDERS if (path / contents.CLIPS_H264).is_dir()],
  ids=lambda path: path.name,
)
def test_clips_in_h264_are_read_as_when_they_were_written(folder):
  found = contents.clips(folder / contents.CLIPS_H264)
  assert as_json(found) == expected(folder, contents.CLIPS_H264)


@each_folder
def test_counterfactuals_are_read_as_when_they_were_written(folder):
  found = contents.counterfactuals(folder / "counterfactuals")
  assert as_json(found) == expected(folder, "counterfactuals")


@each_folder
@pytest.mark.parametrize("name", contents.TOKENS)
def test_tokens_and_their_models_are_read_as_when_they_were_written(
  folder, name
):
  assert as_json(contents.tokens(folder / name)) == expected(folder, name)


@each_folder
@pytest.mark.parametrize("name", contents.SAVED)
def test_saved_models_are_read_as_when_they_were_written(folder, name):
  found = contents.saved_model(folder / "saved" / name)
  assert as_json(found) == expected(folder, f"saved/{name}")


@each_folder
@pytest.mark.parametrize("stage", contents.STAGES)
def test_checkpoints_are_read_as_when_they_were_written(folder, stage):
  found = contents.workdir(folder / "workdirs" / stage)
  assert as_json(found) == expected(folder, f"workdirs/{stage}")


@each_folder_slowly
@pytest.mark.parametrize(
  "stage",
  [
    "dynamics",
    # These steps take up to a minute to compile.
    pytest.param("tokenizer", marks=pytest.mark.slow),
    pytest.param("lam", marks=pytest.mark.slow),
    pytest.param("joint", marks=pytest.mark.slow),
  ],
)
def test_a_run_resumes_from_an_old_checkpoint_as_it_did(
  folder, stage, tmp_path
):
  found = as_json(contents.resumed(folder, tmp_path, stage))
  wanted = expected(folder, f"resumed/{stage}")
  assert found["step"] == wanted["step"] == contents.STEPS
  assert set(found["arrays"]) == set(wanted["arrays"])
  if expected(folder, "machine") == contents.machine():
    assert found == wanted
  else:
    assert found["iterator"] == wanted["iterator"]
    # After two float32 steps, rounding is far below this and a wrong update
    # far above.
    for step, loss in wanted["losses"].items():
      assert found["losses"][step] == pytest.approx(loss, rel=1e-3)


@each_folder_slowly
@pytest.mark.parametrize("name", contents.WORLDS)
def test_worlds_are_read_and_drawn_as_when_they_were_written(folder, name):
  found, frames = contents.world(folder / "worlds" / name)
  assert as_json(found) == expected(folder, f"worlds/{name}")
  check_frames(folder, f"worlds/{name}", frames)


@each_folder_slowly
def test_programs_run_as_when_they_were_written(folder):
  found, frames = contents.stablehlo(folder / "worlds/stablehlo")
  assert as_json(found) == expected(folder, "programs")
  check_frames(folder, "programs", frames)


@pytest.mark.parametrize(
  "seed",
  [
    seed if number == 0 else pytest.param(seed, marks=pytest.mark.slow)
    for number, seed in enumerate(contents.SHIPPED_SEEDS)
  ],
)
def test_the_shipped_world_draws_the_recorded_frames(seed):
  recorded = files.read_json(GOLDEN / "shipped_frames.json")
  manifest_ = world_manifest.read_manifest(contents.SHIPPED)
  if manifest_["fingerprint"] != recorded["fingerprint"]:
    pytest.fail(
      "The shipped world has changed; run `python -m tests.golden.contents "
      "--shipped`."
    )
  frames = contents.shipped(seed)
  assert tuple(recorded["actions"]) == contents.SHIPPED_ACTIONS
  assert recorded["xla_flags"] == contents.SHIPPED_FLAGS
  if recorded["machine"] == contents.machine():
    assert recorded["sha256"][str(seed)] == [
      contents.digest(frame) for frame in frames
    ]
  else:
    # One of thousands of sampled tokens may be a near tie, which changes all
    # later frames. The first frame has few tokens, so it is compared.
    with np.load(GOLDEN / "shipped_frames.npz") as stored:
      wanted = stored[str(seed)][0]
    first = frames[contents.SHIPPED_STORED[0]]
    assert np.abs(first.astype(int) - wanted.astype(int)).mean() < 1


@each_folder
def test_a_version_folder_states_the_versions_that_its_files_have(folder):
  assert contents.written_versions(folder) == expected(folder, "versions")


def test_the_newest_golden_files_have_the_current_versions():
  assert contents.current_versions() == contents.written_versions(NEWEST), (
    "A format has a new version: add golden files, see tests/golden/README.md."
  )


def raise_version(path, field):
  """Adds 1 to the version in a JSON file."""
  found = files.read_json(path)
  found[field] += 1
  files.write_json(path, found)


def newer_clips(folder):
  raise_version(
    folder / contents.CLIPS_H264 / "manifest.json", "schema_version"
  )
  manifest.Manifest.read(folder / contents.CLIPS_H264)


def newer_tokens(folder):
  found = files.read_json(folder / "tokens/manifest.json")
  found["schema_version"] = manifest.SCHEMA_VERSION + 1
  files.write_json(folder / "tokens/manifest.json", found)
  manifest.Manifest.read(folder / "tokens")


def newer_counterfactuals(folder):
  found = manifest.Manifest.read(folder / "counterfactuals")
  made_by = dict(found.made_by)
  made_by["counterfactuals"] = {
    **made_by["counterfactuals"],
    "version": counterfactuals.VERSION + 1,
  }
  dataclasses.replace(found, made_by=made_by).write(folder / "counterfactuals")
  counterfactuals.read_manifest(folder / "counterfactuals")


def newer_record(folder):
  del folder
  record = bytearray(records.pack({"frames": np.zeros(3, np.uint8)}, {})[:-4])
  record[4:6] = (records.SCHEMA_VERSION + 1).to_bytes(2, "little")
  check = google_crc32c.value(bytes(record)).to_bytes(4, "little")
  records.unpack(bytes(record) + check)


def newer_saved(folder):
  raise_version(folder / "saved/float32/config.json", "format_version")
  store.load(folder / "saved/float32")


def newer_world(folder):
  reseal(
    folder / "worlds/bfloat16",
    schema_version=(world_manifest.SCHEMA_VERSION + 1),
  )
  genie_jax.load_world(folder / "worlds/bfloat16")


def newer_models_of_a_world(folder):
  world = folder / "worlds/bfloat16"
  raise_version(world / "config.json", "format_version")
  reseal(world)
  genie_jax.load_world(world)


def newer_programs(folder):
  world = folder / "worlds/stablehlo"
  raise_version(world / "stablehlo/programs.json", "format_version")
  reseal(world)
  runtime.load(world)


def reseal(world, **changes):
  """Updates a world's manifest after its files were changed."""
  found = files.read_json(world / "manifest.json")
  del found["seal"]
  for name in found["files"]:
    path = world / name
    found["files"][name] = {
      "sha256": files.sha256(path),
      "bytes": path.stat().st_size,
    }
  found.update(changes)
  files.write_json(
    world / "manifest.json", {**found, "seal": world_manifest.seal(found)}
  )


@pytest.mark.parametrize(
  "read",
  [
    newer_clips,
    newer_tokens,
    newer_counterfactuals,
    newer_record,
    newer_saved,
    newer_world,
    newer_models_of_a_world,
    newer_programs,
  ],
  ids=lambda read: read.__name__,
)
def test_a_newer_version_is_refused_in_one_line(read, tmp_path):
  for name in (
    contents.CLIPS_H264,
    "counterfactuals",
    "tokens",
    "saved",
    "worlds",
  ):
    shutil.copytree(NEWEST / name, tmp_path / name)
  with pytest.raises(errors.UserError, match="version") as error:
    read(tmp_path)
  assert "\n" not in str(error.value)
