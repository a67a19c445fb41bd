"""Tests of the compiled steps on meshes with a frame axis.

Each group of devices has one clip, so that without the frame axis the clip
could not be split. The model is small relative to a clip: every matrix has
fewer values than the clip has activations, so a gather of weights cannot be
mistaken for a gather of activations.
"""

import math
import re

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from experiments.coinrun import common
from tests.fixtures import stage_training

FRAMES, TOKENS, WIDTH = 24, 16, 32
# Size of the frame axis -> groups: two, or one if there are too few devices.
GROUPS = {1: 2, 2: 2, 4: 2, 8: 1}
STEPS = ("train", "evaluate")
SIZES = [4, *(pytest.param(size, marks=pytest.mark.slow) for size in (2, 8))]
# Number of all-to-alls: from frames to places and back in the forward and in
# the backward loop over blocks, and one more where the backward pass computes
# the block again.
EXCHANGES = {"train": 5, "evaluate": 2}


def lower(frame):
  """Returns the lowered steps for a mesh that splits clips `frame` ways."""
  config = stage_training.load("dynamics")
  config.world.num_frames = config.data.num_frames = FRAMES
  config.model.transformer.update(
    num_layers=2, unroll=1, remat="full", width=WIDTH, mlp_dim=2 * WIDTH
  )
  config.optimizer = common.adamw(  # Compiles faster than the orthogonal one.
    peak_lr=1e-3, end_lr=1e-4, warmup_steps=1
  )
  config.data.batch_size = GROUPS[frame]
  config.mesh.update(data=1, fsdp=GROUPS[frame], tensor=1, frame=frame)
  made = stage_training.steps(config, GROUPS[frame] * frame)
  batch = stage_training.random_batch(made.stage, config)
  assert batch["tokens"].shape == (GROUPS[frame], FRAMES, 4, 4)
  return {
    "train": made.train.lower(made.like, batch),
    "evaluate": made.evaluate.lower(
      made.like.params, made.like.extra, batch, jax.random.key(0)
    ),
  }


@pytest.fixture(scope="module")
def steps():
  """Returns a step's (text, temporary bytes per device), compiled once."""
  lowered, kept = {}, {}

  def get(name, frame):
    if (name, frame) not in kept:
      if frame not in lowered:
        lowered[frame] = lower(frame)
      program = lowered[frame][name].compile()
      kept[name, frame] = (
        program.as_text(),
        program.memory_analysis().temp_size_in_bytes,
      )
    return kept[name, frame]

  return get


def collectives(text, *kinds):
  """Returns (number of floats of the largest array, line) of collectives."""
  found = []
  for line in text.splitlines():
    made = re.search(rf"= (.*?) (?:{'|'.join(kinds)})(?:-start)?\(", line)
    if made:
      # All arrays of a tuple; arrays of other types than floats are ignored.
      sizes = [
        math.prod(int(n) for n in dims.split(",") if n)
        for dims in re.findall(r"\bb?f\d\w*\[([\d,]*)\]", made[1])
      ]
      found.append((max(sizes, default=0), line))
  return found


def test_all_forms_of_a_gather_are_found():
  for line, size in {
    "%a = f32[1,8,16,32]{3,2,1,0} all-gather(%x), dimensions={1}": 4096,
    "ROOT %a = bf16[128,32]{1,0} all-gather(bf16[16,32] %x)": 4096,
    "%a = (f32[8]{0}, f32[64]{0}) all-gather-start(%x)": 64,
    "%a = (s32[9]{0}, f8e4m3fn[2,3]{1,0}) all-gather(%x, %y)": 6,
    "%a = s32[1,4,16]{2,1,0} all-gather(%x)": 0,
  }.items():
    assert collectives(line, "all-gather") == [(size, line)]
  assert not collectives(
    "%a = f32[8]{0} all-gather-done(%all-gather-start)", "all-gather"
  )
  assert not collectives("%b = f32[8] add(%all-gather.1, %x)", "all-gather")


def test_a_gathered_activation_would_be_found():
  mesh = jax.make_mesh((8,), ("frame",), (jax.sharding.AxisType.Auto,))
  place = lambda *axes: jax.sharding.NamedSharding(mesh, P(*axes))
  text = (
    jax.jit(
      lambda x: x * 2, in_shardings=place(None, "frame"), out_shardings=place()
    )
    .lower(jax.ShapeDtypeStruct((1, FRAMES, TOKENS, WIDTH), np.float32))
    .compile()
    .as_text()
  )
  assert [size for size, _ in collectives(text, "all-gather")] == [
    FRAMES * TOKENS * WIDTH
  ]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("frame", SIZES)
def test_no_activation_is_gathered_whole(steps, step, frame):
  text, _ = steps(step, frame)
  # Each group has one clip. All-reduces are smaller than a clip as well,
  # because only gradients of weights are summed.
  moved = collectives(text, "all-gather", "all-reduce")
  assert moved
  for size, line in moved:
    assert size < FRAMES * TOKENS * WIDTH, line


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("frame", SIZES)
def test_every_block_exchanges_frames_and_places_by_all_to_all(
  steps, step, frame
):
  text, _ = steps(step, frame)
  # A loop's body is the same for all blocks.
  in_loops = [
    line
    for _, line in collectives(text, "all-to-all")
    if "while/body" in line and "/layers/" in line
  ]
  assert len(in_loops) == EXCHANGES[step]


@pytest.mark.parametrize("step", STEPS)
def test_without_the_frame_axis_there_is_no_all_to_all(steps, step):
  assert not collectives(steps(step, 1)[0], "all-to-all")


@pytest.mark.slow  # Compiles every size.
@pytest.mark.parametrize("step", STEPS)
def test_temporaries_of_a_device_fall_as_the_axis_grows(steps, step):
  sizes = [steps(step, frame)[1] for frame in GROUPS]
  assert sizes == sorted(set(sizes), reverse=True)
  assert sizes[-1] < 0.5 * sizes[0]
