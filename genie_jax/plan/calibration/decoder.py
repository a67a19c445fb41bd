"""A decoder-only language model as a stage, for plans of published runs.

Public records of training speed on TPUs are of language models, which the
framework does not train. This is the Llama decoder (arXiv:2307.09288) as the
published runs have it, as a `Stage`: a plan of it compiles the train step, with
the layouts, the optimizer and the compiler options of `genie train`. It is
planned only; there is no data for it.

Shapes:
  B  sequences in the batch     L  tokens of a sequence
  D  width of the residual      V  entries of the vocabulary
  H  heads of queries           G  heads of keys and values
  K  width of one head          Y  layers
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import ad_checkpoint
from jax.experimental.pallas.ops.tpu import splash_attention

from genie_jax.nn import attention, initializers, norms
from genie_jax.sharding import rules
from genie_jax.train import stage as stage_lib

# Logical axes. The published runs split the residual stream over tensor between
# the layers (sequence stays whole), as "act_mlp" does.
_STREAM = ("act_batch", None, "act_mlp")
_HIDDEN = ("act_batch", None, "act_mlp")
_HEADS = ("act_batch", None, "act_heads", None)


@dataclasses.dataclass(frozen=True)
class Shape:
  """The sizes of a decoder.

  Attributes:
    layers: Y.
    width: D.
    heads: H.
    kv_heads: G, a divisor of H.
    head_dim: K.
    mlp_dim: Width of the gated hidden layer.
    vocab: V.
  """

  layers: int
  width: int
  heads: int
  kv_heads: int
  head_dim: int
  mlp_dim: int
  vocab: int

  @property
  def params(self) -> int:
    """Number of parameters, the two tables of the vocabulary included."""
    layer = (
      2 * self.width * self.head_dim * (self.heads + self.kv_heads)
      + 3 * self.width * self.mlp_dim
      + 2 * self.width
    )
    return self.layers * layer + 2 * self.vocab * self.width + self.width

  def flops_per_sequence(self, length: int) -> float:
    """Returns the training FLOPs of a sequence, without recomputation.

    Six per parameter and token, and the causal half of attention: the
    convention of PaLM (arXiv:2204.02311, appendix B) that MaxText follows.

    Args:
      length: L.
    """
    scores = 6 * self.layers * self.heads * self.head_dim * length**2
    return 6.0 * self.params * length + scores


@dataclasses.dataclass(frozen=True)
class Remat:
  """What the forward pass saves for the backward pass.

  Attributes:
    dots: Whether to save every product with a weight.
    saved: Names of values that stay on the chip: "input" of a layer, "query",
      "key", "value", "context" (of attention), "out" (of its projection).
    offloaded: Names of values that wait in the host's memory.
  """

  dots: bool = False
  saved: tuple[str, ...] = ()
  offloaded: tuple[str, ...] = ()

  def policy(self) -> Any:
    """Returns the policy for `jax.checkpoint`."""
    policies = jax.checkpoint_policies
    if self.dots:
      return policies.dots_with_no_batch_dims_saveable
    if self.offloaded:
      return policies.save_and_offload_only_these_names(
        names_which_can_be_saved=list(self.saved),
        names_which_can_be_offloaded=list(self.offloaded),
        offload_src="device",
        offload_dst="pinned_host",
      )
    return policies.save_only_these_names(*self.saved)


@dataclasses.dataclass(frozen=True)
class Kernel:
  """Settings of JAX's splash kernel.

  Attributes:
    block: Side of the blocks of scores, in tokens.
    fused: Whether one kernel computes all gradients.
  """

  block: int = 512
  fused: bool = False


def causal_attention(
  query: jax.Array, key: jax.Array, value: jax.Array, settings: Kernel
) -> jax.Array:
  """Causal softmax attention by JAX's splash kernel, on each device's shard.

  Args:
    query: [B, L, H, K].
    key: [B, L, G, K].
    value: [B, L, G, K].
    settings: The kernel's settings.

  Returns:
    [B, L, H, K].
  """

  def local(query, key, value):
    kernel = _kernel(query.shape[2], query.shape[1], settings)
    lead = lambda x: x.swapaxes(1, 2)  # [B, heads, L, K]
    scaled = query * jnp.asarray(query.shape[-1] ** -0.5, query.dtype)
    return lead(jax.vmap(kernel)(lead(scaled), lead(key), lead(value)))

  return rules.per_device(local, (_HEADS,) * 3, _HEADS)(query, key, value)


@functools.lru_cache(maxsize=32)
def _kernel(heads: int, length: int, settings: Kernel) -> Any:
  side = min(length, settings.block)
  # Blocks of the separate kernel for the gradient of the queries.
  apart = None if settings.fused else side
  sizes = splash_attention.BlockSizes(
    block_q=side,
    block_kv=side,
    block_kv_compute=side,
    block_q_dkv=side,
    block_kv_dkv=side,
    block_kv_dkv_compute=side,
    block_q_dq=apart,
    block_kv_dq=apart,
    use_fused_bwd_kernel=settings.fused,
  )
  mask = splash_attention.MultiHeadMask(
    [splash_attention.CausalMask((length, length))] * heads
  )
  # As in `nn.splash`: the kernel is cached, so its tables must not become
  # values of the trace in which they are made.
  with jax.ensure_compile_time_eval():
    return splash_attention.make_splash_mha(
      mask, head_shards=1, q_seq_shards=1, block_sizes=sizes
    )


class Block(nn.Module):
  """A layer: causal attention, then a gated MLP, each after a norm."""

  shape: Shape
  kernel: Kernel

  @nn.compact
  def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
    """Maps x: [B, L, D], as `nn.scan` calls it."""
    sizes = self.shape
    name = ad_checkpoint.checkpoint_name
    x = name(rules.constrain(x, _STREAM), "input")
    norm = lambda name: norms.RMSNorm(name=name)
    heads = lambda count, name: initializers.Projection(
      (count, sizes.head_dim), ("heads", "head_dim"), name=name
    )
    y = norm("attention_norm")(x)
    positions = jnp.arange(x.shape[1])
    rotate = lambda z: attention.rotate(z[:, :, None], positions)[:, :, 0]
    query = name(heads(sizes.heads, "query")(y), "query")
    key = name(heads(sizes.kv_heads, "key")(y), "key")
    value = name(heads(sizes.kv_heads, "value")(y), "value")
    split = lambda z: rules.constrain(z, _HEADS)
    mixed = causal_attention(
      split(rotate(query)), split(rotate(key)), split(value), self.kernel
    )
    mixed = name(split(mixed), "context")
    out = initializers.Projection(
      (sizes.width,),
      ("embed",),
      inputs=2,
      input_axes=("heads", "head_dim"),
      name="out",
    )(mixed)
    x += name(rules.constrain(out, _STREAM), "out")
    y = norm("mlp_norm")(x)
    wide = lambda name: initializers.Projection(
      (sizes.mlp_dim,), ("mlp",), name=name
    )(y)
    hidden = jax.nn.silu(wide("mlp_gate")) * wide("mlp_in")
    hidden = rules.constrain(hidden, _HIDDEN)
    x += initializers.Projection(
      (sizes.width,), ("embed",), input_axes=("mlp",), name="mlp_out"
    )(hidden)
    return rules.constrain(x, _STREAM), None


class Decoder(nn.Module):
  """The whole model; layers are scanned, so compile time has no depth in it."""

  shape: Shape
  remat: Remat
  kernel: Kernel

  @nn.compact
  def __call__(self, tokens: jax.Array) -> jax.Array:
    """Maps tokens: int32 [B, L] to bfloat16 logits [B, L, V]."""
    sizes = self.shape
    table = self.param(
      "table",
      initializers.labelled(nn.initializers.normal(1.0), ("vocab", "embed")),
      (sizes.vocab, sizes.width),
      jnp.float32,
    )
    # A lookup as a product, as in the published runs (use_iota_embed).
    hot = jax.nn.one_hot(tokens, sizes.vocab, dtype=jnp.bfloat16)
    x = rules.constrain(hot, _HIDDEN) @ table.astype(jnp.bfloat16)
    block = nn.remat(Block, policy=self.remat.policy(), prevent_cse=False)
    x, _ = nn.scan(
      block,
      variable_axes={"params": 0},
      split_rngs={"params": True},
      length=sizes.layers,
      metadata_params={nn.PARTITION_NAME: "layers"},
    )(sizes, self.kernel, name="layers")(rules.constrain(x, _STREAM), None)
    x = norms.RMSNorm(name="norm")(x)
    logits = initializers.Projection(
      (sizes.vocab,), ("vocab",), name="to_logits"
    )(x)
    return rules.constrain(logits, _HIDDEN)


@jax.checkpoint
def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
  """Returns the cross-entropy of each token, float32 [B, L].

  Only the bfloat16 logits are saved for the backward pass: those of 128,256
  tokens would take several GB in float32.

  Args:
    logits: bfloat16 [B, L, V].
    targets: int32 [B, L].
  """
  logits = logits.astype(jnp.float32)
  # By one-hot vectors: a lookup would gather the split vocabulary.
  hot = jax.nn.one_hot(targets, logits.shape[-1])
  return jax.nn.logsumexp(logits, axis=-1) - (logits * hot).sum(-1)


def make(
  shape: Shape, length: int, remat: Remat, kernel: Kernel
) -> stage_lib.Stage:
  """Returns the stage that trains a decoder on sequences of `length` tokens.

  Args:
    shape: The sizes of the decoder.
    length: L.
    remat: What is saved for the backward pass.
    kernel: Settings of attention.
  """
  model = Decoder(shape, remat, kernel)
  feature = stage_lib.Feature((length,), np.int32, (None,))

  def init(rng):
    tokens = jnp.zeros((1, length), jnp.int32)
    return model.init(rng, tokens)["params"], {}

  def loss(params, extra, batch, rng, step):
    del rng, step
    logits = model.apply({"params": params}, batch["tokens"])
    terms = {
      "cross_entropy": stage_lib.Term.of(
        cross_entropy(logits, batch["targets"])
      )
    }
    return stage_lib.Outcome(terms, {}, extra, {})

  def refuse(*_: Any) -> Any:
    raise NotImplementedError("The decoder is planned, and never run.")

  return stage_lib.Stage(
    name="decoder",
    features={"tokens": feature, "targets": feature},
    loss_scales={"cross_entropy": 1.0},
    init=init,
    loss=loss,
    evaluate=refuse,
    preview=refuse,
    show=refuse,
    flops_per_clip=shape.flops_per_sequence(length),
  )
