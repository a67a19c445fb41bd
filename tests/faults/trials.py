"""Trials of a campaign of faults, and the file that remembers them.

Every trial is one JSON line. A campaign that was interrupted goes on with the
trials that its file does not have.
"""

import dataclasses
import json
import pathlib
import time
from collections.abc import Callable, Iterable
from typing import Any

from genie_jax.core import provenance


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What one trial found.

  Attributes:
    injected: Number of faults.
    failures: What went wrong, one line each; empty if all were survived.
    measured: Other numbers, such as the most steps that were lost.
  """

  injected: int
  failures: tuple[str, ...] = ()
  measured: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Campaign:
  """Many trials of one fault.

  Attributes:
    fault: What is injected, for the table.
    promise: What must happen, for the table.
    faults: How many faults a whole run injects.
    trial: Function from the number of the trial, which is also the seed of its
      random choices, to its outcome.
  """

  fault: str
  promise: str
  faults: int
  trial: Callable[[int], Outcome]


def read(path: pathlib.Path) -> list[dict[str, Any]]:
  """Returns the trials of a file; a line that was cut short is left out."""
  rows = []
  for line in path.read_text().splitlines() if path.exists() else ():
    try:
      rows.append(json.loads(line))
    except ValueError:
      continue
  return rows


def run(
  campaign: Campaign,
  path: pathlib.Path,
  faults: int,
  show: Callable[[str], object] = print,
) -> list[dict[str, Any]]:
  """Runs the trials that a file lacks until it has this many faults."""
  rows = read(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  if path.exists() and not path.read_bytes().endswith(b"\n"):
    # The last line was cut short.
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
  commit = provenance.commit()
  while sum(row["injected"] for row in rows) < faults:
    number = 1 + max((row["trial"] for row in rows), default=-1)
    began = time.monotonic()
    outcome = campaign.trial(number)
    row = {
      "trial": number,
      **dataclasses.asdict(outcome),
      "seconds": round(time.monotonic() - began, 2),
      "time": round(time.time()),
      "commit": commit,
    }
    with path.open("a") as file:
      file.write(f"{json.dumps(row)}\n")
    rows.append(row)
    for failure in outcome.failures:
      show(f"{path.stem} trial {number}: {failure}")
  return rows


def table(
  campaigns: dict[str, Campaign], folder: pathlib.Path
) -> Iterable[str]:
  """Yields the lines of a Markdown table of all campaigns."""
  yield "| campaign | fault | promise | injected | survived | measured | when |"
  yield "|---|---|---|---|---|---|---|"
  for name, campaign in campaigns.items():
    rows = read(folder / f"{name}.jsonl")
    first = f"`{name}` | {campaign.fault} | {campaign.promise}"
    injected = sum(row["injected"] for row in rows)
    failed = sum(len(row["failures"]) for row in rows)
    if not rows:
      yield f"| {first} | 0 | not run | | |"
      continue
    worst: dict[str, float] = {}
    for row in rows:
      for key, value in row["measured"].items():
        worst[key] = max(value, worst.get(key, value))
    date = time.strftime("%-d %B %Y", time.gmtime(rows[-1]["time"]))
    commits = sorted({row["commit"] or "unknown" for row in rows})
    yield (
      f"| {first} | {injected:,} | "
      f"{injected - failed:,} | "
      f"{', '.join(f'{k} at most {v:g}' for k, v in worst.items())} | "
      f"{date}, {', '.join(commit[:7] for commit in commits)} |"
    )
