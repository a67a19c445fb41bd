"""A tiny world with random weights that react to everything."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from genie_jax.models import build
from genie_jax.sampling import player, slide

WINDOW = 8
GRID = (2, 3)
ACTIONS = 5
CODES = 13
STACK = dict(
    num_layers=2, width=16, num_heads=2, head_dim=8, mlp_dim=16,
    dtype="float32")


def make_models(
    mode="exact", drop=1, *, window=WINDOW, decoder_window=WINDOW,
    time_window=0, **dynamics
):
  world = dict(
      num_frames=window, height=8, width=12, channels=3, token_patch=4,
      num_codes=CODES, num_latent_actions=ACTIONS, fps=10)
  return player.Models(
      build.tokenizer({
          "world": world,
          "model": dict(code_dim=4, encoder=STACK, decoder=dict(
              STACK, window=time_window))}),
      build.dynamics({
          "world": world,
          "model": dict(
              transformer=dict(STACK, window=time_window), **dynamics)}),
      window, decoder_window, slide.Slide(mode, drop))


@functools.partial(jax.jit, static_argnames="models")
def make_params(models, seed):
  """Returns weights none of which is at its start, where many are 0 or 1."""
  key = jax.random.key(seed)
  tokens = jnp.zeros((1, 2, *GRID), jnp.int32)
  params = {
      "dynamics": models.dynamics.init(
          key, tokens, tokens[:, 1:, 0, 0], tokens == 0),
      "tokenizer": models.tokenizer.init(key, jnp.zeros((1, 2, 8, 12, 3)))}
  params = {
      name: nn.unbox(variables)["params"]
      for name, variables in params.items()}
  leaves, tree = jax.tree.flatten(params)
  return jax.tree.unflatten(tree, [
      leaf + 0.3 * jax.random.normal(jax.random.fold_in(key, i), leaf.shape)
      for i, leaf in enumerate(leaves)])


def some_prompt(frames, seed=0):
  keys = jax.random.split(jax.random.key(seed))
  return (
      jax.random.randint(keys[0], (frames, *GRID), 0, CODES),
      jax.random.randint(keys[1], (frames - 1,), 0, ACTIONS))


reset = jax.jit(player.reset, static_argnames="models")
step = jax.jit(player.step, static_argnames="models")
step_many = jax.jit(player.step_many, static_argnames="models")
next_logits = jax.jit(player.next_logits, static_argnames="models")
