"""Tests of playing a world step by step."""

import gc

import jax
import numpy as np
import pytest

from genie_jax.core import errors
from genie_jax.models import store
from genie_jax.sampling import maskgit, slide
from genie_jax.sharding import mesh as mesh_lib
from genie_jax.weights import placement
from genie_jax.worlds import world as world_lib
from tests.fixtures import tiny_world

# The second and third compile for as long as the first.
BY_COST = [
  mode if mode == "exact" else pytest.param(mode, marks=pytest.mark.slow)
  for mode in slide.MODES
]
COMPILED = "/jax/core/compile/backend_compile_duration"


@pytest.fixture(scope="module")
def world(parts):
  return world_lib.World(parts, sampling=maskgit.MaskGIT(refinements=3))


def picture(frames=1, seed=0):
  random = np.random.default_rng(seed)
  return random.integers(0, 256, (frames, *tiny_world.SHAPE), dtype=np.uint8)


def play(world, state, actions):
  frames = []
  for action in actions:
    state, frame = world.step(state, action)
    frames.append(frame)
  return state, np.stack(frames)


def test_a_step_returns_a_frame_and_the_state_shows_it(world):
  state = world.reset(picture()[0])
  shown = world.show(state)
  assert shown.shape == tiny_world.SHAPE and shown.dtype == np.uint8
  np.testing.assert_allclose(
    shown, world.decode(world.encode(picture()[None]))[0, 0], atol=1
  )
  state, frame = world.step(state, 2)
  assert frame.shape == tiny_world.SHAPE and frame.dtype == np.uint8
  np.testing.assert_array_equal(world.show(state), frame)


def test_a_rollout_equals_its_steps(world):
  actions = [0, 3, 1, 1, 4, 2, 0, 3]
  _, frames = play(world, world.reset(picture(3), seed=5), actions)
  np.testing.assert_array_equal(
    world.rollout(picture(3), actions, seed=5)[3:], frames
  )


def test_a_fork_is_not_changed_and_replays_the_same_frames(world):
  state, _ = play(world, world.reset(picture(), seed=1), [0, 1])
  kept = world.fork(state)
  before = world.show(kept)
  actions = [2, 3, 4, 0, 1, 2, 3]
  state, first = play(world, state, actions)
  np.testing.assert_array_equal(world.show(kept), before)
  _, branch = play(world, world.fork(kept), [4, 0])
  _, second = play(world, kept, actions)
  np.testing.assert_array_equal(first, second)
  assert (branch[:2] != first[:2]).any()


def test_a_state_is_used_up_by_a_step(world):
  state = world.reset(picture())
  world.step(state, 0)
  assert state.cache.key.is_deleted()
  for use in (
    lambda: world.step(state, 0),
    lambda: world.step_many([state], [0]),
    lambda: world.fork(state),
    lambda: world.show(state),
  ):
    with pytest.raises(errors.UserError, match="used up by an earlier step"):
      use()


def test_other_values_and_the_same_player_twice_are_refused(world):
  for thing in (None, "player", picture()):
    with pytest.raises(errors.UserError, match="A player is a state that"):
      world.step(thing, 0)
  state = world.reset(picture())
  with pytest.raises(errors.UserError, match="is given twice"):
    world.step_many([state, state], [0, 1])
  with pytest.raises(errors.UserError, match="2 actions were given for one"):
    world.step(state, [0, 1])
  world.step(state, 0)


@pytest.mark.parametrize("seed", (-1, 1 << 32, 1.5, "a", None, True))
def test_a_seed_that_is_not_an_unsigned_32_bit_integer_is_refused(world, seed):
  with pytest.raises(errors.UserError, match="from 0 to 4294967295"):
    world.reset(picture(), seed=seed)


def test_nothing_is_compiled_after_warm_up(parts):
  world = world_lib.World(parts, sampling=maskgit.MaskGIT(refinements=2))
  world.warm_up((1, 2))
  count = []
  listen = lambda event, seconds, **_: (
    count.append(event) if event == COMPILED else None
  )
  jax.monitoring.register_event_duration_secs_listener(listen)
  state = world.reset(picture()[0], seed=3)
  state, _ = play(world, state, [0, 1, 2, 3, 4] * 3)  # The window slides.
  other = world.fork(state)
  world.step_many([state, other], [1, 2])
  world.with_options(sampling=maskgit.MaskGIT(2, temperature=0.3)).reset(
    picture()[0]
  )
  jax.monitoring.unregister_event_duration_listener(listen)
  assert not count


@pytest.mark.parametrize("mode", BY_COST)
def test_many_players_get_the_same_frames_as_each_alone(world, mode):
  world = world.with_options(slide=slide.Slide(mode))
  reset = lambda: [
    world.reset(picture(count, count), seed=count) for count in (1, 3, 4)
  ]
  random = np.random.default_rng(0)
  pressed = random.integers(0, 5, (7, 3))
  together, shown = reset(), []
  for actions in pressed:
    together, frames = world.step_many(together, actions)
    shown.append(frames)
  shown = np.stack(shown, 1)
  for i, state in enumerate(reset()):
    _, frames = play(world, state, pressed[:, i])
    np.testing.assert_array_equal(shown[i], frames)


def test_stepping_no_players_returns_no_frames(world):
  states, frames = world.step_many([], [])
  assert states == [] and frames.shape == (0, *tiny_world.SHAPE)


@pytest.mark.parametrize("mode", BY_COST)
@pytest.mark.parametrize(
  "steps", (200, pytest.param(10_000, marks=pytest.mark.slow))
)
def test_memory_does_not_grow_with_steps(world, mode, steps):
  world = world.with_options(
    sampling=maskgit.MaskGIT(1), slide=slide.Slide(mode)
  )
  state, _ = play(world, world.reset(picture()[0]), [0] * 9)
  gc.collect()
  before = sum(x.nbytes for x in jax.live_arrays())
  state, _ = play(world, state, (i % 5 for i in range(steps)))
  gc.collect()
  assert sum(x.nbytes for x in jax.live_arrays()) == before
  assert int(state.number) == steps + 10


@pytest.mark.parametrize("dtype", ("bfloat16", "int8"))
def test_weights_in_bfloat16_and_int8_can_be_played(parts, dtype, tmp_path):
  store.save(tmp_path, parts, dtype=dtype)
  found = store.load(tmp_path, place=placement.make(dtype)).parts
  world = world_lib.World(found, sampling=maskgit.MaskGIT(2))
  _, frames = play(world, world.reset(picture(2)), [0, 1, 2, 3])
  assert frames.shape == (4, *tiny_world.SHAPE)


@pytest.mark.slow
def test_a_world_split_over_eight_devices_draws_the_same_frames(
  tmp_path, monkeypatch
):
  stack = dict(tiny_world.MODELS["dynamics"]["transformer"], num_heads=4)
  for name, model in tiny_world.MODELS.items():
    monkeypatch.setitem(
      tiny_world.MODELS,
      name,
      {
        field: stack if isinstance(value, dict) else value
        for field, value in model.items()
      },
    )
  parts = {
    name: tiny_world.make_part(name, num_codes=16)
    for name in ("tokenizer", "dynamics")
  }
  sampling = maskgit.MaskGIT(refinements=3)
  world = world_lib.World(parts, sampling=sampling)
  store.save(tmp_path, parts)
  mesh = mesh_lib.make(dict(data=1, fsdp=1, tensor=4, frame=2))
  found = store.load(tmp_path, place=placement.make(mesh=mesh)).parts
  spread = world_lib.World(found, sampling=sampling, mesh=mesh)
  kernel = found["dynamics"].params["stack"]["layers"]["mlp_in"]["kernel"]
  assert len(kernel.sharding.device_set) == 8
  assert kernel.addressable_shards[0].data.size <= kernel.size / 4
  actions = [0, 3, 1, 4, 2, 2]
  state, frames = play(spread, spread.reset(picture()), actions)
  _, wanted = play(world, world.reset(picture()), actions)
  np.testing.assert_array_equal(frames, wanted)
  other = spread.fork(state)
  _, (one, two) = spread.step_many([state, other], [1, 1])
  np.testing.assert_array_equal(one, two)


def test_a_mesh_that_splits_batches_is_refused(parts):
  mesh = mesh_lib.make(
    dict(data=2, fsdp=1, tensor=1, frame=1), jax.devices()[:2]
  )
  with pytest.raises(errors.UserError, match="to the axis tensor"):
    world_lib.World(parts, mesh=mesh)


@pytest.mark.parametrize(
  "frames, given, message",
  (
    (np.zeros((2, *tiny_world.SHAPE), np.uint8), [0, 1], "one fewer"),
    (np.zeros((2, *tiny_world.SHAPE), np.uint8), [9], "out of range"),
  ),
)
def test_actions_that_do_not_fit_the_prompt_are_refused(
  world, frames, given, message
):
  with pytest.raises(errors.UserError, match=message) as caught:
    world.reset(frames, latent_actions=given)
  assert "\n" not in str(caught.value)


def test_given_actions_replace_inferred_ones(world):
  frames = picture(3)
  inferred = np.asarray(world.infer_actions(frames[None]))[0]
  state = world.reset(frames, latent_actions=inferred)
  jax.tree.map(
    lambda x, y: np.testing.assert_array_equal(x, y),
    state.replace(key=0),
    world.reset(frames).replace(key=0),
  )


@pytest.mark.parametrize("action", (-1, 5, 1.5, "up"))
def test_an_invalid_action_does_not_use_up_the_state(world, action):
  state = world.reset(picture())
  with pytest.raises(errors.UserError):
    world.step(state, action)
  with pytest.raises(errors.UserError):
    world.step_many([state], [action])
  with pytest.raises(errors.UserError, match="one for each"):
    world.step_many([state], [0, 1])
  world.step(state, 0)


@pytest.mark.parametrize(
  "fields, message",
  (
    (dict(mode="exactly"), "did you mean 'exact'"),
    (dict(drop=4), "1 to 3 at once"),
    (dict(drop=0), "1 to 3 at once"),
    (dict(mode="rolling", drop=2), "leave it at 1"),
    (dict(keep=1), "Unknown field slide.keep"),
  ),
)
def test_an_invalid_slide_is_refused(world, fields, message):
  with pytest.raises(errors.UserError, match=message):
    slide.make_slide(fields, world.num_frames)
