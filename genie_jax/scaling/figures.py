"""Figures of a scaling study, from its result file alone.

The first figure has the panels of Genie, figure 9: training curves by size,
final loss by FLOPs, and final loss by batch size. The second one has the fitted
law with its prediction, and what the fit leaves.
"""

import csv
import io
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib import cm, colors, figure, ticker
from matplotlib.backends import backend_agg

from genie_jax.core import errors, files

_STYLE: dict[Any, Any] = {
  "font.family": "sans-serif",
  "font.size": 8,
  "axes.titlesize": 8,
  "axes.titleweight": "bold",
  "axes.titlelocation": "left",
  "axes.labelsize": 8,
  "axes.linewidth": 0.6,
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.grid": True,
  "grid.color": "#d8d8d8",
  "grid.linewidth": 0.5,
  "axes.axisbelow": True,
  "xtick.labelsize": 7,
  "ytick.labelsize": 7,
  "xtick.major.width": 0.6,
  "ytick.major.width": 0.6,
  "legend.frameon": False,
  "legend.fontsize": 7,
  "lines.linewidth": 1.2,
  "lines.markersize": 4,
  # Text as outlines looks the same everywhere; without date and with a fixed
  # salt, the same result gives the same bytes.
  "svg.fonttype": "path",
  "svg.hashsalt": "genie",
}
_LOSS = "held-out loss, nats per token"
_WIDTH = 7.2  # Inches: both columns of a page.
_DPI = 300
# Of Okabe and Ito's palette, which colour-blind readers can distinguish.
_LAW, _OTHER, _HELD_OUT = "#0072b2", "#7f7f7f", "#d55e00"


def draw(
  result: Mapping[str, Any],
  out: files.PathLike,
  kinds: Sequence[str] = ("svg", "png"),
) -> list[pathlib.Path]:
  """Draws all figures of a result.

  Args:
    result: From `results.read`.
    out: Folder, created if missing.
    kinds: Formats of the figures.

  Returns:
    The files: each figure in every format, and runs.csv with all points.

  Raises:
    UserError: The result has no rungs.
  """
  if not result["rungs"]:
    raise errors.UserError("The result has no rungs, so nothing can be drawn.")
  out = pathlib.Path(out)
  written = []
  with matplotlib.rc_context(_STYLE):
    for name, drawn in (
      ("figure9", study(result)),
      ("fit", law(result)),
    ):
      for kind in kinds:
        buffer = io.BytesIO()
        drawn.savefig(buffer, format=kind, dpi=_DPI, metadata=_metadata(kind))
        files.write_atomic(out / f"{name}.{kind}", buffer.getvalue())
        written.append(out / f"{name}.{kind}")
  files.write_atomic(out / "runs.csv", table(result))
  return [*written, out / "runs.csv"]


def table(result: Mapping[str, Any]) -> str:
  """Returns all runs as comma-separated values, one a line."""
  rows = [*result["rungs"], *result["cells"]]
  names = [
    name for name in rows[0] if not isinstance(rows[0][name], (dict, list))
  ]
  names = [name for name in names if name != "curve"]
  text = io.StringIO()
  writer = csv.DictWriter(
    text, names, extrasaction="ignore", lineterminator="\n"
  )
  writer.writeheader()
  writer.writerows(rows)
  return text.getvalue()


def study(result: Mapping[str, Any]) -> figure.Figure:
  """Draws training curves, loss by FLOPs, and loss by batch size.

  A panel without data is left out: curves need the runs' logs, and batch sizes
  need cells that have several.
  """
  curves = [run for run in result["rungs"] if run["curve"]]
  panels: list[Any] = [_training] if curves else []
  panels += [_loss_by_flops]
  if result["batch_study"]:
    panels += [_batches]
  drawn, axes = _figure(len(panels), 2.65)
  colour = _colours(result)
  for letter, ax, panel in zip("abc", axes, panels, strict=False):
    panel(ax, result, colour)
    ax.set_title(f"{letter}  {ax.get_title(loc='left')}")
  handles = {}
  for ax in axes:
    for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
      handles.setdefault(label, handle)
  drawn.legend(
    handles.values(),
    handles.keys(),
    loc="outside lower center",
    ncols=min(len(handles), 8),
    columnspacing=1.2,
    handlelength=1.4,
  )
  return drawn


def law(result: Mapping[str, Any]) -> figure.Figure:
  """Draws the law that counts with its prediction, residuals, and profiles."""
  profiles = (result["allocation"] or {}).get("profiles")
  drawn, axes = _figure(3 if profiles else 2, 2.75)
  colour = _colours(result)
  _prediction(axes[0], result)
  _residuals(axes[1], result)
  if profiles:
    _profiles(axes[2], result, colour)
  for letter, ax in zip("abc", axes, strict=False):
    ax.set_title(f"{letter}  {ax.get_title(loc='left')}")
  drawn.legend(
    *axes[0].get_legend_handles_labels(),
    loc="outside lower center",
    ncols=6,
    columnspacing=1.2,
    handlelength=1.6,
  )
  return drawn


def _figure(columns: int, height: float):
  width = _WIDTH if columns > 1 else _WIDTH / 2
  drawn = figure.Figure(figsize=(width, height), layout="constrained")
  backend_agg.FigureCanvasAgg(drawn)
  axes = drawn.subplots(1, columns, squeeze=False)[0]
  return drawn, list(axes)


def _metadata(kind: str) -> dict[str, Any]:
  return {"Date": None} if kind == "svg" else {"Software": None}


def _colours(result: Mapping[str, Any]):
  """Returns a function from parameters to a colour, dark for large."""
  params = [run["params"] for run in (*result["rungs"], *result["cells"])]
  low = min(params)
  scale = colors.LogNorm(low, max(params) * (1 + 1e-9))
  shades = cm.ScalarMappable(scale, matplotlib.colormaps["viridis_r"])
  # The lightest shades would be hard to see on white.
  scale.vmin = low / (max(params) / low) ** 0.12
  return lambda value: shades.to_rgba(value)


def short(number: float) -> str:
  """Returns a number like 41K, 1.3M or 10.1B."""
  for letter, scale in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
    if number >= scale:
      return f"{number / scale:.3g}{letter}"
  return f"{number:.3g}"


def _training(ax, result, colour) -> None:
  seen: set[int] = set()
  for run in sorted(
    result["rungs"], key=lambda run: (run["params"], run["seed"])
  ):
    # One seed a size: three nearly equal curves would only be wider.
    if not run["curve"] or run["params"] in seen:
      continue
    seen.add(run["params"])
    ax.plot(
      np.array(run["curve"]["steps"]) * run["flops"] / run["steps"],
      run["curve"]["loss"],
      color=colour(run["params"]),
      linewidth=1.0,
      label=short(run["params"]),
    )
  ax.set_xscale("log")
  ax.set_xlabel("training FLOPs")
  ax.set_ylabel("training loss, nats per token")
  ax.set_title("Training curves")


def _loss_by_flops(ax, result, colour) -> None:
  line = result["laws"]["flops"]["curve"]
  _band(ax, line, _OTHER)
  fit = ax.plot(line["x"], line["loss"], "--", color=_OTHER, linewidth=1.0)
  out = []
  for run in sorted(result["rungs"], key=lambda run: run["params"]):
    shade = colour(run["params"])
    points = ax.plot(
      [run["flops"]],
      [run["final_loss"]],
      marker="D" if run["held_out"] else "o",
      linestyle="none",
      color=shade,
      markerfacecolor="white" if run["held_out"] else shade,
      label=None if run["curve"] else short(run["params"]),
    )
    out = points if run["held_out"] else out
  # Labels of its own: the figure's legend has those of the sizes.
  ax.legend([*fit, *out], ["fit, 95 % band", "held out"], loc="upper right")
  ax.set_xscale("log")
  ax.set_xlabel("training FLOPs")
  ax.set_ylabel(_LOSS)
  ax.set_title("Final loss by FLOPs")


def _batches(ax, result, colour) -> None:
  sizes: set[int] = set()
  for size in result["batch_study"]:
    fixed, rows = _comparable(size["rows"])
    shade = colour(size["params"])
    for row in rows:
      ax.plot(
        [row["batch_size"]] * len(row["losses"]),
        row["losses"],
        "o",
        color=shade,
      )
      sizes.add(row["batch_size"])
    ax.plot(
      [row["batch_size"] for row in rows],
      [float(np.mean(row["losses"])) for row in rows],
      color=shade,
    )
    ax.annotate(
      f"{short(size['params'])}, equal {fixed}",
      (rows[-1]["batch_size"], float(np.mean(rows[-1]["losses"]))),
      (0, 6),
      textcoords="offset points",
      ha="right",
      fontsize=7,
      color=shade,
    )
  ax.set_xscale("log")
  ax.set_xticks(sorted(sizes), [str(size) for size in sorted(sizes)])
  ax.xaxis.set_minor_locator(ticker.NullLocator())
  ax.margins(x=0.12, y=0.14)
  ax.set_xlabel("clips in a batch")
  ax.set_ylabel(_LOSS)
  ax.set_title("Final loss by batch size")


def _comparable(
  rows: Sequence[Mapping[str, Any]],
) -> tuple[str, list[Mapping[str, Any]]]:
  """Returns rows with equal tokens or equal steps, the more of the two.

  Loss by batch size has a meaning only if one of them is fixed: Genie, figure
  9, fixes the steps, and a budget of compute fixes the tokens.
  """
  groups: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
  for row in rows:
    for fixed in ("tokens", "steps"):
      groups.setdefault((fixed, row[fixed]), []).append(row)
  fixed, _ = max(groups, key=lambda key: len(groups[key]))
  found = max(groups.values(), key=len)
  return fixed, sorted(found, key=lambda row: row["batch_size"])


def _prediction(ax, result) -> None:
  name = "flops" if result["law"] == "flops" else "params"
  line, power = (result["laws"][key]["curve"] for key in (name, "pure_power"))
  _band(ax, line, _LAW)
  ax.plot(line["x"], line["loss"], color=_LAW, label=_formula(result, name))
  if power["axis"] == name:
    ax.plot(
      power["x"], power["loss"], ":", color=_OTHER, label="pure power law"
    )
  ax.axhline(
    result["last_rung_loss"],
    color=_OTHER,
    linestyle="--",
    linewidth=0.8,
    label="last rung again",
  )
  fitted = [run for run in result["rungs"] if not run["held_out"]]
  out = [run for run in result["rungs"] if run["held_out"]]
  value = lambda runs: (
    [r[name] for r in runs],
    [r["final_loss"] for r in runs],
  )
  ax.plot(*value(fitted), "o", color="black", markersize=3, label="fitted runs")
  ax.plot(
    *value(out),
    "D",
    color=_HELD_OUT,
    markersize=3,
    label="held-out runs",
    zorder=4,  # Above the prediction, which may be very near.
  )
  row = result["prediction"]["losses"][result["law"]]
  low, high = (
    (0, 0)
    if row["low"] is None
    else (row["loss"] - row["low"], row["high"] - row["loss"])
  )
  dated = result["prediction"]["date"]
  ax.errorbar(
    [result["prediction"]["target"][name]],
    [row["loss"]],
    [[max(low, 0)], [max(high, 0)]],
    fmt="s",
    color=_LAW,
    markerfacecolor="none",
    markersize=7,
    capsize=2,
    label=f"predicted {dated[:10]}" if dated else "predicted",
  )
  ax.set_xscale("log")
  ax.set_xlabel("parameters" if name == "params" else "training FLOPs")
  ax.set_ylabel(_LOSS)
  ax.set_title("Law and held-out size")


def _residuals(ax, result) -> None:
  name = "flops" if result["law"] == "flops" else "params"
  line = result["laws"][name]["curve"]
  for held_out, style in (
    (False, dict(marker="o", color="black", markersize=3)),
    (True, dict(marker="D", color=_HELD_OUT, markersize=4)),
  ):
    runs = [run for run in result["rungs"] if run["held_out"] == held_out]
    x = [run[name] for run in runs]
    wanted = np.exp(
      np.interp(np.log(x), np.log(line["x"]), np.log(line["loss"]))
    )
    measured = np.array([run["final_loss"] for run in runs])
    ax.plot(x, 100 * (measured / wanted - 1), linestyle="none", **style)
  ax.axhline(0, color=_LAW, linewidth=1.0)
  ax.set_xscale("log")
  ax.set_xlabel("parameters" if name == "params" else "training FLOPs")
  ax.set_ylabel("loss above the law, %")
  ax.set_title("Residuals")


def _profiles(ax, result, colour) -> None:
  runs = {run["name"]: run for run in (*result["rungs"], *result["cells"])}
  shades = matplotlib.colormaps["cividis_r"]
  profiles = result["allocation"]["profiles"]
  for place, profile in enumerate(profiles):
    shade = shades(0.25 + 0.75 * place / max(1, len(profiles) - 1))
    ax.plot(
      profile["params"],
      profile["loss"],
      color=shade,
    )
    points = [runs[name] for name in profile["runs"]]
    ax.plot(
      [run["params"] for run in points],
      [run["final_loss"] for run in points],
      "o",
      color=shade,
      markersize=3,
    )
    lowest = np.interp(profile["optimum"], profile["params"], profile["loss"])
    ax.plot([profile["optimum"]], [lowest], "*", color=shade, markersize=7)
    ax.annotate(
      f"${_scientific(profile['flops'], 1)}$",
      (profile["optimum"], float(lowest)),
      (0, 11),  # Inside the bowl: other profiles are above and below it.
      textcoords="offset points",
      ha="center",
      fontsize=7,
      color=shade,
    )
  ax.set_xscale("log")
  ax.set_xlabel("parameters")
  ax.set_ylabel(_LOSS)
  ax.set_title("Loss at equal FLOPs")


def _band(ax, line: Mapping[str, Any], colour: str) -> None:
  if line["low"] is not None:
    ax.fill_between(
      line["x"],
      line["low"],
      line["high"],
      color=colour,
      alpha=0.18,
      linewidth=0,
    )


def _formula(result: Mapping[str, Any], name: str) -> str:
  """Returns a law of one axis as mathematics for a legend."""
  found = {
    letter: row["value"]
    for letter, row in result["laws"][name]["parameters"].items()
  }
  letter = "N" if name == "params" else "C"
  return (
    f"$L={found['E']:.3g}+{_scientific(found['A'])}\\,"
    f"{letter}^{{-{found['a']:.3f}}}$"
  )


def _scientific(value: float, digits: int = 2) -> str:
  if 0.01 <= value < 1e4:
    return f"{value:.3g}"
  mantissa, _, exponent = f"{value:.{digits}e}".partition("e")
  return f"{mantissa}\\!\\times\\!10^{{{int(exponent)}}}"
