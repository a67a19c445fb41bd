"""Tests that StableHLO programs draw the world's frames without its models."""

import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from genie_jax.core import errors
from genie_jax.ports.stablehlo import exporter, runtime
from genie_jax.worlds import world_folder
from tests.fixtures import tiny_world

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]
STEPS = 7  # The window holds 4 frames.


def write(folder, quantizer=None, **fields):
  parts = {
    "tokenizer": tiny_world.make_part("tokenizer", quantizer=quantizer),
    "dynamics": tiny_world.make_part("dynamics"),
  }
  world_folder.write(
    folder,
    parts,
    name="noise",
    actions="latent",
    sampling={"refinements": 3},
    prompts=np.zeros((0, *tiny_world.SHAPE), np.uint8),
    metrics={},
    made_by={},
    write_programs=exporter.write,
    **fields,
  )
  return folder


@pytest.fixture(scope="module", params=("float32", "int8"))
def written(request, tmp_path_factory):
  return write(tmp_path_factory.mktemp("worlds") / "w", dtype=request.param)


def pictures(count):
  return np.random.default_rng(0).integers(
    0, 256, (count, *tiny_world.SHAPE), dtype=np.uint8
  )


def play_both(world, ready, count):
  frames = pictures(count)
  tokens = ready.encode(frames[:, None])
  np.testing.assert_array_equal(tokens, world.encode(frames[:, None]))
  players = [world.reset(frame, seed=i) for i, frame in enumerate(frames)]
  state = ready.reset(tokens[:, 0], range(count))
  for number in range(STEPS):
    actions = [(number + i) % 5 for i in range(count)]
    state, found = ready.step(state, actions)
    for i, action in enumerate(actions):
      players[i], frame = world.step(players[i], action)
      # Rounding may differ in another program.
      assert np.abs(found[i].astype(int) - frame.astype(int)).max() <= 1


@pytest.mark.parametrize(
  "slide", ({"mode": "rolling"}, {"mode": "exact", "drop": 2})
)
def test_programs_slide_like_their_world(tmp_path, slide):
  folder = write(tmp_path / "w", dtype="float32", slide=slide)
  play_both(world_folder.load(folder).world, runtime.load(folder), 3)


def test_programs_quantize_with_fsq_like_their_world(tmp_path):
  folder = write(tmp_path / "w", quantizer={"name": "fsq"}, dtype="float32")
  ready = runtime.load(folder)
  play_both(world_folder.load(folder).world, ready, 3)
  tokens = ready.encode(pictures(8)[:, None])
  assert len(np.unique(tokens)) > 3


def test_a_slide_is_computed_only_if_a_players_window_is_full(
  tmp_path, monkeypatch
):
  made = []
  monkeypatch.setattr(
    exporter, "_exported", lambda *given: made.append(given) or b""
  )
  write(tmp_path / "w", dtype="float32")
  step, weights, inputs = made[-1]
  rows = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct((3, *x.shape), x.dtype), inputs
  )
  program = jax.make_jaxpr(step)(weights, *rows)
  # A cond inside vmap would become a select, which computes both branches.
  choices = [
    equation for equation in program.eqns if equation.primitive.name == "cond"
  ]
  assert len(choices) == 1


def test_programs_draw_the_frames_of_the_world_for_any_batch(written):
  world, ready = world_folder.load(written).world, runtime.load(written)
  for count in (1, 3):
    play_both(world, ready, count)
  clip = np.random.default_rng(1).integers(0, 13, (2, 4, 2, 3))
  np.testing.assert_allclose(
    ready.decode(clip).astype(int), world.decode(clip.astype(np.int32)), atol=1
  )


def test_programs_run_without_the_packages_models(written):
  code = (
    "import sys\n"
    "for name in ('models', 'nn', 'sampling', 'train'):\n"
    "  sys.modules[f'genie_jax.{name}'] = None\n"
    "sys.modules['flax'] = None\n"
    "import numpy as np\n"
    "from genie_jax.ports.stablehlo import runtime\n"
    f"world = runtime.load({str(written)!r})\n"
    "frames = np.zeros((2, 1, *world.frame_shape), np.uint8)\n"
    "state = world.reset(world.encode(frames)[:, 0], [0, 1])\n"
    "state, shown = world.step(state, [1, 2])\n"
    "print(shown.shape, shown.dtype)\n"
  )
  done = subprocess.run(
    [sys.executable, "-c", code],
    capture_output=True,
    text=True,
    cwd=ROOT,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  assert done.stdout.strip() == "(2, 8, 12, 3) uint8"


def test_invalid_inputs_raise_a_one_line_error(written, tmp_path):
  ready = runtime.load(written)
  with pytest.raises(errors.UserError, match="are out of range"):
    ready.step(ready.reset(np.zeros((1, 2, 3), np.int32), [0]), [5])
  with pytest.raises(errors.UserError, match="Clips of 5 frames do not fit"):
    ready.encode(np.zeros((1, 5, *tiny_world.SHAPE), np.uint8))
  with pytest.raises(errors.UserError, match="has no programs"):
    runtime.load(ROOT / "experiments/coinrun/results/world")
