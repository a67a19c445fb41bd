"""Tests a dynamics model and a sampler of another package, end to end.

genie_jax has no references to them: a config file names them, and the user
allows worlds to use their package (GENIE_PLUGINS).
"""

import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import genie_jax
from genie_jax.cli import main
from genie_jax.core import errors, registry
from genie_jax.evals import evaluated_world
from genie_jax.models import protocols
from genie_jax.plan import aot_compile
from genie_jax.sampling import samplers
from genie_jax.sampling import slide as slide_lib
from genie_jax.worlds import world_folder
from tests.fixtures import (
  foreign_config,
  foreign_parts,
  stage_data,
  tiny_world,
)
from tests.plan import tpu_compiler

CONFIG = pathlib.Path(__file__).parent / "fixtures/foreign_config.py"
SHAPE = (16, 24, 3)
FRAMES = 7  # Beyond the window of 5.


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """Returns a folder with a workdir, a world and clips, made by commands."""
  folder = tmp_path_factory.mktemp("foreign")
  world = foreign_config.WORLD
  stage_data.write_tokens(
    folder / "tokens",
    SHAPE,
    grid=(2, 3),
    num_codes=world["num_codes"],
    num_frames=world["num_frames"],
    tokenizer=stage_data.random_part(
      "tokenizer", {"world": world, "model": tiny_world.MODELS["tokenizer"]}
    ),
  )
  stage_data.write_clips(folder / "clips", SHAPE, length=12)
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv(registry.PLUGINS, foreign_parts.__name__)
    patch.chdir(CONFIG.parent.parent.parent)
    for line in (
      f"train --config {CONFIG} --workdir {folder}/run "
      f"--config.data.path={folder}/tokens",
      f"export --workdir {folder}/run --out {folder}/world "
      f"--prompts {folder}/clips --dtype float32",
    ):
      assert main.main(line.split()) == 0, line
    yield folder


@pytest.fixture(scope="module")
def world(made):
  return genie_jax.load_world(made / "world")


def prompt():
  return np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.uint8)


def test_two_steps_of_training_change_its_parameters(made, world):
  lines = (made / "run/metrics.jsonl").read_text().splitlines()
  losses = [
    found["loss"] for found in map(json.loads, lines) if "loss" in found
  ]
  assert len(losses) == 2 and np.isfinite(losses).all()
  params = world.parts["dynamics"].params
  for started_at_zero in (
    params["keep"],
    params["mix"]["bias"],
    params["score"]["bias"],
  ):
    assert np.all(started_at_zero != 0)


def test_the_world_names_its_sampler_which_needs_permission_to_load(
  made, world, monkeypatch
):
  config = json.loads((made / "world/config.json").read_text())
  assert config["sampling"] == {
    "name": "tests.fixtures.foreign_parts:Raster",
    "temperature": 0.9,
  }
  assert isinstance(world.sampling, foreign_parts.Raster)
  monkeypatch.delenv(registry.PLUGINS)
  monkeypatch.setattr(registry, "_plugins", set())
  monkeypatch.setattr(
    samplers.REGISTRY,
    "_values",
    {samplers.DEFAULT: samplers.REGISTRY.get(samplers.DEFAULT, where="")},
  )
  with pytest.raises(errors.UserError, match=r"GENIE_PLUGINS=tests\.fix"):
    world_folder.load(made / "world")


@pytest.mark.parametrize("mode", slide_lib.MODES)
def test_equal_seeds_play_equal_frames_and_actions_matter(world, mode):
  other = world.with_options(slide=slide_lib.Slide(mode))

  def frames(actions, seed):
    state = other.reset(prompt(), seed=seed)
    shown = []
    for action in actions:
      state, frame = other.step(state, action)
      shown.append(frame)
    return np.stack(shown)

  actions = np.arange(FRAMES) % 15
  first = frames(actions, 1)
  np.testing.assert_array_equal(first, frames(actions, 1))
  assert (first != frames(actions, 2)).any()
  changed = frames(actions[::-1] + 3, 1)
  assert (first != changed).any()


def test_players_together_draw_what_each_draws_alone(world):
  states = [world.reset(prompt(), seed=seed) for seed in (0, 1)]
  states[1], _ = world.step(states[1], 3)  # At another position in its window.
  alone = [world.fork(state) for state in states]
  for action in range(FRAMES):
    states, frames = world.step_many(states, [action, action + 1])
    for i in range(2):
      alone[i], frame = world.step(alone[i], action + i)
      np.testing.assert_array_equal(frame, frames[i])


def test_a_player_draws_what_evaluation_draws(world):
  subject = evaluated_world.from_parts(
    world.parts, sampling=world.sampling, actions="true", fingerprint=""
  )
  assert subject.sampling["temperature"] == 0.9
  tokens = np.asarray(world.encode(prompt()[None, None]))
  actions = np.arange(FRAMES, dtype=np.int32)[None] % 15
  rolled = subject.rollout(tokens, actions, np.zeros(1, np.int32), 5)
  state = world.reset(prompt(), seed=5)
  for number, action in enumerate(actions[0], 1):
    state, _ = world.step(state, action)
    np.testing.assert_array_equal(state.tokens[-1], rolled[0, number])
  # The next frame after true frames equals that of a rollout from them.
  clip = rolled[:, : subject.num_frames]
  short = subject.rollout(
    clip[:, :-1], actions[:, : clip.shape[1] - 1], np.zeros(1, np.int32), 5
  )
  drawn = subject.next_frame(clip, actions[:, : clip.shape[1] - 1], 5)
  np.testing.assert_array_equal(drawn[0], short[0, -1])


def test_the_commands_play_and_evaluate_it(made, capsys):
  out = made / "rollout.gif"
  sample = f"sample --world {made}/world --actions 0,1,2 --out {out}"
  assert main.main([*sample.split(), "--temperature", "0"]) == 0
  assert out.read_bytes()[:3] == b"GIF"
  assert "4 frames, 3 of them generated" in capsys.readouterr().out
  assert main.main([*sample.split(), "--refinements", "3"]) == 2
  assert "refinements=3 does not apply" in capsys.readouterr().err
  evaluate = (
    f"eval --world {made}/world --clips {made}/clips --out {made}/eval "
    "--split validation --levels 1 --num-clips 4 --num-action-clips 4 "
    "--kmeans-patches 100"
  )
  assert main.main(evaluate.split()) == 0
  found = json.loads((made / "eval/metrics.json").read_text())
  assert np.isfinite(found["delta_psnr"])
  assert "Raster, temperature 0.9" in (made / "eval/report.html").read_text()


def test_its_steps_agree_with_the_whole_clip(world):
  part = world.parts["dynamics"]
  model = part.module
  protocols.check("dynamics", model)
  random = np.random.default_rng(1)
  tokens = random.integers(0, 13, (2, 6, *model.grid), dtype=np.int32)
  actions = random.integers(0, 15, (2, 5), dtype=np.int32)
  hidden = random.random(tokens.shape) < 0.5
  params = {"params": jax.tree.map(jnp.asarray, part.params)}
  apply = jax.jit(model.apply, static_argnames="method")
  whole = apply(params, tokens, actions, hidden)
  incoming = np.pad(actions, ((0, 0), (1, 0)), constant_values=model.no_action)
  step = lambda cache, start, stop: apply(
    params,
    tokens[:, start:stop],
    incoming[:, start:stop],
    hidden[:, start:stop],
    cache,
    start,
    tokens[:, start - 1] if start else None,
    method="step",
  )
  cache = model.empty_cache(2, 6)
  for start, stop in ((0, 2), (2, 3), (3, 6)):
    logits, own = step(cache if start else None, start, stop)
    np.testing.assert_allclose(logits, whole[:, start:stop], atol=1e-5)
    cache = cache.write(own, start)
  # The cache without its last frames equals the cache of the earlier frames.
  logits, _ = step(cache.before(jnp.int32(3)), 3, 6)
  np.testing.assert_allclose(logits, whole[:, 3:], atol=1e-5)


@tpu_compiler.required
def test_its_frames_are_planned(tmp_path, monkeypatch):
  for name in (*aot_compile.ENVIRONMENT, "JAX_ENABLE_COMPILATION_CACHE"):
    # Sets each variable, so that monkeypatch restores it after the test.
    monkeypatch.setenv(name, os.environ.get(name, "1"))
  line = (
    f"plan --config {CONFIG} --tokenizer {CONFIG}:tokenizer "
    f"--topology v5e:1x1 --sample --json {tmp_path}/plan.json"
  )
  assert main.main(line.split()) == 0
  found = json.loads((tmp_path / "plan.json").read_text())
  assert found["fits"] and found["seconds_per_frame"] > 0
  assert found["refinements"] == found["tokens_per_frame"] == 6
