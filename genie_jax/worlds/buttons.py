"""What the buttons of a world do, as it was measured.

`genie eval` measures what each button does, `genie export --metrics` stores the
names in the manifest, and the page and programs use them. A name states what a
button was seen to do, not what it was meant to do.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from genie_jax.core import errors

MAX_NAME = 24  # Characters, as on the page.
# Where a name comes from: the world's own rollouts, or only the latent actions
# of real clips, which the world may not have learned to follow.
SOURCES = ("world", "clips")
# Metrics of `genie eval` that name buttons, the best first, and their source.
_METRICS = {"counterfactuals": "world", "held": "world", "control": "clips"}
UNCLEAR = "unclear"  # Of a button without a clear effect.


@dataclasses.dataclass(frozen=True)
class Button:
  """One button.

  Attributes:
    number: In [0, A).
    name: For example "left"; "" if it is not known or not clear.
    share: Share of the moments in which the button did this; None without a
      name.
    source: One of `SOURCES`; "" without a name.
  """

  number: int
  name: str = ""
  share: float | None = None
  source: str = ""


def from_metrics(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
  """Returns the manifest's field "buttons" from a metrics.json.

  Args:
    metrics: With "details". Names by the world's rollouts next to the game's
      (of the metric `counterfactuals`) are preferred to those by its rollouts
      alone (`held`), and both to those by real clips (`control`).

  Returns:
    {"button", "name", "share", "source"} of each button that has a name.
  """
  details = metrics.get("details", {})
  for metric, source in _METRICS.items():
    measured = details.get(metric, {}).get("buttons", ())
    named = [
      {
        "button": row["button"],
        "name": row["name"],
        "share": row["share"],
        "source": source,
      }
      for row in measured
      if row["name"] != UNCLEAR
    ]
    if named:
      return named
  return []


def check(where: str, rows: Any) -> None:
  """Checks the field "buttons" of a manifest.

  Raises:
    UserError: It does not consist of buttons with short printable names.
  """
  valid = isinstance(rows, list) and all(
    isinstance(row, dict)
    and type(row.get("button")) is int
    and row["button"] >= 0
    and isinstance(row.get("name"), str)
    and row["name"].isprintable()
    and 0 < len(row["name"]) <= MAX_NAME
    and type(row.get("share")) in (int, float)
    and 0 <= row["share"] <= 1
    and row.get("source") in SOURCES
    for row in rows
  )
  if not valid or len({row["button"] for row in rows}) != len(rows):
    raise errors.UserError(
      f"{where}: buttons={rows!r:.40} does not name buttons; export the world "
      "again."
    )


def of(manifest: Mapping[str, Any], num_actions: int) -> tuple[Button, ...]:
  """Returns all buttons of a world.

  Args:
    manifest: The world's; rows for buttons that it does not have are ignored.
    num_actions: A.
  """
  named = {row["button"]: row for row in manifest.get("buttons", ())}
  return tuple(
    Button(number, row["name"], row["share"], row["source"])
    if (row := named.get(number))
    else Button(number)
    for number in range(num_actions)
  )
