"""The data card of selected clips: what was kept, what was dropped, and why."""

import base64
import collections
import dataclasses
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jinja2
import numpy as np

from genie_jax.core import files, images
from genie_jax.data import clip_list
from genie_jax.data import manifest as manifest_lib

_EXAMPLES = 12  # Clips on each contact sheet.
_FRAMES = 8  # Frames of each clip.
_SEED = 0


@dataclasses.dataclass(frozen=True)
class Scored:
  """A clip with its score.

  Attributes:
    clip: The clip.
    probability: Calibrated probability that it is good.
    rating: 1 to 5; None for a clip that nobody rated.
  """

  clip: clip_list.Clip
  probability: float
  rating: int | None


@dataclasses.dataclass(frozen=True)
class Card:
  """What a data card shows.

  Attributes:
    name: Name of the data set.
    rule: The decision rule.
    confidence: Its confidence.
    stages: (what, count, hours or None, note), from the sources to the result.
    splits: (split, clips, hours, kept clips, kept hours).
    described: Description of the table of scores.
    sheets: Name -> contact sheet, uint8 [H, W, 3].
    made_by: Where the clips come from.
  """

  name: str
  rule: str
  confidence: float
  stages: list[tuple[str, int, float | None, str]]
  splits: list[tuple[str, int, float, int, float]]
  described: Mapping[str, Any]
  sheets: dict[str, np.ndarray]
  made_by: Mapping[str, Any]


def collect(
  manifest: manifest_lib.Manifest,
  scored: Sequence[Scored],
  described: Mapping[str, Any],
  confidence: float,
  rule: str,
) -> Card:
  """Counts clips and hours at every stage, and draws examples.

  Args:
    manifest: Of the clips that were scored, read from their folder.
    scored: All of them.
    described: Description of the table of scores.
    confidence: Of the decision rule.
    rule: The decision rule in words.
  """
  keeps = lambda each: each.probability >= confidence
  hours = lambda some: _hours(manifest, [each.clip.length for each in some])
  kept = [each for each in scored if keeps(each)]
  dropped = [each for each in scored if not keeps(each)]
  ratings = collections.Counter(
    each.rating for each in scored if each.rating is not None
  )
  stages = _before(manifest)
  stages.append(("clips that were scored", len(scored), hours(scored), ""))
  if ratings:
    stages.append(
      (
        "of these, rated",
        ratings.total(),
        hours([each for each in scored if each.rating is not None]),
        ", ".join(f"{ratings[n]} with {n}" for n in (5, 4, 3, 2, 1)),
      )
    )
  stages.append(("clips that were kept", len(kept), hours(kept), ""))
  splits = []
  for split in manifest.splits:
    mine = [each for each in scored if each.clip.split == split]
    good = [each for each in mine if keeps(each)]
    splits.append((split, len(mine), hours(mine), len(good), hours(good)))
  return Card(
    name=manifest.name,
    rule=rule,
    confidence=confidence,
    stages=stages,
    splits=splits,
    described=described,
    sheets=_sheets(manifest, kept, dropped),
    made_by=manifest.made_by,
  )


def _hours(manifest: manifest_lib.Manifest, frames: Iterable[int]) -> float:
  return sum(frames) / manifest.fps / 3600


def _before(
  manifest: manifest_lib.Manifest,
) -> list[tuple[str, int, float | None, str]]:
  """Returns the stages before the scores, from the tables of the folder."""
  if manifest.folder is None or manifest.address:
    return []
  rows: list[tuple[str, int, float | None, str]] = []
  path = manifest.folder / "sources.parquet"
  if path.is_file():
    found = clip_list.read_table(path, ("status", "reason", "duration"))
    good = [status == "good" for status in found["status"]]
    lengths = [
      seconds or 0.0
      for seconds, fine in zip(found["duration"], good, strict=True)
      if fine
    ]
    reasons = collections.Counter(
      reason
      for reason, fine in zip(found["reason"], good, strict=True)
      if not fine
    )
    rows.append(
      (
        "videos that could be read",
        sum(good),
        sum(lengths) / 3600,
        _listed(reasons, "could not be read"),
      )
    )
  frames: dict[str, int] = collections.Counter()
  counts: dict[str, int] = collections.Counter()
  tables = sorted(manifest.folder.glob("*/*.parquet"))
  for table in tables:
    found = clip_list.read_table(table, ("kept", "reason", "frames"))
    for kept, reason, number in zip(*found.values(), strict=True):
      counts["" if kept else reason] += 1
      frames["" if kept else reason] += number
  if tables:
    rows.append(
      (
        "clips that were cut",
        sum(counts.values()),
        _hours(manifest, frames.values()),
        "",
      )
    )
    rows += [
      (f"of these, dropped: {reason}", counts[reason], hours, "")
      for reason in sorted(counts)
      if reason
      for hours in [_hours(manifest, [frames[reason]])]
    ]
  return rows


def _listed(counts: Mapping[str, int], what: str) -> str:
  if not counts:
    return ""
  reasons = ", ".join(f"{count} {name}" for name, count in counts.items())
  return f"{sum(counts.values())} {what}: {reasons}"


def _sheets(
  manifest: manifest_lib.Manifest,
  kept: Sequence[Scored],
  dropped: Sequence[Scored],
) -> dict[str, np.ndarray]:
  """Returns contact sheets: of random clips, and of those near the limit."""
  rng = np.random.default_rng(_SEED)

  def some(clips: Sequence[Scored]) -> list[Scored]:
    places = rng.permutation(len(clips))[:_EXAMPLES]
    return [clips[place] for place in sorted(places)]

  near = sorted(kept, key=lambda each: each.probability)[: _EXAMPLES // 2]
  near += sorted(dropped, key=lambda each: -each.probability)[: _EXAMPLES // 2]
  reader = clip_list.Reader(manifest)
  sheets = {}
  for name, clips in (
    ("kept", some(kept)),
    ("dropped", some(dropped)),
    ("near the limit", near),
  ):
    rows = {}
    for number, each in enumerate(clips):
      length = each.clip.length
      places = np.linspace(0, length - 1, min(_FRAMES, length)).astype(int)
      rows[
        f"{number + 1}: {100 * each.probability:.0f} %, {each.clip.split} "
        f"{each.clip.source}"
      ] = reader.frames(each.clip, places)
    if rows:
      sheets[name] = images.strip(rows, scale=1)
  return sheets


def write(folder: pathlib.Path, card: Card) -> None:
  """Writes card.html, which needs no other file, and card.md with pictures."""
  pictures = {
    name: (f"card/{name.replace(' ', '_')}.png", images.to_png(sheet))
    for name, sheet in card.sheets.items()
  }
  for path, content in pictures.values():
    files.write_atomic(folder / path, content)
  encoded = {
    name: "data:image/png;base64," + base64.b64encode(content).decode()
    for name, (_, content) in pictures.items()
  }
  linked = {name: path for name, (path, _) in pictures.items()}
  for target, kind, shown in (
    ("card.html", True, encoded),
    ("card.md", False, linked),
  ):
    environment = jinja2.Environment(
      loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
      autoescape=kind,
      undefined=jinja2.StrictUndefined,
      trim_blocks=True,
      lstrip_blocks=True,
    )
    text = environment.get_template(f"{target}.j2").render(
      card=card,
      test=_figures(card.described),
      baselines=card.described.get("baselines", {}),
      pictures=shown,
    )
    files.write_atomic(folder / target, text)


def _figures(described: Mapping[str, Any]) -> Mapping[str, Any] | None:
  """Returns the figures of the test split; None if there are none."""
  found = described.get("splits", {}).get("test", {"clips": 0})
  return found if found["clips"] else None
