r"""What it costs to sum gradients of weights over chips in bfloat16.

Run:  python benchmarks/gradient_sum.py --json FILE
Result: docs/scaling.md, "Numerics of long and large runs"

With kernels cast to bfloat16, each chip's gradient of a kernel is a bfloat16
array, and the sum over chips is in bfloat16 where the compiler does not widen
it. This program imitates that sum for a small regression network whose batch is
split over 4 to 256 chips: gradients of each chip rounded to bfloat16, added one
chip after the other as a ring does, and rounded after each addition. The
columns:

  chips            parts of the batch
  float32_parts    relative error of the gradient if only each chip's part is
                   rounded and the sum is float32
  bfloat16_sum     ... if the running sum is rounded too
  sampling         relative difference of the gradients of two batches, which is
                   the noise that training has anyway
  loss_*           last loss of a training with each of them, mean of --seeds
  spread           standard deviation of the float32 loss over seeds
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

from genie_jax.core import files, provenance

WIDTH, HIDDEN, BATCH, STEPS, RATE = 32, 64, 512, 300, 3e-3
SUMS = ("float32", "float32_parts", "bfloat16_sum")


def _initial(key):
  first, second = jax.random.split(key)
  return {
    "up": jax.random.normal(first, (WIDTH, HIDDEN)) / WIDTH**0.5,
    "down": jax.random.normal(second, (HIDDEN, WIDTH)) / HIDDEN**0.5,
  }


_TEACHER = _initial(jax.random.key(99))


def _forward(params, x):
  return jax.nn.gelu(x @ params["up"]) @ params["down"]


def _batch(key):
  x, noise = jax.random.split(key)
  x = jax.random.normal(x, (BATCH, WIDTH))
  return x, _forward(_TEACHER, x) + 0.3 * jax.random.normal(noise, x.shape)


def _loss(params, batch):
  x, y = batch
  return jnp.square(_forward(params, x) - y).mean()


def gradient(params, batch, chips: int, how: str):
  """Returns the loss and the gradient of a batch that is split over chips."""
  parts = jax.tree.map(lambda x: x.reshape(chips, -1, *x.shape[1:]), batch)
  losses, grads = jax.vmap(jax.value_and_grad(_loss), (None, 0))(params, parts)
  # Not a cast to bfloat16 and back, which the compiler may remove.
  short = lambda x: jax.lax.reduce_precision(x, 8, 7)
  if how == "float32":
    total = jax.tree.map(lambda x: x.sum(0), grads)
  elif how == "float32_parts":
    total = jax.tree.map(lambda x: short(x).sum(0), grads)
  else:
    add = lambda total, part: (short(total + short(part)), None)
    total = jax.tree.map(
      lambda x: jax.lax.scan(add, jnp.zeros_like(x[0]), x)[0], grads
    )
  return losses.mean(), jax.tree.map(lambda x: x / chips, total)


def train(seed, chips: int, how: str):
  """Returns the mean loss of the last 50 steps of Adam, without bias."""

  def step(carry, number):
    params, mean, square = carry
    key = jax.random.fold_in(jax.random.key(1), seed * STEPS + number)
    loss, grads = gradient(params, _batch(key), chips, how)
    mean = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, mean, grads)
    square = jax.tree.map(lambda v, g: 0.95 * v + 0.05 * g * g, square, grads)
    rate = RATE * jnp.minimum((number + 1) / 20, 1 - number / STEPS)
    params = jax.tree.map(
      lambda p, m, v: p - rate * m / (jnp.sqrt(v) + 1e-8), params, mean, square
    )
    return (params, mean, square), loss

  params = _initial(jax.random.fold_in(jax.random.key(2), seed))
  zeros = jax.tree.map(jnp.zeros_like, params)
  _, losses = jax.lax.scan(step, (params, zeros, zeros), jnp.arange(STEPS))
  return losses[-50:].mean()


def _distance(one, other) -> float:
  flat = [
    np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])
    for tree in (one, other)
  ]
  return float(np.linalg.norm(flat[0] - flat[1]) / np.linalg.norm(flat[1]))


def measure(chips: int, seeds: int) -> dict:
  """Returns the row of one number of chips."""
  params = _initial(jax.random.key(0))
  found = {
    how: jax.jit(gradient, static_argnums=(2, 3))(
      params, _batch(jax.random.key(5)), chips, how
    )[1]
    for how in SUMS
  }
  other = gradient(params, _batch(jax.random.key(6)), chips, "float32")[1]
  losses = {
    how: np.asarray(
      jax.jit(jax.vmap(lambda seed, how=how: train(seed, chips, how)))(
        jnp.arange(seeds)
      )
    )
    for how in ("float32", "bfloat16_sum")
  }
  return {
    "chips": chips,
    **{how: _distance(found[how], found["float32"]) for how in SUMS[1:]},
    "sampling": _distance(other, found["float32"]),
    "loss_float32": float(losses["float32"].mean()),
    "loss_bfloat16": float(losses["bfloat16_sum"].mean()),
    "difference": float(np.mean(losses["bfloat16_sum"] - losses["float32"])),
    "spread": float(losses["float32"].std(ddof=1)),
  }


def main() -> None:
  """Measures each number of chips and prints a table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--chips", type=int, nargs="+", default=[4, 32, 256])
  parser.add_argument("--seeds", type=int, default=4)
  parser.add_argument("--json", default=None, metavar="FILE")
  args = parser.parse_args()
  rows = []
  for chips in args.chips:
    rows.append(measure(chips, args.seeds))
    if len(rows) == 1:
      print(" ".join(f"{name:>13}" for name in rows[0]))
    print(
      " ".join(f"{value:>13.5g}" for value in rows[-1].values()), flush=True
    )
  if args.json:
    files.write_json(
      args.json,
      {
        **provenance.collect(["python", __file__]),
        "seeds": args.seeds,
        "rows": rows,
      },
    )


if __name__ == "__main__":
  main()
