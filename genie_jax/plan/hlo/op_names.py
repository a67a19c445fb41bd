"""Which part of the model an operation of a compiled step belongs to."""

import collections
import re
from collections.abc import Mapping

# The first pattern found in an operation's path names its part. Paths are
# those of JAX: "jit(step)/transpose(jvp(Dynamics))/.../space/qkv/dot_general".
_PARTS = (
  ("qk norms and rotary", r"(query|key)_norm|/time/(mul|add|sub|concatenate)"),
  ("norms", r"_norm/|/norm/"),
  ("projections", r"/(qkv|out)/"),
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


def of(op_name: str) -> tuple[str, str]:
  """Returns (part, pass): forward, backward or recomputed; "" outside both.

  Args:
    op_name: Path of the operation, "" where unknown.
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
  """Returns seconds by part and pass as aligned text, the largest first."""
  columns = ("forward", "backward", "recomputed", "")
  rows = collections.defaultdict(collections.Counter)
  for (part, direction), seconds in parts.items():
    rows[part][direction] += seconds
  total = sum(parts.values())
  lines = [
    f"{'milliseconds':22}{'forward':>10}{'backward':>10}"
    f"{'recomputed':>11}{'neither':>10}{'share':>8}"
  ]
  for part, row in sorted(rows.items(), key=lambda item: -item[1].total()):
    cells = [f"{1e3 * row[c]:.1f}" if row[c] else "-" for c in columns]
    lines.append(
      f"{part:22}{cells[0]:>10}{cells[1]:>10}{cells[2]:>11}{cells[3]:>10}"
      f"{row.total() / total:>8.1%}"
    )
  return "\n".join(lines)
