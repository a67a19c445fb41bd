"""Charts as inline SVG in the page's light or dark colours.

Matplotlib draws with placeholder colours, which are replaced by CSS variables
of the page: --ink, --faint and the series colours --c1 to --c4 (of Okabe and
Ito's palette, which colour-blind readers can distinguish).
"""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib import figure, patches, ticker
from matplotlib.backends import backend_svg

_INK, _FAINT = "#010101", "#020202"
SERIES = ("#0a0a01", "#0a0a02", "#0a0a03", "#0a0a04")
_VARIABLES = {
  _INK: "var(--ink)",
  _FAINT: "var(--faint)",
  **{colour: f"var(--c{n})" for n, colour in enumerate(SERIES, 1)},
}

_STYLE: dict[Any, Any] = {
  "svg.fonttype": "none",
  "font.family": "sans-serif",
  "font.size": 10,
  "text.color": _INK,
  "axes.labelcolor": _INK,
  "axes.edgecolor": _FAINT,
  "xtick.color": _INK,
  "ytick.color": _INK,
  "grid.color": _FAINT,
  "grid.alpha": 0.5,
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.titlesize": 10,
  "axes.titleweight": "bold",
  "axes.titlelocation": "left",
  "legend.frameon": False,
  "svg.hashsalt": "genie",
}

# (label, value, low, high); low and high are None if there is no interval.
Row = tuple[str, float, float | None, float | None]


def _figure(width: float, height: float, columns: int = 1):
  drawn = figure.Figure(figsize=(width, height), layout="constrained")
  backend_svg.FigureCanvasSVG(drawn)
  return drawn, drawn.subplots(1, columns, squeeze=False)[0]


def _svg(drawn: figure.Figure, description: str) -> str:
  """Returns the figure as an <svg> element without external references."""
  buffer = io.StringIO()
  drawn.savefig(
    buffer,
    format="svg",
    transparent=True,
    metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
  )
  text = buffer.getvalue()
  text = text[text.index("<svg") :]
  text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
  text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text)
  for colour, variable in _VARIABLES.items():
    text = text.replace(colour, variable)
  # Ids must be unique on a page with several figures.
  name = re.sub(r"\W+", "", description)[:24]
  text = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", text)
  size = re.search(r'width="([\d.]+)pt"', text)
  assert size is not None  # Matplotlib states the size in points.
  width = 1.35 * float(size[1])
  text = re.sub(
    r'<svg[^>]*viewBox="([^"]*)"[^>]*>',
    lambda match: (
      f'<svg viewBox="{match[1]}" role="img" '
      f'aria-label="{description}" '
      f'style="max-width:{width:.0f}px">'
    ),
    text,
    count=1,
  )
  return text


def comparison(panels: Mapping[str, Sequence[Row]], description: str) -> str:
  """Draws values as dots and their intervals as bars, in one or more panels.

  Args:
    panels: Title -> rows from top to bottom; the first row of each panel is
      the world, the others are its baselines and bounds.
    description: Alternative text for screen readers.

  Returns:
    An <svg> element, like the other functions of this module.
  """
  most = max(len(rows) for rows in panels.values())
  with matplotlib.rc_context(_STYLE):
    drawn, axes = _figure(3.6 * len(panels), 0.9 + 0.34 * most, len(panels))
    for ax, (title, rows) in zip(axes, panels.items(), strict=True):
      for place, (_, value, low, high) in enumerate(rows):
        colour = SERIES[0] if place == 0 else SERIES[1]
        if low is not None:
          ax.plot(
            [low, high],
            [place, place],
            color=colour,
            linewidth=3,
            solid_capstyle="butt",
            alpha=0.55,
          )
        ax.plot([value], [place], "o", color=colour, markersize=6)
      ax.set_yticks(range(len(rows)), [row[0] for row in rows])
      ax.set_ylim(most - 0.4, -0.6)
      ax.margins(x=0.18)
      ax.grid(axis="x")
      ax.set_title(title)
      ax.xaxis.set_major_locator(ticker.MaxNLocator(5))
      ax.tick_params(length=0)
    return _svg(drawn, description)


def code_usage(counts: np.ndarray) -> str:
  """Draws how often each code is used, most frequent first.

  Args:
    counts: [V], how often each code occurs.
  """
  share = np.sort(np.asarray(counts, float))[::-1] / np.sum(counts) * 100
  used = int((share > 0).sum())
  with matplotlib.rc_context(_STYLE):
    drawn, (ax,) = _figure(6.4, 2.7)
    ax.fill_between(
      np.arange(1, used + 1),
      share[:used],
      share[used - 1] / 2,
      step="mid",
      color=SERIES[0],
      alpha=0.65,
      linewidth=0,
    )
    ax.axhline(100 / len(share), color=SERIES[1], linewidth=1.5)
    ax.text(
      len(share),
      100 / len(share) * 1.15,
      "uniform use",
      ha="right",
      va="bottom",
      color=SERIES[1],
    )
    ax.set_yscale("log")
    ax.set_ylim(bottom=share[used - 1] / 2)
    ax.yaxis.set_major_formatter(ticker.FuncFormatter(lambda y, _: f"{y:g}"))
    ax.set_xlim(0, len(share) + 1)
    ax.set_xlabel("codes, most frequent first")
    ax.set_ylabel("% of tokens")
    return _svg(
      drawn,
      f"Code usage: {used} of {len(share)} codes are in use, the most "
      f"frequent accounts for {share[0]:.1f} % of tokens.",
    )


def heat_map(
  table: np.ndarray,
  rows: Sequence[str],
  columns: Sequence[str],
  labels: tuple[str, str],
  description: str,
  *,
  text: str,
  top: float | None = None,
) -> str:
  """Draws a matrix as shaded cells with values.

  Args:
    table: [rows, columns], 0 or more.
    rows: Label of each row.
    columns: Label of each column.
    labels: Titles of the row axis and of the column axis.
    description: Alternative text for screen readers.
    text: Format of a cell's value, for example ".0f".
    top: Value of the strongest shade; by default the largest in the table.
  """
  table = np.asarray(table, float)
  top = top or max(table.max(), 1e-12)
  with matplotlib.rc_context(_STYLE):
    drawn, (ax,) = _figure(1.3 + 0.62 * len(columns), 1.0 + 0.42 * len(rows))
    for (y, x), value in np.ndenumerate(table):
      ax.add_patch(
        patches.Rectangle(
          (x - 0.48, y - 0.48),
          0.96,
          0.96,
          color=SERIES[0],
          linewidth=0,
          alpha=0.04 + 0.66 * min(value / top, 1),
        )
      )
      ax.text(x, y, format(value, text), ha="center", va="center", fontsize=9)
    ax.set_xlim(-0.5, len(columns) - 0.5)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_xticks(range(len(columns)), columns)
    ax.set_yticks(range(len(rows)), rows)
    ax.tick_params(length=0)
    for spine in ax.spines.values():
      spine.set_visible(False)
    ax.set_ylabel(labels[0])
    ax.set_xlabel(labels[1])
    return _svg(drawn, description)


def lines(
  panels: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]],
  x_label: str,
  description: str,
  *,
  logarithmic: Sequence[str] = (),
) -> str:
  """Draws lines in one or more panels.

  Args:
    panels: Title -> name of a line -> its x and y.
    x_label: Title of the x axis.
    description: Alternative text for screen readers.
    logarithmic: Titles of panels whose y axis is logarithmic.
  """
  with matplotlib.rc_context(_STYLE):
    drawn, axes = _figure(3.6 * len(panels) + 1.4, 2.8, len(panels))
    for ax, (title, curves) in zip(axes, panels.items(), strict=True):
      for place, (name, (x, y)) in enumerate(curves.items()):
        ax.plot(
          x,
          y,
          color=SERIES[place % len(SERIES)],
          label=name,
          linewidth=1.8,
          linestyle=("-", "--", "-.", ":")[place % 4],
        )
      if title in logarithmic:
        ax.set_yscale("log")
      ax.set_title(title)
      ax.set_xlabel(x_label)
      ax.grid(axis="y")
      if len(curves) > 1 and len(panels) > 1:
        ax.legend(fontsize=9)
    if len(panels) == 1:  # There is room below one panel.
      drawn.legend(loc="outside lower center", fontsize=9, ncols=3)
    return _svg(drawn, description)
