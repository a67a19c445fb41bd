"""Tests of exporting, loading and playing worlds."""

import json
import subprocess
import sys

import jax
import numpy as np
import PIL.Image
import pytest

from genie_jax.cli import export as export_cli
from genie_jax.core import errors
from genie_jax.data import counterfactuals, manifest, shards
from genie_jax.models import store
from genie_jax.sampling import maskgit, prepare
from genie_jax.tokenizing import tokenize
from genie_jax.worlds import export, world_folder
from genie_jax.worlds import world as world_lib
from tests.fixtures import tiny_world


@pytest.fixture(scope="module")
def tokens(clips, models, tmp_path_factory):
  out = tmp_path_factory.mktemp("tokens") / "tokens"
  tokenize.tokenize(
    clips,
    out,
    tokenizer=models["tokenizer"],
    lam=models["lam"],
    options=tokenize.Options(batch_size=4),
  )
  return out


@pytest.fixture(scope="module")
def run(tokens, parts, tmp_path_factory):
  """The workdir of a dynamics stage."""
  return tiny_world.write_workdir(
    tmp_path_factory.mktemp("runs") / "dynamics",
    "dynamics",
    tiny_world.MODELS["dynamics"],
    parts["dynamics"].params,
    data=str(tokens),
  )


@pytest.fixture(scope="module")
def folder(run, clips, tmp_path_factory):
  """An exported world."""
  out = tmp_path_factory.mktemp("worlds") / "noise"
  export.export(
    [run],
    out,
    prompts=clips,
    num_prompts=3,
    dtype="float32",
    metrics={"delta_psnr": 0.5},
  )
  return out


@pytest.fixture(scope="module")
def world(parts):
  return world_lib.World(
    parts, sampling=maskgit.MaskGIT(refinements=3), fingerprint="x"
  )


def prompt(seed=0, frames=1):
  return np.random.default_rng(seed).integers(
    0, 256, (frames, *tiny_world.SHAPE), dtype=np.uint8
  )


def test_export_and_load_keep_every_weight_bit_for_bit(folder, parts):
  found = world_folder.load(folder)
  assert set(found.world.parts) == {"tokenizer", "lam", "dynamics"}
  for name, part in parts.items():
    jax.tree.map(
      np.testing.assert_array_equal, found.world.parts[name].params, part.params
    )
  assert found.name == "noise"
  assert found.manifest["metrics"] == {"delta_psnr": 0.5}
  assert found.world.sampling.refinements == 3


def test_weights_stored_in_bfloat16_are_close_to_the_original(
  run, parts, tmp_path
):
  export.export([run], tmp_path / "w", prompts=None)
  found = world_folder.load(tmp_path / "w").world.parts["dynamics"].params
  # bfloat16 keeps 8 bits: a relative error of at most 2 ** -9.
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=2**-8),
    found,
    parts["dynamics"].params,
  )


def test_a_loaded_world_draws_the_frames_of_its_models(folder, world):
  loaded = world_folder.load(folder).world
  actions = np.array([0, 1, 2, 3, 4, 0])
  np.testing.assert_array_equal(
    loaded.rollout(prompt(), actions, seed=1),
    world.rollout(prompt(), actions, seed=1),
  )


def test_prompts_are_held_out_frames_of_the_clips(folder, clips):
  paths = world_folder.load(folder).prompts
  assert len(paths) == 3
  random = np.random.default_rng(7)  # The only validation source.
  frames = random.integers(0, 256, (25, *tiny_world.SHAPE), dtype=np.uint8)
  for path in paths:
    picture = np.asarray(PIL.Image.open(path))
    assert (picture == frames).all((1, 2, 3)).any()


def write_standing(clips, levels):
  """Adds a standing start to each level; its frames are the level's number."""
  keys, frames, history = 2, 3, 2
  folder = clips / counterfactuals.STANDING
  episodes = []
  with shards.ShardWriter(
    folder / "validation" / shards.shard_name(0, 1)
  ) as writer:
    for record, level in enumerate(levels):
      shown = np.full((frames, *tiny_world.SHAPE), level, np.uint8)
      moment = counterfactuals.Moment(
        level=level,
        step=5,
        history=shown[:history],
        history_keys=np.zeros(history - 1, np.int32),
        history_states=np.zeros((history, 5), np.float32),
        keys=np.int32([[0] * frames, [1] * frames, [0] * frames]),
        distinct=shown[None],
        future_of=np.zeros(keys + 1, np.int32),
        states=np.zeros((keys + 1, frames, 5), np.float32),
      )
      writer.write(counterfactuals.pack(moment, 10))
      episodes.append([level, record, 5, moment.num_frames])
  manifest.Manifest(
    kind=counterfactuals.KIND,
    name="noise",
    fps=10,
    frame_shape=tiny_world.SHAPE,
    frames_per_record=moment.num_frames,
    splits={
      "validation": manifest.split_summary(
        [{**writer.entry, "episodes": episodes}],
        sum(row[3] for row in episodes),
      )
    },
    num_actions=keys,
    action_aliases={},
    made_by={
      counterfactuals.KIND: counterfactuals.made_by(history, frames, keys)
    },
  ).write(folder)


@pytest.mark.parametrize("count, standing", [(0, 0), (1, 1), (4, 3), (8, 5)])
def test_most_prompts_are_standing_starts_where_there_are_some(
  run, tmp_path, count, standing
):
  clips = tiny_world.write_clips(tmp_path / "clips", {"validation": [7]})
  write_standing(clips, range(10, 15))
  export.export([run], tmp_path / "world", prompts=clips, num_prompts=count)
  paths = world_folder.load(tmp_path / "world").prompts
  pictures = [np.asarray(PIL.Image.open(path)) for path in paths]
  assert len(pictures) == count
  colours = [np.unique(picture) for picture in pictures]
  levels = [colour.item() for colour in colours[:standing]]
  assert len(set(levels)) == standing and set(levels) <= set(range(10, 15))
  assert all(len(colour) > 1 for colour in colours[standing:])


def test_the_sampler_of_the_config_can_be_changed(run, tmp_path):
  export.export(
    [run], tmp_path / "world", num_prompts=0, sampling={"temperature": 0.25}
  )
  made = world_folder.load(tmp_path / "world").world
  assert made.sampling.temperature == 0.25
  with pytest.raises(errors.UserError, match="warmth=2 does not apply"):
    export.export([run], tmp_path / "other", sampling={"warmth": 2})
  assert not (tmp_path / "other").exists()


def test_the_slide_of_a_world_can_be_chosen(run, tmp_path):
  make = lambda **slide: export.export(
    [run], tmp_path / "world", num_prompts=0, slide=slide
  )
  make()
  assert world_folder.load(tmp_path / "world").world.slide.drop == 1
  make(drop=2)
  made = world_folder.load(tmp_path / "world").world
  assert vars(made.slide) == {"mode": "exact", "drop": 2}
  for slide, message in (
    ({"drop": made.num_frames}, "slide.drop is"),
    ({"dropp": 1}, "Unknown field slide.dropp"),
    ({"mode": "exakt"}, "slide.mode is 'exakt'"),
  ):
    with pytest.raises(errors.UserError, match=message):
      make(**slide)
  assert world_folder.load(tmp_path / "world").world.slide.drop == 2


@pytest.mark.parametrize(
  "text, wanted",
  [
    ("temperature=0.5", {"temperature": 0.5}),
    ("order=confidence, top_k=8", {"order": "confidence", "top_k": 8}),
  ],
)
def test_settings_of_the_sampler_are_parsed(text, wanted):
  assert export_cli.settings("--sampling", text) == wanted


@pytest.mark.parametrize("text", ["temperature", "=1", "top_k=", "a=1,,b=2"])
def test_a_setting_without_a_name_or_value_is_one_line(text):
  with pytest.raises(errors.UserError, match=r"^--slide.*not a setting such"):
    export_cli.settings("--slide", text)


def test_the_model_card_states_figures_and_no_local_paths(folder, run):
  text = (folder / "README.md").read_text()
  assert "| delta psnr | 0.5 |" in text
  for path in folder.rglob("*"):
    if path.suffix in (".json", ".md"):
      assert str(run.parent) not in path.read_text()


@pytest.mark.parametrize(
  "name", ("model.safetensors", "config.json", "prompts/01.png")
)
def test_one_flipped_bit_is_refused(folder, tmp_path, name):
  copy = copy_of(folder, tmp_path)
  content = bytearray((copy / name).read_bytes())
  content[len(content) // 2] ^= 1
  (copy / name).write_bytes(content)
  with pytest.raises(errors.UserError, match="is damaged") as caught:
    world_folder.load(copy)
  assert name in str(caught.value) and "\n" not in str(caught.value)


def copy_of(folder, tmp_path):
  copy = tmp_path / "copy"
  for path in folder.rglob("*"):
    if path.is_file():
      target = copy / path.relative_to(folder)
      target.parent.mkdir(parents=True, exist_ok=True)
      target.write_bytes(path.read_bytes())
  return copy


def test_missing_files_edited_manifests_and_other_folders_are_refused(
  folder, tmp_path
):
  copy = copy_of(folder, tmp_path)
  manifest = json.loads((copy / "manifest.json").read_text())
  (copy / "manifest.json").write_text(
    json.dumps({**manifest, "metrics": {"delta_psnr": 9.0}})
  )
  with pytest.raises(errors.UserError, match="was changed"):
    world_folder.load(copy)
  (copy / "manifest.json").write_text(
    json.dumps({**manifest, "schema_version": 99})
  )
  with pytest.raises(errors.UserError, match="schema version 99"):
    world_folder.load(copy)
  (copy / "manifest.json").write_text(json.dumps(manifest))
  (copy / "prompts" / "00.png").unlink()
  with pytest.raises(errors.UserError, match="is missing"):
    world_folder.load(copy)
  with pytest.raises(errors.UserError, match="is not a world"):
    world_folder.load(tmp_path / "absent")


def test_a_world_is_replaced_but_other_folders_are_not(run, tmp_path):
  out = tmp_path / "w"
  export.export([run], out, name="first")
  export.export([run], out, name="second")
  assert world_folder.load(out).name == "second"
  assert [path.name for path in tmp_path.iterdir()] == ["w"]
  (tmp_path / "mine").mkdir()
  (tmp_path / "mine" / "notes.txt").write_text("mine")
  with pytest.raises(errors.UserError, match="not empty and is not a world"):
    export.export([run], tmp_path / "mine")


def test_a_tokenizer_that_did_not_make_the_tokens_is_refused(run, tmp_path):
  store.save(
    tmp_path / "other", {"tokenizer": tiny_world.make_part("tokenizer", seed=1)}
  )
  with pytest.raises(errors.UserError, match="made by the tokenizer"):
    export.export([run, tmp_path / "other"], tmp_path / "w")
  assert not (tmp_path / "w").exists()


def test_a_tokenizer_alone_is_not_a_world(models, tmp_path):
  with pytest.raises(errors.UserError, match="No dynamics model"):
    export.export([models["tokenizer"]], tmp_path / "w")


def test_a_world_of_true_actions_has_no_lam(tokens, parts, tmp_path):
  run = tiny_world.write_workdir(
    tmp_path / "run",
    "dynamics",
    tiny_world.MODELS["dynamics"],
    parts["dynamics"].params,
    data=str(tokens),
    actions="true",
  )
  export.export([run], tmp_path / "w")
  world = world_folder.load(tmp_path / "w").world
  assert set(world.parts) == {"tokenizer", "dynamics"}
  with pytest.raises(errors.UserError, match="has 5 true actions"):
    world.rollout(prompt(), [5])
  with pytest.raises(errors.UserError, match="give one frame"):
    world.rollout(prompt(frames=2), [0])


def test_a_joint_workdir_contains_lam_and_dynamics(tokens, parts, tmp_path):
  both = {
    "lam": tiny_world.make_part("lam", seed=3),
    "dynamics": parts["dynamics"],
  }
  run = tiny_world.write_workdir(
    tmp_path / "run",
    "joint",
    {name: tiny_world.MODELS[name] for name in both},
    {name: part.params for name, part in both.items()},
    data=str(tokens),
  )
  export.export([run], tmp_path / "w", dtype="float32")
  found = world_folder.load(tmp_path / "w").world.parts["lam"].params
  jax.tree.map(np.testing.assert_array_equal, found, both["lam"].params)


def test_loading_a_world_imports_no_training_code():
  code = (
    "import sys; from genie_jax.worlds import world_folder; "
    "print([m for m in sys.modules if m.startswith(('genie_jax.train', "
    "'genie_jax.stages', 'genie_jax.data', 'grain'))])"
  )
  found = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  assert found.stdout.strip() == "[]"


def test_a_rollout_is_the_prompt_and_a_frame_for_each_action(world):
  frames = world.rollout(prompt(frames=3), [0] * 7)
  assert frames.shape == (10, *tiny_world.SHAPE) and frames.dtype == np.uint8
  tokens = world.encode(prompt(frames=3)[None])
  # Decoded by another program, so rounding may differ.
  assert (
    np.abs(frames[:3].astype(int) - world.decode(tokens)[0].astype(int)).max()
    <= 1
  )


def test_a_rollout_also_accepts_one_frame_without_a_time_axis(world):
  np.testing.assert_array_equal(
    world.rollout(prompt()[0], [0, 1]), world.rollout(prompt(), [0, 1])
  )


@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
def test_weights_cast_once_give_the_same_logits_as_cast_in_every_call(
  parts, dtype
):
  part = parts["dynamics"]
  module = part.module.clone(
    transformer={**part.module.transformer, "dtype": dtype}
  )
  random = np.random.default_rng(0)
  tokens = random.integers(0, 13, (2, 4, 2, 3), np.int32)
  hidden = random.random(tokens.shape) < 0.5
  actions = random.integers(0, 5, (2, 3), np.int32)
  run = lambda module, params: np.asarray(
    jax.jit(
      lambda params: module.apply({"params": params}, tokens, actions, hidden)
    )(params)
  )
  ready, cast = prepare.for_play(module, part.params, dtype)
  assert cast["to_logits"]["kernel"].dtype == dtype
  np.testing.assert_array_equal(run(ready, cast), run(module, part.params))


def test_only_the_end_of_a_prompt_longer_than_the_window_is_used(world):
  long = prompt(frames=6)
  np.testing.assert_array_equal(
    world.rollout(long, [0, 1]), world.rollout(long[-4:], [0, 1])
  )


@pytest.mark.parametrize("action", (-1, 5, 99))
def test_an_action_out_of_range_is_refused(world, action):
  with pytest.raises(errors.UserError, match=f"Action {action} is out of"):
    world.rollout(prompt(), [0, action])


def test_models_of_different_worlds_are_refused(parts):
  with pytest.raises(errors.UserError, match="num_latent_actions=9"):
    world_lib.World(
      {**parts, "lam": tiny_world.make_part("lam", num_latent_actions=9)}
    )
