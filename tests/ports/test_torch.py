"""Tests that worlds in PyTorch have the tokens, logits and frames of JAX."""

import pathlib
import subprocess
import sys

import flax.linen as nn
import jax
import numpy as np
import PIL.Image
import pytest

from genie_jax.core import errors
from genie_jax.models import store
from genie_jax.nn import fsq
from genie_jax.sampling import samplers
from genie_jax.worlds import world_folder
from tests.fixtures import foreign_parts, tiny_world

torch = pytest.importorskip(
  "torch", reason="PyTorch is an extra: pip install genie_jax[torch]"
)

from genie_jax.ports.torch import maskgit, quantizers, weights  # noqa: E402
from genie_jax.ports.torch import samplers as torch_samplers  # noqa: E402
from genie_jax.ports.torch import world as world_lib  # noqa: E402  Needs torch.

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]
SHIPPED = ROOT / "experiments/coinrun/results/world"
# Relative to the largest value; float32 sums are in another order.
TOLERANCE = 1e-4


@pytest.fixture(scope="module", autouse=True)
def one_thread():
  before = torch.get_num_threads()
  torch.set_num_threads(1)
  yield
  torch.set_num_threads(before)


def part(name, quantizer=None, **model):
  made = tiny_world.make_part(name, quantizer=quantizer)
  if not model:
    return made
  fields = {
    "world": made.config["world"],
    "model": {**made.config["model"], **model},
  }
  fresh = store.part(name, fields, {})
  shapes = store.abstract_params(name, fields)
  draw = np.random.default_rng(1)
  params = jax.tree.map(
    lambda x: draw.normal(0, 0.5, x.shape).astype(np.float32), nn.unbox(shapes)
  )
  return store.Part(fresh.module, fields, params)


def write(folder, quantizer=None, **fields):
  parts = {
    "tokenizer": part("tokenizer", quantizer),
    "lam": fields.pop("lam", None) or part("lam", quantizer),
    "dynamics": fields.pop("dynamics", None) or part("dynamics"),
  }
  sampling = {"refinements": 3, "temperature": 1.0}
  fields = {"num_prompts": 0, "sampling": sampling, **fields}
  tiny_world.write_world(folder, parts, **fields)
  return world_folder.load(folder).world, world_lib.load_world(folder)


def of_torch(x):
  return torch.from_numpy(np.array(x))


def close(found, wanted):
  found, wanted = np.asarray(found), np.asarray(wanted)
  assert np.abs(found - wanted).max() <= TOLERANCE * np.abs(wanted).max()


def compare(ours, theirs, seed=0):
  """Compares tokenizer, LAM and dynamics model on noise."""
  rng = np.random.default_rng(seed)
  dynamics = ours.parts["dynamics"]
  world = dynamics.config["world"]
  grid = theirs.dynamics.grid
  frames = rng.integers(0, 256, (2, 4, *ours.frame_shape), dtype=np.uint8)
  tokens = rng.integers(0, world["num_codes"], (2, 4, *grid))
  actions = rng.integers(0, ours.num_actions, (2, 3))
  hidden = rng.random(tokens.shape) < 0.5
  scaled = of_torch(frames).float() / 255
  with torch.no_grad():
    np.testing.assert_array_equal(
      theirs.tokenizer.encode(scaled), ours.encode(frames)
    )
    np.testing.assert_array_equal(
      theirs.lam.encode(scaled), ours.infer_actions(frames)
    )
    shown = theirs.tokenizer.decode(of_torch(tokens))
    logits = theirs.dynamics(*map(of_torch, (tokens, actions, hidden)))
  # Rounding may differ by one of 255 levels.
  wanted = ours.decode(tokens.astype(np.int32)).astype(int)
  assert np.abs(np.round(shown.numpy() * 255) - wanted).max() <= 1
  run = jax.jit(
    lambda params, *inputs: dynamics.module.apply({"params": params}, *inputs)
  )
  close(
    logits,
    run(
      dynamics.params, tokens.astype(np.int32), actions.astype(np.int32), hidden
    ),
  )


@pytest.mark.parametrize("dtype", ("float32", "bfloat16", "int8"))
def test_tokens_actions_and_logits_equal_those_of_jax(tmp_path, dtype):
  compare(*write(tmp_path / "w", dtype=dtype, shard_bytes=4000))


def test_a_lam_that_sees_motion_gives_the_actions_of_jax(tmp_path):
  fields = dict(
    shrink=2, patch=2, reach=(1, 2), match=True, predict="shift",
    encoder={**tiny_world.STACK, "window": 2},
    decoder={**tiny_world.STACK, "window": 2},
  )  # fmt: skip
  ours, theirs = write(tmp_path / "w", lam=part("lam", **fields))
  compare(ours, theirs)
  frames = np.random.default_rng(2).integers(
    0, 256, (16, 9, *ours.frame_shape), dtype=np.uint8
  )
  found = theirs.lam.encode(of_torch(frames).float() / 255)
  np.testing.assert_array_equal(found, ours.infer_actions(frames))
  assert len(np.unique(found)) > 1


def test_a_lam_with_buttons_presses_those_of_jax(tmp_path):
  buttons = {
    "names": ["left", "right", "nothing", "up", "down"],
    "button_of": [0, -1, 2, 3, 4],
    "longest": [0, 0, 0, 2, 1],
    "first": 2,
  }
  ours, theirs = write(tmp_path / "w", lam=part("lam", buttons=buttons))
  frames = np.random.default_rng(2).integers(
    0, 256, (16, 9, *ours.frame_shape), dtype=np.uint8
  )
  found = theirs.lam.encode(of_torch(frames).float() / 255)
  np.testing.assert_array_equal(found, ours.infer_actions(frames))
  assert len(np.unique(found)) > 1


def test_a_lam_on_longer_clips_than_in_training_is_refused(tmp_path):
  made = part("lam")
  short = store.part("lam", made.config, made.params, trained_frames=3)
  ours, theirs = write(tmp_path / "w", lam=short)
  frames = np.zeros((1, 4, *ours.frame_shape), np.uint8)
  said = "trained on clips of 3 frames and cannot infer the actions of 4"
  with pytest.raises(errors.UserError, match=said):
    theirs.lam.encode(of_torch(frames).float())
  with pytest.raises(errors.UserError, match=said):
    ours.infer_actions(frames)
  with pytest.raises(errors.UserError, match=said):
    theirs.reset(frames[0])
  with pytest.raises(errors.UserError, match=said):
    ours.reset(frames[0])
  assert theirs.reset(frames[0, :3]).position == 2
  assert ours.reset(frames[0, :3]).position == 2


def test_fsq_codes_equal_those_of_jax(tmp_path):
  ours, theirs = write(tmp_path / "w", quantizer={"name": "fsq"})
  compare(ours, theirs)
  frames = np.random.default_rng(1).integers(
    0, 256, (8, 4, *ours.frame_shape), dtype=np.uint8
  )
  assert len(np.unique(ours.encode(frames))) > 3
  # Levels that do not fit raise a one-line error.
  group = dict(theirs.tokenizer.quantizer, levels=[3, 5])
  with pytest.raises(errors.UserError, match=r"multiplies to 15.*13 codes"):
    quantizers.build(group, theirs.tokenizer.fields, {}, 13)


@pytest.mark.parametrize("levels", [(13,), (16, 8, 8), (8, 5, 5, 5), (3, 2)])
def test_fsq_vectors_equal_those_of_jax_bit_for_bit(levels):
  ours = fsq.FSQ(levels)
  group = {"name": "fsq", "levels": list(levels)}
  model = {"code_dim": 4}
  theirs = quantizers.build(group, model, {}, ours.num_codes)
  codes = np.arange(ours.num_codes)
  wanted = np.asarray(ours.apply({}, codes, method="lookup"))
  np.testing.assert_array_equal(theirs.lookup(of_torch(codes)), wanted)
  x = np.random.default_rng(0).normal(size=(4000, len(levels)))
  x = x.astype(np.float32)
  found = theirs.encode(of_torch(x)).numpy()
  # Ties may be rounded differently if tanh differs in its last bit.
  assert (found != np.asarray(ours.apply({}, x).codes)).mean() < 1e-3


@pytest.mark.parametrize(
  "model",
  (
    {"last_frame": True},
    {"last_frame": True, "last_frame_reach": 1},
    {"actions_enter": "prepend"},
    {
      "transformer": {
        **tiny_world.MODELS["dynamics"]["transformer"],
        "window": 2,
        "final_norm": False,
      }
    },
  ),
)
def test_every_option_of_the_dynamics_model_is_supported(tmp_path, model):
  compare(*write(tmp_path / "w", dynamics=part("dynamics", **model)))


def test_the_shipped_world_has_the_logits_of_jax():
  ours, theirs = world_folder.load(SHIPPED).world, world_lib.load_world(SHIPPED)
  compare(ours, theirs)
  assert theirs.name == ours.name and len(theirs.prompts) == 8


def jax_noise(state, sampling, places, codes):
  """Returns the noise of a player's next frame, as JAX draws it."""
  key = jax.random.fold_in(state.key, state.number)
  fold, gumbel = jax.random.fold_in, jax.random.gumbel
  order = fold(key, 0)
  if sampling.order == "random":
    tokens = gumbel(fold(key, 1), (1, places, codes))
    ranks = jax.random.uniform(order, (places,))[None]
  else:
    steps = range(1, min(sampling.refinements, places) + 1)
    tokens = np.stack([gumbel(fold(key, n), (places, codes)) for n in steps])
    ranks = np.stack([gumbel(fold(order, n), (places,)) for n in steps])
  return maskgit.Noise(of_torch(tokens), of_torch(ranks))


@pytest.mark.parametrize(
  "sampling",
  (
    {"refinements": 3, "temperature": 1.0},
    {"refinements": 4, "order": "confidence", "temperature": 0.7},
    {"refinements": 3, "top_k": 4, "top_p": 0.9},
  ),
)
@pytest.mark.parametrize("drop", (1, 2))
def test_a_player_draws_the_frames_of_jax_past_the_end_of_the_window(
  tmp_path, sampling, drop
):
  ours, theirs = write(
    tmp_path / "w", sampling=sampling, slide={"mode": "exact", "drop": drop}
  )
  picture = np.random.default_rng(3).integers(
    0, 256, tiny_world.SHAPE, dtype=np.uint8
  )
  state, other = ours.reset(picture, seed=5), theirs.reset(picture)
  places = int(np.prod(theirs.dynamics.grid))
  for number in range(9):  # The window holds 4.
    noise = jax_noise(state, ours.sampling, places, theirs.dynamics.num_codes)
    state, frame = ours.step(state, number % 5)
    other, found = theirs.step(other, number % 5, noise)
    # All frames of the history are equal, so differences cannot accumulate.
    kept = len(other.tokens)
    np.testing.assert_array_equal(
      other.tokens.numpy(), np.asarray(state.tokens)[-kept:]
    )
    assert np.abs(found.astype(int) - frame.astype(int)).max() <= 1


def test_the_shipped_world_can_be_played_with_noise_of_torch():
  world = world_lib.load_world(SHIPPED)
  picture = np.asarray(PIL.Image.open(world.prompts[0]).convert("RGB"))
  torch.manual_seed(0)
  state = start = world.reset(picture)
  for _ in range(3):
    state, frame = world.step(state, 1)
  assert frame.shape == world.frame_shape and frame.dtype == np.uint8
  assert np.abs(frame.astype(int) - start.frame.astype(int)).mean() > 0.5


def test_a_prompt_of_several_frames_starts_the_same_player(tmp_path):
  ours, theirs = write(tmp_path / "w")
  clip = np.random.default_rng(3).integers(
    0, 256, (3, *tiny_world.SHAPE), dtype=np.uint8
  )
  wanted, found = ours.reset(clip), theirs.reset(clip)
  np.testing.assert_array_equal(found.tokens, wanted.tokens[-3:])
  np.testing.assert_array_equal(found.incoming, wanted.incoming[-3:])


def test_invalid_inputs_raise_a_one_line_error(tmp_path):
  _, world = write(tmp_path / "w")
  with pytest.raises(errors.UserError, match="Action 5 is out of range"):
    world.step(world.reset(np.zeros(tiny_world.SHAPE, np.uint8)), 5)
  with pytest.raises(errors.UserError, match="resize them first"):
    world.reset(np.zeros((4, 4, 3), np.uint8))
  write(tmp_path / "exact")
  tiny_world.write_world(
    tmp_path / "r", slide={"mode": "rolling", "drop": 1}, sampling={}
  )
  match = "slides in mode 'rolling'.*load it with slide=\"exact\""
  with pytest.raises(errors.UserError, match=match):
    world_lib.load_world(tmp_path / "r")
  with pytest.raises(errors.UserError, match="only 'exact' is available"):
    world_lib.load_world(tmp_path / "r", slide="rolling")
  exact = world_lib.load_world(tmp_path / "r", slide="exact")
  state = exact.reset(np.zeros(tiny_world.SHAPE, np.uint8))
  for _ in range(5):  # Past the end of the window.
    state, frame = exact.step(state, 1)
  assert frame.shape == tiny_world.SHAPE and exact.drop == 1
  path = tmp_path / "w" / "model.safetensors"
  path.write_bytes(path.read_bytes()[:-1] + b"\1")
  with pytest.raises(errors.UserError, match="is damaged"):
    world_lib.load_world(tmp_path / "w")


class Raster:
  """The counterpart of `foreign_parts.Raster`, at temperature 0."""

  from_config = classmethod(lambda cls, fields: cls())

  def noise(self, grid, num_codes, device):
    return None

  def draw(self, score, grid, noise):
    places = torch.arange(grid[0] * grid[1])
    tokens = torch.zeros_like(places)
    for place in places:
      logits = score(tokens.reshape(grid), (places >= place).reshape(grid))
      tokens[place] = logits.reshape(len(places), -1)[place].argmax()
    return tokens.reshape(grid)


def test_a_world_of_another_sampler_needs_a_counterpart_in_pytorch(
  tmp_path, monkeypatch
):
  for known in (samplers.REGISTRY, torch_samplers.REGISTRY):
    monkeypatch.setattr(known, "_values", dict(known._values))
  samplers.register("raster", foreign_parts.Raster)
  fields = {"sampling": {"name": "raster", "temperature": 0.0}}
  with pytest.raises(
    errors.UserError,
    match=r"sampling\.name='raster': .* no counterpart in PyTorch; register "
    r"one with genie_jax\.ports\.torch\.samplers\.register",
  ):
    write(tmp_path / "w", **fields)
  with pytest.raises(errors.UserError, match=r"no method noise; it needs"):
    torch_samplers.register("raster", foreign_parts.Raster)
  torch_samplers.register("raster", Raster)
  ours, theirs = write(tmp_path / "v", **fields)
  prompt = np.random.default_rng(2).integers(
    0, 256, ours.frame_shape, dtype=np.uint8
  )
  state, other = ours.reset(prompt), theirs.reset(prompt)
  for action in range(6):  # The window has four frames.
    state, _ = ours.step(state, action % ours.num_actions)
    other, _ = theirs.step(other, action % ours.num_actions)
    np.testing.assert_array_equal(state.tokens[-1], other.tokens[-1])


def test_a_model_of_another_package_is_refused():
  own = tiny_world.MODELS["lam"]
  assert weights.expected("lam", {**own, "name": "lam"})
  with pytest.raises(errors.UserError, match="lam is the model 'mine', which"):
    weights.expected("lam", {**own, "name": "mine"})


def test_no_jax_is_loaded():
  code = (
    "import sys\n"
    "for name in ('jax', 'jaxlib', 'flax', 'ml_collections', 'ml_dtypes', "
    "'chex', 'absl'): sys.modules[name] = None\n"
    "from genie_jax.ports.torch import world\n"
    f"world = world.load_world({str(SHIPPED)!r})\n"
    "print(world.name)"
  )
  done = subprocess.run(
    [sys.executable, "-c", code],
    capture_output=True,
    text=True,
    cwd=ROOT,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  assert done.stdout.strip() == "coinrun"
