"""The world under evaluation, as a few functions on host arrays.

Metrics do not depend on models, so that tests can use a world with known
faults instead.

Shapes:
  n  clips, any number      F  frames drawn
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genie_jax.core import errors, images
from genie_jax.evals import actions as actions_lib
from genie_jax.models import store
from genie_jax.sampling import decoding, prepare, samplers
from genie_jax.sampling import rollout as rollout_lib
from genie_jax.sampling import slide as slide_lib

_BATCH_FRAMES = 256  # Frames per call, enough for small worlds on two cores.


@dataclasses.dataclass(frozen=True)
class Subject:
  """A world to evaluate.

  Attributes:
    encode: uint8 frames [n, T, H, W, C] -> int32 tokens [n, T, h, w].
    decode: int32 tokens [n, T, h, w] -> uint8 frames [n, T, H, W, C].
    infer: uint8 frames [n, T, H, W, C] -> int32 latent actions [n, T-1]; None
      for a world whose buttons are the true actions.
    rollout: (prompt tokens [n, P, h, w], buttons [n, P - 1 + F], clip ids
      [n], seed) -> tokens [n, P + F, h, w]. Equal seeds and clip ids give
      equal noise.
    next_frame: (tokens [n, T, h, w], buttons [n, T-1], seed) -> tokens
      [n, h, w] of the last frame, sampled given the true frames before it.
    num_frames: T of the clips that the world was trained on.
    frame_shape: (H, W, C).
    token_patch: Side of a token's square in pixels.
    num_codes: V.
    num_buttons: Number of latent or true actions.
    fps: Frames per second.
    sampling: Settings of the frame sampler, stated in the report.
    slide: What happens at the end of the window, stated in the report.
    fingerprint: Of the world.
  """

  encode: Callable[[np.ndarray], np.ndarray]
  decode: Callable[[np.ndarray], np.ndarray]
  infer: Callable[[np.ndarray], np.ndarray] | None
  rollout: Callable[[np.ndarray, np.ndarray, np.ndarray, int], np.ndarray]
  next_frame: Callable[[np.ndarray, np.ndarray, int], np.ndarray]
  num_frames: int
  frame_shape: tuple[int, int, int]
  token_patch: int
  num_codes: int
  num_buttons: int
  fps: float
  sampling: Mapping[str, Any]
  fingerprint: str
  slide: Mapping[str, Any] = dataclasses.field(
    default_factory=lambda: dict(vars(slide_lib.Slide()))
  )

  def buttons(
    self,
    frames: np.ndarray,
    true_actions: np.ndarray | None,
    aliases: Mapping[int, int],
  ) -> np.ndarray:
    """Returns the buttons that were pressed in real clips, int32 [n, T-1].

    Args:
      frames: uint8 [n, T, H, W, C].
      true_actions: int [n, T-1]; needed if buttons are true actions.
      aliases: True action -> the one with the same effect.

    Raises:
      UserError: True actions are needed and missing, or the world has no
        button for one of them.
    """
    if self.infer is not None:
      return self.infer(frames)
    if true_actions is None:
      raise errors.UserError(
        "The world was trained on true actions, but the clips have none; give "
        "clips with actions, such as those of `genie data coinrun`."
      )
    merged = actions_lib.merge(true_actions, aliases)
    if merged.max() >= self.num_buttons:
      raise errors.UserError(
        f"The clips contain true action {merged.max()}, but the world has "
        f"{self.num_buttons} buttons; give clips of the game that it was "
        "trained on."
      )
    return merged.astype(np.int32)

  def choices(self, aliases: Mapping[int, int]) -> np.ndarray:
    """Returns the buttons with different effects, for random draws."""
    every = np.arange(self.num_buttons)
    if self.infer is not None:
      return every
    return np.unique(actions_lib.merge(every, aliases))


def encode_long(subject: Subject, frames: np.ndarray) -> np.ndarray:
  """Encodes clips that may be longer than the world's window.

  Args:
    subject: The world.
    frames: uint8 [n, T, H, W, C], any T.

  Returns:
    int32 [n, T, h, w]; later frames are encoded with at least half a window of
    frames before them.
  """
  window, length = subject.num_frames, frames.shape[1]
  parts = [subject.encode(frames[:, :window])]
  done = min(window, length)
  while done < length:
    count = min(max(window // 2, 1), length - done)
    end = done + count
    parts.append(subject.encode(frames[:, end - window : end])[:, -count:])
    done = end
  return np.concatenate(parts, 1)


def reconstruct(subject: Subject, frames: np.ndarray) -> np.ndarray:
  """Returns clips after the tokenizer, uint8 [n, T, H, W, C].

  Args:
    subject: The world.
    frames: uint8 [n, T, H, W, C], any T.
  """
  return subject.decode(encode_long(subject, frames))


def in_batches(
  function: Callable[..., jax.Array | np.ndarray],
  size: int,
  *inputs: np.ndarray,
) -> np.ndarray:
  """Applies a compiled function to any number of rows, in batches of `size`.

  The last batch is padded by repeating its last row, so that one compiled
  program is enough.

  Args:
    function: Takes arrays [size, ...], returns one array [size, ...].
    size: Rows of a batch.
    *inputs: Arrays [n, ...].

  Returns:
    [n, ...].
  """
  count = len(inputs[0])
  results = []
  for start in range(0, count, size):
    rows = np.minimum(np.arange(start, start + size), count - 1)
    results.append(np.asarray(function(*(x[rows] for x in inputs))))
  return np.concatenate(results)[:count]


def from_parts(
  parts: Mapping[str, store.Part],
  *,
  sampling: samplers.FrameSampler,
  actions: str,
  fingerprint: str,
  slide: slide_lib.Slide | None = None,
) -> Subject:
  """Returns a world's models as a `Subject`.

  Args:
    parts: "tokenizer", "dynamics" and, for latent actions, "lam".
    sampling: The frame sampler.
    actions: Kind of actions that the buttons are, "latent" or "true".
    fingerprint: Of the world.
    slide: How a full window makes room; by default exact, a frame at a time.

  Raises:
    UserError: A model is missing, or the slide needs frames.
  """
  slide = slide or slide_lib.Slide()
  if slide.mode == "re-encode":
    raise errors.UserError(
      "The world's slide is 're-encode', with which rollouts cannot be "
      "evaluated; evaluate a copy exported with the slide exact or rolling."
    )
  needed = ["tokenizer", "dynamics"] + ["lam"] * (actions == "latent")
  for name in needed:
    if name not in parts:
      raise errors.UserError(
        f"The world has no {name}, which its evaluation needs; export it "
        "again with the workdirs of all models."
      )
  models = {name: prepare.hashable(part.module) for name, part in parts.items()}
  params = {name: jax.device_put(part.params) for name, part in parts.items()}
  world = parts["dynamics"].config["world"]
  token_window = parts["tokenizer"].config["world"]["num_frames"]
  window = world["num_frames"]
  if actions == "latent":
    store.check_length("lam", parts["lam"], window)
  batch = max(1, _BATCH_FRAMES // window)
  to_float = lambda frames: frames.astype(jnp.float32) / 255

  @jax.jit
  def encode(weights, frames):
    return models["tokenizer"].apply(
      {"params": weights}, to_float(frames), method="encode"
    )

  @jax.jit
  def infer(weights, frames):
    return models["lam"].apply(
      {"params": weights}, to_float(frames), method="encode"
    )

  def decode(tokens):
    drawn = decoding.decode(
      models["tokenizer"], params["tokenizer"], tokens, window=token_window
    )
    return images.to_uint8(drawn)

  def rollout(prompt, buttons, clip_ids, seed):
    num_frames = buttons.shape[1] + 1 - prompt.shape[1]

    def draw(tokens, actions, clip_ids):
      return rollout_lib.rollout(
        models["dynamics"],
        params["dynamics"],
        tokens,
        actions,
        jax.random.key(seed),
        num_frames=num_frames,
        window=window,
        sampling=sampling,
        slide=slide,
        clip_ids=clip_ids,
      )

    # Few long rollouts are not padded: drawing takes longer than compiling.
    return in_batches(draw, min(batch, len(prompt)), prompt, buttons, clip_ids)

  def next_frame(tokens, buttons, seed):
    def draw(tokens, actions, clip_ids):
      return rollout_lib.next_frames(
        models["dynamics"],
        params["dynamics"],
        tokens,
        actions,
        jax.random.key(seed),
        sampling=sampling,
        targets=(tokens.shape[1] - 1,),
        clip_ids=clip_ids,
      )[:, 0]

    return in_batches(
      draw, batch, tokens, buttons, np.arange(len(tokens), dtype=np.int32)
    )

  weighted = lambda function, name: (
    lambda frames: in_batches(
      lambda rows: function(params[name], rows), batch, frames
    )
  )
  return Subject(
    encode=weighted(encode, "tokenizer"),
    decode=lambda tokens: in_batches(decode, batch, tokens),
    infer=weighted(infer, "lam") if actions == "latent" else None,
    rollout=rollout,
    next_frame=next_frame,
    num_frames=window,
    frame_shape=(world["height"], world["width"], world["channels"]),
    token_patch=world["token_patch"],
    num_codes=world["num_codes"],
    num_buttons=world["num_latent_actions"],
    fps=world["fps"],
    sampling=samplers.to_config(sampling),
    fingerprint=fingerprint,
    slide=dict(vars(slide)),
  )
