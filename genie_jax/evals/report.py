"""Writes metrics.json, report.html and rollout.gif.

The page is one file: it contains its images and charts, and loads nothing.
"""

import dataclasses
import importlib.resources
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import numpy as np

from genie_jax.core import files, images, schema
from genie_jax.evals import (
  charts,
  curves,
  drift,
  metric,
  pictures,
  questions,
  run,
  verdicts,
)
from genie_jax.worlds import buttons as buttons_lib

_TEMPLATE = "report.html.j2"
_SLOW_FPS = 6  # Differences between buttons are easier to see slowly.
_HOLD = 6  # How often an animation repeats its last frame.
_MOST_FRAMES = 16  # Of a strip; long strips make a report of many megabytes.

# Keys that are always in metrics.json.
KEYS = (
  "tokenizer_psnr",
  "kmeans_psnr",
  "changed_token_accuracy",
  "copy_last_frame_changed_pixel_psnr",
  "changed_pixel_psnr",
  "delta_psnr",
  "delta_psnr_low",
  "delta_psnr_high",
  "delta_previous_psnr",
  "delta_previous_psnr_low",
  "delta_previous_psnr_high",
  "min_action_share",
  "code_usage",
  "action_nmi",
  "seconds_total",
  "seconds_by_stage",
  "commit",
)


@dataclasses.dataclass(frozen=True)
class Origin:
  """Where the figures come from.

  Attributes:
    name: Name of the world.
    command: The command line.
    commit: Of the code, or None outside a checkout.
    date: Of the evaluation, ISO 8601.
    fps: Frames per second of the world.
    seconds_by_stage: Stage -> seconds; `write` adds the evaluation.
  """

  name: str
  command: str
  commit: str | None
  date: str
  fps: float
  seconds_by_stage: Mapping[str, float]


def write(
  out: files.PathLike,
  results: run.Results,
  origin: Origin,
  training: Sequence[curves.Run] = (),
) -> dict[str, Any]:
  """Writes metrics.json, report.html and rollout.gif.

  Args:
    out: Folder, created if missing.
    results: Result of `run.evaluate`.
    origin: Where the figures come from.
    training: Curves of training runs to show.

  Returns:
    Content of metrics.json.
  """
  out = pathlib.Path(out)
  seconds = {
    **origin.seconds_by_stage,
    "eval": round(sum(results.metrics["eval_seconds"].values()), 2),
  }
  metrics = {
    "schema_version": 1,
    **results.metrics,
    "seconds_total": round(sum(seconds.values()), 2),
    "seconds_by_stage": seconds,
    "world": origin.name,
    "command": origin.command,
    "commit": origin.commit,
    "date": origin.date,
    "verdicts": questions.answer(
      results.metrics["details"], results.metrics["actions"]
    ),
  }
  # Details last: the file is also read by people.
  metrics["details"] = metrics.pop("details")
  images.save_video(out / "rollout.gif", free_grid(results), origin.fps)
  files.write_atomic(
    out / "report.html",
    page(metrics, results.pictures, origin, training, results.rows),
  )
  files.write_json(out / "metrics.json", metrics)
  return metrics


def free_grid(results: run.Results) -> np.ndarray:
  """Returns up to four free rollouts side by side, uint8 [F, H, W, 3]."""
  return np.concatenate(list(results.pictures["free"][:4]), 2)


def page(
  metrics: Mapping[str, Any],
  frames: Mapping[str, np.ndarray],
  origin: Origin,
  training: Sequence[curves.Run] = (),
  rows: Sequence[metric.Row] = (),
) -> str:
  """Returns report.html.

  Args:
    metrics: Content of metrics.json.
    frames: Name -> uint8 frames, of `run.Results`.
    origin: Where the figures come from.
    training: Curves of training runs.
    rows: More rows of the table of figures.
  """
  environment = jinja2.Environment(
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  environment.filters.update(
    db=lambda x: f"{x:.2f} dB",
    signed=lambda x: f"{x:+.2f} dB",
    percent=lambda x: f"{100 * x:.1f} %",
    number=lambda x: f"{x:.3f}",
    interval=_interval,
    minutes=_minutes,
  )
  template = environment.from_string(
    importlib.resources.files("genie_jax.evals").joinpath(_TEMPLATE).read_text()
  )
  return template.render(
    m=metrics,
    d=metrics["details"],
    origin=origin,
    strips=_strips(frames),
    rebuilt=_rebuilt(frames),
    next=_next(frames),
    held=_held(frames, metrics),
    free=[_animation(clip, origin.fps) for clip in frames["free"]],
    walks=[
      _animation(clip, origin.fps) for clip in frames.get("there_and_back", ())
    ],
    slow_fps=_SLOW_FPS,
    charts=_charts(metrics),
    training=[
      {
        "name": curve.stage,
        "chart": charts.lines(
          curve.panels,
          "optimizer steps",
          f"Training curves of the {curve.stage} stage.",
          logarithmic=curve.logarithmic,
        ),
      }
      for curve in training
    ],
    more_rows=rows,
    answers=metrics["verdicts"],
    rule=verdicts.RULE,
    drift=_drift(frames, metrics),
    raw=json.dumps(
      {
        key: value
        for key, value in metrics.items()
        if key not in ("details", "verdicts")
      },
      indent=2,
    ),
  )


def _interval(found: Mapping[str, float], unit: str = "") -> str:
  """Formats {"value", "low", "high"} as a range."""
  scale, digits = (100, 1) if unit == "%" else (1, 3 if unit == "" else 2)
  low, high = (f"{scale * found[end]:.{digits}f}" for end in ("low", "high"))
  return f"{low} to {high}{' ' + unit if unit else ''}"


def _minutes(seconds: float) -> str:
  whole = round(seconds)
  if whole < 60:
    return f"{whole} s"
  return f"{whole // 60} min {whole % 60:02d} s"


def _animation(frames: np.ndarray, fps: float) -> dict[str, str]:
  return {
    "gif": pictures.data_uri(
      pictures.animation(frames, fps, hold=_HOLD), "gif"
    ),
    "still": pictures.data_uri(pictures.still(frames[-1]), "png"),
  }


def _row(label: str, frames: np.ndarray, edges=None) -> dict[str, Any]:
  """Returns a strip of frames; `step` is 2 if it shows every second one."""
  step = -(-len(frames) // _MOST_FRAMES)
  frames, edges = frames[::step], edges and edges[::step]
  return {
    "label": label,
    "count": len(frames),
    "step": step,
    "uri": pictures.data_uri(pictures.row(frames, edges), "png"),
  }


def _strips(frames: Mapping[str, np.ndarray]) -> list[list[dict[str, Any]]]:
  strips = []
  for truth, drawn in zip(
    frames["rollout_truth"], frames["rollout_world"], strict=True
  ):
    given = [pictures.GIVEN] + [pictures.DRAWN] * (len(drawn) - 1)
    plain = [pictures.PLAIN] * len(drawn)
    strips.append(
      [
        _row("truth", truth, plain),
        _row("world", drawn, given),
        _row("error", pictures.error(truth, drawn), plain),
      ]
    )
  return strips


def _rebuilt(frames: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
  return [
    _row(label, frames[f"rebuilt_{name}"])
    for label, name in (
      ("truth", "truth"),
      ("tokenizer", "tokenizer"),
      ("k-means", "kmeans"),
    )
  ]


def _next(frames: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
  truth, world = frames["next_truth"], frames["next_world"]
  return [
    _row("last frame", frames["next_last"]),
    _row("next, true", truth),
    _row("next, world", world),
    _row("error", pictures.error(truth, world)),
  ]


def _drift(
  frames: Mapping[str, np.ndarray], metrics: Mapping[str, Any]
) -> dict[str, Any] | None:
  """Returns strips and tables of long rollouts; None if not measured."""
  found = metrics["details"].get("drift")
  if found is None:
    return None
  numbers = [0, *drift.horizons(found["frames"])]
  strips = []
  for world, real, length in zip(
    frames["drift_world"],
    frames["drift_real"],
    found["real_lengths"],
    strict=False,  # Only the first levels are shown.
  ):
    seen = sum(number < length for number in numbers)
    strips.append(
      [
        _row("game", real[:seen], [pictures.PLAIN] * seen),
        _row(
          "world",
          world,
          [pictures.GIVEN] + [pictures.DRAWN] * (len(world) - 1),
        ),
      ]
    )
  return {
    "strips": strips,
    "numbers": numbers[1:],
    "names": drift.FIGURES,
    "horizons": found["horizons"],
  }


def _held(
  frames: Mapping[str, np.ndarray], metrics: Mapping[str, Any]
) -> list[dict[str, Any]]:
  found = metrics["details"]["controllability"]["held"]
  named = {row["button"]: row for row in buttons_lib.from_metrics(metrics)}
  return [
    {
      "button": button,
      "name": named.get(button),
      "effect": effect,
      "row": _row("", rollout),
      **_animation(rollout, _SLOW_FPS),
    }
    for button, effect, rollout in zip(
      found["buttons"], found["effects"], frames["held"], strict=True
    )
  ]


def _charts(metrics: Mapping[str, Any]) -> dict[str, str]:
  d = metrics["details"]
  rebuilt, guessed = d["reconstruction"], d["prediction"]
  control = d["controllability"]
  dot = lambda label, x: (label, x["value"], x["low"], x["high"])
  live = control["liveliness"]
  buttons = [str(button) for button in control["held"]["buttons"]]
  drawn = {
    "psnr": charts.comparison(
      {
        "Reconstruction, dB": [
          dot("tokenizer", rebuilt["tokenizer_psnr"]),
          dot("k-means", rebuilt["kmeans_psnr"]),
        ],
        "Next frame, changed pixels, dB": [
          dot("world", guessed["pixels"]["world"]),
          dot("copy last frame", guessed["pixels"]["copy_last"]),
          dot("tokenizer's ceiling", guessed["pixels"]["ceiling"]),
        ],
        "Rollout, frame 4, dB": [
          dot("inferred buttons", control["delta_psnr"]["inferred"]),
          dot("random buttons", control["delta_psnr"]["random"]),
        ],
      },
      "PSNR of the world and of its baselines, with 95 % intervals.",
    ),
    "codes": charts.code_usage(d["codebook"]["token_counts"]),
    "motion": charts.lines(
      {
        "Change from frame to frame, 8-bit levels": {
          label: (
            range(1, len(live[name]["motion_by_frame"]) + 1),
            live[name]["motion_by_frame"],
          )
          for label, name in (
            ("free rollouts", "free_rollouts"),
            ("real clips", "real_clips"),
            ("real clips through the tokenizer", "tokenizer"),
          )
        }
      },
      "frame",
      "Motion of free rollouts and of real clips by frame.",
    ),
    "effects": charts.heat_map(
      control["held"]["effect_matrix"],
      buttons,
      buttons,
      ("button", "button"),
      "Mean absolute pixel difference between rollouts of two held buttons.",
      text=".1f",
    ),
  }
  if "actions" in d:
    table = np.array(d["actions"]["table"])
    share = 100 * table / np.maximum(table.sum(1, keepdims=True), 1)
    drawn["actions"] = charts.heat_map(
      share,
      [str(n) for n in range(len(table))],
      [str(action) for action in d["actions"]["true_actions"]],
      ("latent action", "true action, aliases merged"),
      "For each latent action, the percentage of its transitions with each "
      "true action.",
      text=".0f",
    )
  return drawn


def read_curves(workdirs: Sequence[files.PathLike]) -> list[curves.Run]:
  """Reads the training curves of workdirs.

  Raises:
    UserError: A workdir has no metrics.
  """
  return [curves.read(folder) for folder in workdirs]


def read_seconds(path: files.PathLike) -> dict[str, float]:
  """Reads stage -> seconds from a JSON file.

  Raises:
    UserError: The file has other content.
  """
  return files.read_json(path, {...: schema.NOT_NEGATIVE})
