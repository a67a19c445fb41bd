"""Whether models belong to one world."""

from collections.abc import Mapping

from genie_jax.core import errors
from genie_jax.models import saved


def check_parts(parts: Mapping[str, saved.Part]) -> None:
  """Checks that models make up a world.

  Raises:
    UserError: One is missing, or two were made for different worlds.
  """
  for name in ("tokenizer", "dynamics"):
    if name not in parts:
      raise errors.UserError(
          f"A world needs a {name}, and only {', '.join(parts) or 'nothing'} "
          "was given; add the workdir that trained it.")
  shared = {
      "tokenizer": ("height", "width", "channels", "token_patch", "num_codes"),
      "lam": ("height", "width", "channels", "num_latent_actions")}
  needed = parts["dynamics"].config["world"]
  for name, fields in shared.items():
    if name not in parts:
      continue
    found = parts[name].config["world"]
    for field in fields:
      if found[field] != needed[field]:
        raise errors.UserError(
            f"The {name} was trained with config.world.{field}="
            f"{found[field]!r}, the dynamics with {needed[field]!r}; put "
            "together models of the same world.")
