"""Tests of the TPU kernels, interpreted on a CPU, and of the GPU lowering."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genie_jax.nn import attention, fused, splash
from genie_jax.sharding import mesh as mesh_lib

# For float32 sums of a few hundred terms, added in a different order.
TOLERANCE = dict(rtol=2e-4, atol=2e-5)


def draw(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def compare(found, wanted, inputs, **tolerance):
  """Compares values, and the gradients of a randomly weighted sum of them."""
  weights = draw(99, *np.shape(wanted(*inputs)))

  def both(f):
    def weighed(*arrays):
      out = f(*arrays)
      return jnp.vdot(out.astype(jnp.float32), weights), out

    return jax.jit(jax.grad(weighed, (0, 1, 2), has_aux=True))(*inputs)

  (got, value), (want, reference) = both(found), both(wanted)
  np.testing.assert_allclose(value, reference, **tolerance)
  for name, a, b in zip(("query", "key", "value"), got, want, strict=True):
    np.testing.assert_allclose(a, b, err_msg=name, **tolerance)


def attentions(in_time, window, heads=2, head_dim=128, **shape):
  """Returns a plain and a kernel attention layer, parameters and an input."""
  sizes = dict(b=2, t=6, n=20, d=32) | shape
  x = draw(0, sizes["b"], sizes["t"], sizes["n"], sizes["d"])
  make = lambda implementation: attention.Attention(
    num_heads=heads,
    head_dim=head_dim,
    causal=in_time,
    window=window,
    implementation=implementation,
    dtype=jnp.float32,
  )
  params = nn.unbox(
    make("plain").init(jax.random.key(0), x, jnp.arange(sizes["t"]))
  )
  # With scales of 1 a kernel that ignores them, or their gradients, would pass.
  params = jax.tree.map(lambda y: y * (1 + 0.3 * draw(1, *y.shape)), params)
  return make("plain"), make("interpreted"), params, x


@pytest.mark.parametrize(
  "in_time, window, n, num_valid, heads, head_dim",
  [
    (True, 0, 16, None, 2, 128),
    (True, 0, 20, None, 2, 128),  # The second block is a quarter full.
    (True, 3, 20, None, 2, 128),
    (False, 0, 20, None, 2, 128),
    (False, 0, 20, 13, 2, 128),
    # Narrow heads share a block.
    (True, 0, 20, None, 4, 64),
    (False, 0, 20, 13, 2, 64),
    (True, 3, 20, None, 4, 32),
    (False, 0, 20, None, 8, 32),
  ],
)
def test_fused_attention_equals_plain_attention(
  in_time, window, n, num_valid, heads, head_dim
):
  assert fused.fits(6, n, heads, head_dim, in_time)
  plain, kernel, params, x = attentions(in_time, window, heads, head_dim, n=n)
  weights = draw(2, *x.shape)
  if num_valid:
    weights[:, :, num_valid:] = 0

  def both(module):
    def weighed(params, x):
      out, own = module.apply(params, x, jnp.arange(3, 9), num_valid=num_valid)
      return jnp.vdot(out, weights), (out[:, :, :num_valid], own)

    return jax.jit(jax.grad(weighed, (0, 1), has_aux=True))(params, x)

  found, wanted = both(kernel), both(plain)
  for (path, a), b in zip(
    jax.tree_util.tree_leaves_with_path(found),
    jax.tree.leaves(wanted),
    strict=True,
  ):
    # Gradients of the scales sum thousands of terms.
    np.testing.assert_allclose(
      a,
      b,
      rtol=1e-3,
      atol=1e-3 * np.abs(b).max(),
      err_msg=jax.tree_util.keystr(path),
    )


@pytest.mark.parametrize("in_time", [True, False])
def test_fused_attention_is_the_same_on_a_split_mesh(in_time):
  _, kernel, params, x = attentions(in_time, 0, b=2, t=4, n=32)
  grad = jax.grad(
    lambda params, x: jnp.square(
      kernel.apply(params, x, jnp.arange(4))[0]
    ).sum(),
    (0, 1),
  )
  wanted = jax.jit(grad)(params, x)
  mesh = mesh_lib.make(dict(data=1, fsdp=2, tensor=2, frame=2))

  def split(params, x):
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      return grad(params, x)

  whole = mesh_lib.replicated(mesh)
  found = jax.jit(split, in_shardings=whole, out_shardings=whole)(params, x)
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * np.abs(b).max())


def test_fused_attention_of_bfloat16_differs_only_by_rounding():
  inputs = [draw(i, 1, 16, 16, 128) for i in range(3)]
  options = fused.Options(num_heads=1, in_time=True, interpret=True)
  turns = fused.tables(jnp.ones((16, 64)), jnp.zeros((16, 64)))
  run = lambda arrays: fused.attend(options, *arrays, jnp.ones((2, 128)), turns)
  low = [x.astype(jnp.bfloat16) for x in inputs]
  found, wanted = run(low), run([x.astype(jnp.float32) for x in low])
  assert found.dtype == jnp.bfloat16
  # Queries, keys, weights and results have 8 bits; values are near 1.
  assert float(jnp.abs(found - wanted).max()) < 0.05


@pytest.mark.parametrize("num_valid", [None, 290])
def test_splash_equals_plain_attention(num_valid):
  inputs = [draw(i, 1, 2, 300, 2, 64) for i in range(3)]
  if num_valid:
    # Outputs at padded positions are not used, so they are not compared.
    cut = lambda f: lambda *x: f(*x)[:, :, :num_valid]
  else:
    cut = lambda f: f
  compare(
    cut(functools.partial(splash.attend, num_valid=num_valid, interpret=True)),
    cut(
      functools.partial(attention.plain_space_attention, num_valid=num_valid)
    ),
    inputs,
    **TOLERANCE,
  )


def test_blocks_need_little_padding_and_stay_small():
  assert splash._blocks(920) == (1024, 1024)
  assert splash._blocks(256) == (256, 256)
  assert splash._blocks(1200) == (640, 1280)
  for n in range(256, 3000, 61):
    block, padded = splash._blocks(n)
    assert block <= 1024 and padded % block == 0 and block % 128 == 0
    assert n <= padded < n + 128 * (padded // block)


@pytest.mark.parametrize(
  "tokens, num_valid, dtype, fused",
  [
    (920, None, "bfloat16", True),
    (928, 920, "bfloat16", True),
    (64, None, "bfloat16", False),
    (920, None, "float32", False),
  ],
)
def test_gpu_attention_over_long_frames_and_its_gradient_use_cudnn(
  monkeypatch, tokens, num_valid, dtype, fused
):
  # No GPU is needed: JAX's checks of the device are replaced, and the lowered
  # program is inspected, not run.
  from jax._src.cudnn import fused_attention_stablehlo as cudnn

  monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
  monkeypatch.setattr(cudnn, "check_compute_capability", lambda _: True)
  monkeypatch.setattr(attention, "_platform", lambda _: "gpu")
  x = jax.ShapeDtypeStruct((1, 2, tokens, 4, 128), dtype)

  def loss(*qkv):
    return attention.space_attention(*qkv, num_valid).astype("float32").sum()

  program = (
    jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    .trace(x, x, x)
    .lower(lowering_platforms=("cuda",))
    .as_text()
  )
  for name in ("fmhaSoftmax(", "fmhaSoftmaxBackward("):
    assert (f"__cudnn${name}" in program) == fused
