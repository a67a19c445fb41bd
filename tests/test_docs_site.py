"""Tests of the documentation site, on a small project and on this one."""

import html
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
MODULE = '''"""Ways to add.

Shapes:
  A  apples    B  baskets
"""

raise ImportError("A documentation build imports nothing.")


class Basket:
  """Holds apples.

  Attributes:
    apples: int32 [A].
  """

  apples: int


def add(basket: Basket, *, apples: int = 1) -> Basket:
  """Returns a basket with more apples, `a * b` and a * b.

    add(basket)

  Args:
    basket: The basket before.
    apples: How many to add.
  """
'''


@pytest.fixture
def project(tmp_path):
  """Returns a project with the site's real configuration and two packages."""
  shutil.copytree(
    ROOT / "docs",
    tmp_path / "docs",
    ignore=lambda folder, names: [
      name for name in names if name not in ("conf.py", "api_pages.py")
    ],
  )
  for package in ("genie_jax", "data_pipelines"):
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text(
      f'"""The package {package}."""\n\n__version__ = "1.2.3"\n'
    )
  (tmp_path / "genie_jax" / "adding.py").write_text(MODULE)
  (tmp_path / "README.md").write_text("# Start\n\nSee [more](docs/more.md).\n")
  (tmp_path / "docs" / "more.md").write_text("# More\n\n## A heading\n")
  return tmp_path


def build(folder, out=None):
  """Builds a site as `make docs` does; returns the exit status and messages."""
  done = subprocess.run(
    [sys.executable, "-m", "sphinx", "-W", "--keep-going", "--quiet",
     "-c", "docs", "-d", str((out or folder / "build") / "cache"),
     ".", str(out or folder / "build")],
    cwd=folder, capture_output=True, text=True, timeout=500, check=False,
  )  # fmt: skip
  return done.returncode, done.stderr


def page(folder, name):
  """Returns the text of a page without its tags."""
  source = (folder / "build" / f"{name}.html").read_text()
  body = source.partition("<article")[2].partition("</article>")[0]
  text = html.unescape(re.sub(r"<[^>]+>", "", body))
  return re.sub(r"\s+", " ", text)


def test_a_module_has_a_page_of_its_docstrings_and_is_not_imported(project):
  assert build(project) == (0, "")
  text = page(project, "docs/api/genie_jax.adding")
  assert "Part of genie_jax" in text
  assert "A apples B baskets" in text
  assert "apples (int): int32 [A]." in text
  assert "add( basket: Basket, *, apples: int = 1, ) → Basket" in text
  assert "Returns a basket with more apples, a * b and a * b." in text
  assert "basket: The basket before." in text
  assert "Ways to add." in page(project, "docs/api/genie_jax")
  # The type in the signature is a link to the class.
  source = (project / "build/docs/api/genie_jax.adding.html").read_text()
  assert 'href="#genie_jax.adding.Basket"' in source
  assert "url=README.html" in (project / "build/index.html").read_text()


def test_pages_follow_the_modules_that_exist(project, monkeypatch):
  monkeypatch.syspath_prepend(ROOT / "docs")
  import api_pages

  pages = project / "docs" / "api"
  api_pages.write_pages(project)
  before = (pages / "genie_jax.adding.md").read_text()
  module = project / "genie_jax" / "adding.py"
  module.rename(module.with_name("summing.py"))
  api_pages.write_pages(project)
  names = {path.stem for path in pages.iterdir()}
  assert names == {"genie_jax", "genie_jax.summing", "data_pipelines"}
  after = (pages / "genie_jax.summing.md").read_text()
  assert after.replace("summing", "adding") == before


def test_broken_links_and_wrong_arguments_fail_and_are_named(project):
  (project / "README.md").write_text(
    "# Start\n\n[page](docs/less.md) [heading](docs/more.md#no-heading) "
    "[folder](no_folder) [good](docs/more.md#a-heading) [code](genie_jax)\n\n"
    "![picture](docs/no.png)\n"
  )
  module = project / "genie_jax" / "adding.py"
  module.write_text(
    module.read_text().replace("    apples: How", "    pears: How")
  )
  status, messages = build(project)
  assert status != 0
  for name in ("less", "no-heading", "no_folder", "no.png", "pears"):
    assert sum(name in line for line in messages.splitlines()) == 1, messages
  assert "a-heading" not in messages and "'genie_jax'" not in messages


@pytest.mark.slow
def test_the_site_builds_and_loads_nothing_from_other_servers(tmp_path):
  assert build(ROOT, tmp_path) == (0, "")
  pages = list(tmp_path.rglob("*.html"))
  modules = [
    path
    for package in ("genie_jax", "data_pipelines")
    for path in (ROOT / package).rglob("*.py")
    if not path.name.startswith("_")
  ]
  assert len(pages) > len(modules) > 100
  loads = re.compile(
    r"<(?:script|img|iframe|source)[^>]*\bsrc=[\"']?(?:https?:)?//"
    r"|<link[^>]*\bhref=[\"']?(?:https?:)?//"
  )
  for path in pages:
    assert not loads.search(path.read_text()), path
  for path in tmp_path.rglob("*.css"):
    assert not re.search(
      r"@import|url\([\"']?(?:https?:)?//", path.read_text()
    ), path
