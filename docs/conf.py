"""Sphinx configuration of the documentation site; `make docs` builds it.

The source folder is the root of the repository, so that README.md, BUILD.md
and docs/*.md are the pages of the site and the links between them are the same
on the site and in a checkout. `api_pages` writes the pages of docs/api from
docstrings, without importing the package.
"""

import pathlib
import posixpath
import re
import sys

from sphinx import addnodes
from sphinx.transforms import post_transforms

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "docs"))

project = "genie_jax"
author = "The genie_jax developers"
project_copyright = author
release = re.search(
  r'__version__ = "(.+)"', (ROOT / "genie_jax/__init__.py").read_text()
)[1]

extensions = ["myst_parser", "api_pages"]
root_doc = "README"
include_patterns = [
  "*.md",
  "docs/**.md",
  "data_pipelines/**.md",
  "experiments/**.md",
]
# Sphinx walks through all folders but these.
exclude_patterns = [
  ".*",
  "build",
  "dist",
  "runs",
  "tests",
  "genie_jax",
  "*.egg-info",
]

# Headings are targets of links by the names that code hosts give them.
myst_heading_anchors = 6
highlight_language = "text"
smartquotes = False
# `name` in the Python domain's signatures; longer ones have a line for each
# parameter.
maximum_signature_line_length = 80
add_module_names = False
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = "genie_jax"
html_copy_source = False
html_show_sourcelink = False

# Pages of the sidebar, in this order; the rest of docs/ follows by name.
_GUIDE = ("BUILD", "CONTRIBUTING")
_LAST = ("CHANGELOG", "SECURITY")


def _add_sidebar(app, docname, source):
  """Appends the table of contents to the first page; it is not shown there."""
  if docname != root_doc:
    return
  pages = app.env.found_docs - {root_doc}
  named = lambda names: [name for name in names if name in pages]
  guide = sorted(page for page in pages if re.fullmatch(r"docs/\w+", page))
  other = sorted(
    page
    for page in pages
    if page not in (*_GUIDE, *_LAST, *guide)
    and not page.startswith("docs/api/")
  )
  for caption, entries in (
    ("Guide", [*named(_GUIDE), *guide]),
    ("API", ["docs/api/genie_jax", "docs/api/data_pipelines"]),
    ("Project", [*named(_LAST), *other]),
  ):
    source[0] += "\n".join(
      [
        "",
        "```{toctree}",
        ":hidden:",
        f":caption: {caption}",
        "",
        *entries,
        "```",
        "",
      ]
    )


class _LinksToFolders(post_transforms.SphinxPostTransform):
  """Shows a link to a folder of the repository as its text alone.

  A site has no page for a folder. A link to what does not exist stays one that
  Sphinx reports.
  """

  default_priority = 8  # Before MyST resolves links, at 9.

  def run(self, **kwargs):
    del kwargs
    for node in list(self.document.findall(addnodes.pending_xref)):
      if node["reftype"] != "myst":
        continue
      page = posixpath.dirname(node["refdoc"])
      folder = (ROOT / page / node["reftarget"]).resolve()
      if folder.is_dir() and folder.is_relative_to(ROOT):
        node.replace_self(node.children)


def _write_start(app, exception):
  """Writes index.html, which leads to the first page."""
  if exception is None and app.builder.format == "html":
    (pathlib.Path(app.outdir) / "index.html").write_text(
      '<!doctype html>\n<meta charset="utf-8">\n'
      f"<title>{html_title}</title>\n"
      f'<meta http-equiv="refresh" content="0; url={root_doc}.html">\n'
      f'<a href="{root_doc}.html">{html_title}</a>\n'
    )


def setup(app):
  """Registers what the site needs in addition to the extensions."""
  app.connect("source-read", _add_sidebar)
  app.add_post_transform(_LinksToFolders)
  app.connect("build-finished", _write_start)
