"""Tests of a world's pure functions under all transformations of JAX."""

import functools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

import genie_jax
from genie_jax.core import errors
from genie_jax.sampling import maskgit
from genie_jax.worlds import world as world_lib
from tests.fixtures import tiny_world

DOCS = pathlib.Path(__file__).parents[2] / "docs" / "sampling.md"
ACTIONS = np.array([[0, 3, 1, 4, 2, 2], [1, 1, 0, 2, 4, 3]], np.int32)


@pytest.fixture(scope="module")
def world(parts):
  return world_lib.World(parts, sampling=maskgit.MaskGIT(refinements=3))


def picture(frames=1, seed=0):
  random = np.random.default_rng(seed)
  return random.integers(0, 256, (frames, *tiny_world.SHAPE), dtype=np.uint8)


def played(world, prompt, seed, actions, **given):
  """Returns a world's first state and the frames that it draws."""
  state = world.reset(prompt, seed=seed, **given)
  first, frames = world.fork(state), []
  for action in actions:
    state, frame = world.step(state, action)
    frames.append(frame)
  return first, np.stack(frames)


def play(functions, params, prompt, key, actions):
  """Returns a rollout of one program, uint8 frames [F, H, W, C]."""
  state = functions.reset(params, prompt, key)
  step = functools.partial(functions.step, params)
  return jax.lax.scan(step, state, actions)[1]


@pytest.mark.parametrize("count", (1, pytest.param(3, marks=pytest.mark.slow)))
def test_reset_and_step_equal_those_of_the_world_bit_for_bit(world, count):
  functions = world.functions()
  state, wanted = played(world, picture(count), 5, ACTIONS[0])
  found = jax.jit(functions.reset)(
    functions.params, picture(count), functions.key(5)
  )
  jax.tree.map(
    np.testing.assert_array_equal,
    *(one.replace(key=jax.random.key_data(one.key)) for one in (found, state)),
  )
  step = jax.jit(functions.step)
  for action, frame in zip(ACTIONS[0], wanted, strict=True):
    found, shown = step(functions.params, found, action)
    assert shown.dtype == jnp.uint8
    np.testing.assert_array_equal(shown, frame)


def test_given_actions_replace_inferred_ones(world):
  functions = world.functions()
  _, wanted = played(world, picture(3), 0, ACTIONS[0], latent_actions=[4, 0])
  state = functions.reset(
    functions.params, picture(3), functions.key(0), jnp.array([4, 0])
  )
  np.testing.assert_array_equal(state.incoming[-2:], [4, 0])
  _, frames = jax.lax.scan(
    functools.partial(functions.step, functions.params), state, ACTIONS[0]
  )
  np.testing.assert_array_equal(frames, wanted)


def test_scan_vmap_and_shard_map_draw_what_the_world_draws(world):
  functions = world.functions()
  wanted = np.stack(
    [
      played(world, picture(), seed, actions)[1]
      for seed, actions in enumerate(ACTIONS)
    ]
  )
  keys = jnp.stack([functions.key(seed) for seed in range(len(ACTIONS))])
  run = functools.partial(play, functions)
  scanned = jax.jit(run)(functions.params, picture(), keys[0], ACTIONS[0])
  np.testing.assert_array_equal(scanned, wanted[0])
  many = jax.vmap(run, (None, None, 0, 0))
  found = jax.jit(many)(functions.params, picture(), keys, ACTIONS)
  np.testing.assert_array_equal(found, wanted)
  mesh = Mesh(jax.devices()[:2], ("players",))
  alone, each = PartitionSpec(), PartitionSpec("players")
  spread = jax.jit(
    jax.shard_map(
      many,
      mesh=mesh,
      in_specs=(alone, alone, each, each),
      out_specs=each,
      check_vma=False,
    )
  )
  found = spread(functions.params, picture(), keys, ACTIONS)
  assert len(found.sharding.device_set) == 2
  np.testing.assert_array_equal(found, wanted)


def test_the_functions_can_be_an_argument_of_a_compiled_function(world):
  warm = world.functions()
  cold = world.with_options(
    sampling=maskgit.MaskGIT(refinements=3, temperature=0.0)
  ).functions()
  run = jax.jit(
    lambda functions, key: play(
      functions, functions.params, picture(), key, ACTIONS[0]
    )
  )
  one, other = run(warm, warm.key(0)), run(cold, cold.key(0))
  # A temperature is an array, so another one does not recompile.
  assert run._cache_size() == 1
  assert (np.asarray(one) != np.asarray(other)).any()


@pytest.mark.slow
def test_the_example_in_the_docs_runs(world, tmp_path, monkeypatch):
  from genie_jax.core import images

  path = tmp_path / "prompt.png"
  images.save_png(path, picture()[0])
  monkeypatch.setattr(world, "prompts", (path,))
  monkeypatch.setattr(
    genie_jax, "load_world", dict.fromkeys(genie_jax.worlds(), world).get
  )
  code = next(
    block
    for block in re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.S)
    if "world.functions()" in block
  )
  names = {}
  # The code block in the documentation.
  exec(compile(code, str(DOCS), "exec"), names)  # noqa: S102
  frames = names["frames"]
  assert frames.shape == (4, 8, *tiny_world.SHAPE)
  assert frames.dtype == jnp.uint8 and len(frames.sharding.device_set) > 1
  np.testing.assert_array_equal(frames, names["many"])
  np.testing.assert_array_equal(frames[0], names["one"])


@pytest.mark.parametrize(
  "prompt, key, actions, message",
  (
    (picture()[0, 1:], jax.random.key(0), None, "`world.reset` resizes"),
    (picture()[0] / 255, jax.random.key(0), None, "take uint8 frames"),
    (picture()[0], jax.random.PRNGKey(0), None, "typed JAX key"),
    (picture()[0], jax.random.split(jax.random.key(0)), None, "give one"),
    (picture()[0], 7, None, "The key is int"),
    (picture(3), jax.random.key(0), [1], "one fewer than frames"),
    (picture(2), jax.random.key(0), [1.5], "latent_actions is float"),
  ),
)
def test_an_invalid_argument_of_reset_raises_a_one_line_error(
  world, prompt, key, actions, message
):
  functions = world.functions()
  with pytest.raises(errors.UserError, match=message) as caught:
    functions.reset(functions.params, prompt, key, actions)
  assert "\n" not in str(caught.value)


def test_an_invalid_action_raises_a_one_line_error(world):
  functions = world.functions()
  state = functions.reset(functions.params, picture(), functions.key(0))
  for action, message in (([0, 1], "jax.vmap"), (1.5, "action is float")):
    with pytest.raises(errors.UserError, match=message):
      functions.step(functions.params, state, action)


def test_several_frames_need_actions_or_a_latent_action_model(parts):
  alone = {name: parts[name] for name in ("tokenizer", "dynamics")}
  functions = world_lib.World(alone).functions()
  assert set(functions.params) == set(alone)
  with pytest.raises(errors.UserError, match="no latent action model"):
    functions.reset(functions.params, picture(2), functions.key(0))
  state = functions.reset(functions.params, picture(2), functions.key(0), [3])
  assert int(state.incoming[-1]) == 3


def test_the_error_of_tracing_a_world_names_its_functions(world):
  state = world.reset(picture())
  with pytest.raises(errors.UserError, match=r"`world\.functions\(\)`"):
    jax.jit(world.step)(state, 0)
