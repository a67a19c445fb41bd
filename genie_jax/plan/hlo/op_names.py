"""Maps operations of a compiled step to parts of the model and passes."""

import re
from collections.abc import Mapping

# Part of the model -> pattern of an operation's path; the first match is used.
# JAX's paths are "jit(step)/transpose(jvp(Dynamics))/.../qkv/dot_general".
_PARTS = (
  ("qk norms and rotary", r"(query|key)_norm|/time/(mul|add|sub|concatenate)"),
  ("norms", r"_norm/|/norm/"),
  ("projections", r"/(qkv|query|key|value|out)/"),
  ("mlp", r"mlp"),
  ("space attention", r"/space/|splash"),
  ("time attention", r"/time/|time_attention"),
  (
    "logits and loss",
    r"to_logits|log_softmax|softmax_cross|token_terms|"
    r"argmax|reduce_max|take_along",
  ),
  ("embeddings", r"_take|position|embed|_where"),
)


def classify(op_name: str) -> tuple[str, str]:
  """Returns the part of the model and the pass of an operation.

  Args:
    op_name: Path of the operation, "" if unknown.

  Returns:
    The part, and "forward", "backward", "recomputed" or, outside the model, "".
  """
  if not op_name:
    return ("unnamed", "")
  if "jvp(" not in op_name:
    return ("optimizer and other", "")
  if "rematted_computation" in op_name:
    direction = "recomputed"
  elif "transpose(jvp" in op_name:
    direction = "backward"
  else:
    direction = "forward"
  for part, pattern in _PARTS:
    if re.search(pattern, op_name):
      return (part, direction)
  return ("other of the model", direction)


def render(parts: Mapping[tuple[str, str], float]) -> str:
  """Returns a table of seconds by part and pass, the largest part first."""
  columns = ("forward", "backward", "recomputed", "")
  rows: dict[str, dict[str, float]] = {}
  for (part, direction), seconds in parts.items():
    row = rows.setdefault(part, dict.fromkeys(columns, 0.0))
    row[direction] += seconds
  total = sum(parts.values())
  lines = [
    f"{'milliseconds':22}{'forward':>10}{'backward':>10}"
    f"{'recomputed':>11}{'neither':>10}{'share':>8}"
  ]
  by_time = sorted(rows.items(), key=lambda item: -sum(item[1].values()))
  for part, row in by_time:
    cells = [f"{1e3 * row[c]:.1f}" if row[c] else "-" for c in columns]
    lines.append(
      f"{part:22}{cells[0]:>10}{cells[1]:>10}{cells[2]:>11}{cells[3]:>10}"
      f"{sum(row.values()) / total:>8.1%}"
    )
  return "\n".join(lines)
