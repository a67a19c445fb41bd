"""Which clips a latent action model may run on.

The action of a transition should not depend on where the clip was cut. It does
if attention in time sees all frames before: a model that was trained on clips
of 4 frames gives other actions at the later frames of longer clips. A model
whose encoder has a window may run at any length.
"""

import logging

from genie_jax.core import errors

# Not absl's, because the PyTorch port needs few packages.
_log = logging.getLogger(__name__)


def check(name: str, frames: int, trained: int | None) -> None:
  """Refuses clips that are longer than those a model was trained on.

  Only for models without a window.

  Args:
    name: The model's role, for example "lam".
    frames: Length of the clips.
    trained: Length of the training clips; None if the saved model does not
      state it, which gives a warning.

  Raises:
    UserError: The clips are longer.
  """
  if trained is None:
    # Two frames have one transition, which is the same in all lengths.
    if frames > 2:
      _log.warning(
        "The %s does not state the length of its training clips; if they were "
        "shorter than %d frames, the later actions are less reliable. Models "
        "that are trained now state it.",
        name,
        frames,
      )
    return
  if frames > trained:
    raise errors.UserError(
      f"The {name} was trained on clips of {trained} frames and cannot infer "
      f"the actions of {frames}; give at most {trained} frames, or train it "
      f"with config.data.num_frames={frames} or with a window of its encoder, "
      "such as config.model.encoder.window=2."
    )
