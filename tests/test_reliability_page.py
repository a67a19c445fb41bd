"""The page of promises names tests and campaigns that exist."""

import ast
import pathlib
import re

from tests.faults import __main__ as faults

ROOT = pathlib.Path(__file__).parents[1]
PAGE, _, CAMPAIGNS = (
  (ROOT / "docs/reliability.md").read_text().partition("## Campaigns")
)
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def test_every_row_names_tests_that_exist():
  rows = [
    line
    for line in PAGE.splitlines()
    if line.startswith("| ") and not line.startswith("| fault")
  ]
  assert len(rows) > 20
  for row in rows:
    found = TEST.findall(row)
    assert found, row
    for file, name in found:
      tree = ast.parse((ROOT / file).read_text())
      assert name in {
        node.name for node in tree.body if isinstance(node, ast.FunctionDef)
      }, f"{file}::{name}"


def test_every_campaign_has_its_row():
  named = re.findall(r"^\| `([\w-]+)` \|", CAMPAIGNS, re.MULTILINE)
  assert named == list(faults.campaigns(ROOT, ROOT))
