"""Tests of encoding clips as token records."""

import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from genie_jax.core import errors
from genie_jax.data import inspection, manifest, shards, sources
from genie_jax.evals import code_buttons
from genie_jax.models import button_map, store
from genie_jax.tokenizing import tokenize
from genie_jax.worlds import trained_models
from tests.fixtures import memory_bucket, tiny_world

OPTIONS = tokenize.Options(batch_size=4, records_per_shard=5, stride=3)


def write(clips, out, models, **changes):
  options = tokenize.dataclasses.replace(OPTIONS, **changes)
  return tokenize.tokenize(
    clips,
    out,
    tokenizer=models["tokenizer"],
    lam=models.get("lam"),
    options=options,
  )


def contents(folder):
  return {
    path.relative_to(folder).as_posix(): path.read_bytes()
    for path in sorted(folder.rglob("*"))
    if path.is_file()
  }


def test_each_record_is_its_window_encoded_from_its_own_first_frame(
  clips, models, parts, tmp_path
):
  report = write(clips, tmp_path / "tokens", models, keep_frames=True)
  tokens = sources.TokenSource(tmp_path / "tokens", "train")
  windows = sources.WindowSource(clips, "train", 4, 3)
  assert len(tokens) == len(windows) == 24
  assert report.records == 24 + 8
  for number in (0, 4, 5, 23):
    found, window = tokens[number], windows[number]
    frames = jnp.asarray(window["frames"][None], jnp.float32) / 255
    for name, key in (("tokenizer", "tokens"), ("lam", "latent_actions")):
      wanted = parts[name].module.apply(
        {"params": parts[name].params}, frames, method="encode"
      )[0]
      np.testing.assert_array_equal(found[key], wanted)
    for key in ("frames", "actions", "source", "start"):
      np.testing.assert_array_equal(found[key], window[key])


def test_the_manifest_states_how_the_tokens_were_made(clips, models, tmp_path):
  out = tmp_path / "tokens"
  write(clips, out, models)
  found = manifest.Manifest.read(out)
  found.check(
    {
      "kind": "tokens",
      "token_grid": (2, 3),
      "num_codes": 13,
      "num_latent_actions": 5,
      "num_frames": 4,
      "stride": 3,
      "fps": 10,
      "num_actions": 15,
      "action_aliases": {9: 4},
      "source_fingerprint": manifest.Manifest.read(clips).fingerprint,
    }
  )
  for name, stated in (
    ("tokenizer", found.tokenizer_fingerprint),
    ("lam", found.lam_fingerprint),
  ):
    assert store.load(out / name).fingerprint == stated
  inspection.verify(found)
  assert not (out / ".progress").exists()


def test_a_lam_with_buttons_writes_its_buttons(clips, models, parts, tmp_path):
  buttons = button_map.ButtonMap(("left", "right"), (0, 1, -1, 0, 1), (0, 0), 0)
  store.save(
    tmp_path / "lam", {"lam": code_buttons.with_buttons(parts["lam"], buttons)}
  )
  write(clips, tmp_path / "out", {**models, "lam": tmp_path / "lam"})
  write(clips, tmp_path / "codes", models)
  found, codes = (
    sources.TokenSource(tmp_path / name, "train") for name in ("out", "codes")
  )
  for number in range(len(found)):
    np.testing.assert_array_equal(
      found[number]["latent_actions"],
      buttons.press(codes[number]["latent_actions"]),
    )
  assert manifest.Manifest.read(tmp_path / "out").num_latent_actions == 2


def test_without_a_lam_there_are_no_latent_actions(clips, models, tmp_path):
  write(clips, tmp_path / "out", {"tokenizer": models["tokenizer"]})
  element = sources.TokenSource(tmp_path / "out", "train")[0]
  assert set(element) == {"tokens", "actions", "source", "start"}
  found = manifest.Manifest.read(tmp_path / "out")
  assert found.lam_fingerprint is None and found.num_latent_actions is None


@pytest.mark.parametrize("codec", [None, "h264"])
def test_clips_without_true_actions_are_tokenized(models, tmp_path, codec):
  clips = tiny_world.write_clips(
    tmp_path / "clips", {"train": [0]}, actions=False, codec=codec
  )
  write(clips, tmp_path / "out", models)
  element = sources.TokenSource(tmp_path / "out", "train")[0]
  assert "actions" not in element and "latent_actions" in element


def test_a_killed_run_resumes_and_writes_the_same_bytes(
  clips, models, tmp_path, monkeypatch
):
  write(clips, tmp_path / "whole", models)

  class Killed(Exception):
    pass

  gather, calls = sources.WindowSource.gather, []

  def dies(self, rows):
    calls.append(rows)
    if len(calls) == 6:
      raise Killed
    return gather(self, rows)

  with monkeypatch.context() as patch:
    patch.setattr(sources.WindowSource, "gather", dies)
    with pytest.raises(Killed):
      write(clips, tmp_path / "killed", models)
  with pytest.raises(errors.UserError, match="has finished"):
    manifest.Manifest.read(tmp_path / "killed")
  report = write(clips, tmp_path / "killed", models)
  assert report.kept_records == 10  # Two shards of five.
  assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_a_finished_folder_is_kept_and_a_damaged_shard_is_rewritten(
  clips, models, tmp_path
):
  out = tmp_path / "tokens"
  write(clips, out, models)
  before = contents(out)
  assert write(clips, out, models).records == 0
  assert contents(out) == before
  shard = out / "train" / shards.shard_name(1, 5)
  shard.write_bytes(shard.read_bytes()[:-1])
  assert write(clips, out, models).records == 5
  assert contents(out) == before


def test_other_weights_are_refused_with_both_fingerprints(
  clips, models, tmp_path
):
  out = tmp_path / "tokens"
  write(clips, out, models)
  before = contents(out)
  other = tmp_path / "other"
  store.save(other, {"tokenizer": tiny_world.make_part("tokenizer", seed=1)})
  with pytest.raises(errors.UserError) as caught:
    write(clips, out, {**models, "tokenizer": other})
  message = str(caught.value)
  for folder in (models["tokenizer"], other):
    assert trained_models.part(folder, "tokenizer")[1][:12] in message
  assert "another folder" in message and "\n" not in message
  assert contents(out) == before


@pytest.mark.parametrize(
  "changes, message",
  (
    ({"stride": 2}, "stride 3 there, 2 now"),
    ({"keep_frames": True}, "keep_frames False there, True now"),
    ({"stride": -1}, "--stride must be at least 0"),
    ({"batch_size": 0}, "--batch-size must be at least 1"),
    ({"num_frames": 99}, "no episode of 99 frames"),
  ),
)
def test_options_that_do_not_fit_are_refused(
  clips, models, tmp_path, changes, message
):
  out = tmp_path / "tokens"
  write(clips, out, {"tokenizer": models["tokenizer"]})
  with pytest.raises(errors.UserError, match=message):
    write(clips, out, {"tokenizer": models["tokenizer"]}, **changes)


def test_a_model_of_another_frame_shape_is_refused(clips, tmp_path):
  store.save(
    tmp_path / "big",
    {"tokenizer": tiny_world.make_part("tokenizer", height=12)},
  )
  with pytest.raises(errors.UserError, match=r"\(8, 12, 3\).*\(12, 12, 3\)"):
    write(clips, tmp_path / "out", {"tokenizer": tmp_path / "big"})
  assert not (tmp_path / "out").exists()


def test_a_folder_with_other_files_is_not_changed(clips, models, tmp_path):
  (tmp_path / "notes.txt").write_text("mine")
  with pytest.raises(errors.UserError, match="holds no tokens"):
    write(clips, tmp_path, models)
  assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_workdir_and_a_saved_model_give_the_same_tokens(
  clips, models, parts, tmp_path
):
  workdir = tiny_world.write_workdir(
    tmp_path / "run",
    "tokenizer",
    tiny_world.MODELS["tokenizer"],
    parts["tokenizer"].params,
  )
  only = {"tokenizer": models["tokenizer"]}
  write(clips, tmp_path / "a", only)
  write(clips, tmp_path / "b", {"tokenizer": workdir})
  one, other = contents(tmp_path / "a"), contents(tmp_path / "b")
  # Only the run knows how the model was trained, and says it in the copy.
  configs = [
    json.loads(part.pop("tokenizer/config.json")) for part in (one, other)
  ]
  assert one == other
  assert configs[1].pop("made_by")["tokenizer"]["stage"] == "tokenizer"
  assert configs[0] == configs[1]


def test_a_folder_without_the_right_model_is_refused(models, tmp_path):
  with pytest.raises(errors.UserError, match="contains lam but no tokenizer"):
    trained_models.part(models["lam"], "tokenizer")
  with pytest.raises(errors.UserError, match="neither a workdir"):
    trained_models.part(pathlib.Path(tmp_path) / "absent", "tokenizer")


def test_clips_in_a_bucket_give_the_same_bytes(
  clips, models, tmp_path, monkeypatch
):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  only = {"tokenizer": models["tokenizer"]}
  write(clips, tmp_path / "a", only)
  address = memory_bucket.upload(clips, f"{memory_bucket.empty()}/clips")
  write(address, tmp_path / "b", only)
  assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_tokens_and_saved_models_in_a_bucket_raise_a_one_line_error(
  clips, models, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(errors.UserError, match=r"--out s3://b/t .* disk only"):
    write(clips, "s3://b/t", models)
  address = memory_bucket.upload(models["lam"], f"{memory_bucket.empty()}/lam")
  with pytest.raises(errors.UserError, match=f"^{address} is .* to a disk"):
    trained_models.part(address, "lam")
  assert not list(tmp_path.iterdir())


@pytest.fixture
def lams(parts):
  """Returns a function that saves a LAM of a training length and window."""

  def save(folder, trained_frames, window=0):
    made = parts["lam"]
    stack = {**made.config["model"]["encoder"], "window": window}
    config = {
      **made.config,
      "model": {**made.config["model"], "encoder": stack},
    }
    part = store.part("lam", config, made.params, trained_frames=trained_frames)
    store.save(folder, {"lam": part})
    return folder

  return save


def test_a_lam_on_longer_clips_than_in_training_is_refused(
  clips, models, lams, tmp_path, caplog
):
  given = {**models, "lam": lams(tmp_path / "of_3", 3)}
  with pytest.raises(errors.UserError, match=r"cannot infer .* of 4;"):
    write(clips, tmp_path / "short", given)
  assert not (tmp_path / "short").exists()
  given = {**models, "lam": lams(tmp_path / "of_4", 4)}
  write(clips, tmp_path / "same", given)
  assert store.load(tmp_path / "same/lam").parts["lam"].trained_frames == 4
  # With a window, the length does not matter.
  given = {**models, "lam": lams(tmp_path / "windowed", 3, window=2)}
  write(clips, tmp_path / "any", given)
  assert "length of its training clips" not in caplog.text
  # Files of earlier versions do not state it.
  given = {**models, "lam": lams(tmp_path / "of_unknown", None)}
  write(clips, tmp_path / "older", given)
  assert "does not state the length of its training clips" in caplog.text


def test_the_training_length_is_not_part_of_the_fingerprint(
  clips, models, lams, tmp_path
):
  prints = {
    write(
      clips,
      tmp_path / f"tokens_{frames}",
      {**models, "lam": lams(tmp_path / f"of_{frames}", frames)},
    ).manifest.lam_fingerprint
    for frames in (4, 5, None)
  }
  assert len(prints) == 1


def test_an_invalid_training_length_is_refused(lams, tmp_path):
  folder = lams(tmp_path / "lam", 4)
  config = json.loads((folder / "config.json").read_text())
  config["trained_frames"] = {"lam": "four"}
  (folder / "config.json").write_text(json.dumps(config))
  with pytest.raises(errors.UserError, match="trained_frames must give"):
    store.load(folder)
