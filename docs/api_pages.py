"""Sphinx extension: writes one Markdown page a module from its docstrings.

Griffe parses the source files, so nothing is imported and no accelerator
library is needed. The list of modules is read from the tree: a new or renamed
module has its page at the next build, and the pages of removed modules are
removed. What Griffe reports about a docstring, such as an argument that the
function does not have, is a warning of Sphinx and ends a strict build.

Docstrings are Google style. Their text is shown as it is written: `code` in
backticks, paragraphs, lists; an indented block is shown with its columns kept.
"""

import contextlib
import logging
import pathlib
import re
import textwrap

import griffe
from sphinx.util import logging as sphinx_logging

_LOG = sphinx_logging.getLogger(__name__)
PACKAGES = ("genie_jax", "data_pipelines")
_FOLDER = pathlib.Path("docs/api")
_LONGEST_VALUE = 60  # Characters of a constant's value that are shown.
_OPTIONS = {
  "warn_missing_types": False,  # The type checker asks for these.
  "returns_multiple_items": False,
  "returns_named_value": False,
}
_LIST_ITEM = re.compile(r"(\d+[.)]|[-*])\s")
_SPECIAL = re.compile(r"([\\*_<>\[\]{}$~#|!])")


def setup(app):
  """Registers the extension."""
  app.connect("builder-inited", _write_pages)
  return {"parallel_read_safe": True}


def _write_pages(app):
  write_pages(pathlib.Path(app.srcdir))


def write_pages(root: pathlib.Path) -> None:
  """Writes the pages of all modules below `root` to its docs/api.

  Args:
    root: The folder that has the packages.
  """
  pages = {}
  with _warnings_of_sphinx():
    loader = griffe.GriffeLoader(
      search_paths=[root],
      allow_inspection=False,
      docstring_parser=griffe.Parser.google,
      docstring_options=_OPTIONS,
    )
    packages = [loader.load(name, try_relative_path=False) for name in PACKAGES]
    for package in packages:
      for module in _modules(package):
        pages[root / _FOLDER / f"{module.path}.md"] = page(module)
  folder = root / _FOLDER
  folder.mkdir(exist_ok=True)
  for path in set(folder.glob("*.md")) - set(pages):
    path.unlink()
  for path, text in pages.items():
    # Sphinx reads again only files that are newer than its last build.
    if not path.exists() or path.read_text() != text:
      path.write_text(text)


@contextlib.contextmanager
def _warnings_of_sphinx():
  """Makes Griffe's warnings Sphinx's, which counts them."""
  logger, handler = logging.getLogger("griffe"), logging.Handler()
  handler.setLevel(logging.WARNING)
  handler.emit = lambda record: _LOG.warning(record.getMessage())
  propagate, logger.propagate = logger.propagate, False
  logger.addHandler(handler)
  try:
    yield
  finally:
    logger.removeHandler(handler)
    logger.propagate = propagate


def _public(obj):
  """Returns the members that a file itself defines under public names."""
  return [
    member
    for name, member in obj.members.items()
    if not name.startswith("_") and not member.is_alias
  ]


def _modules(module):
  """Yields a package and all public modules below it."""
  yield module
  for member in _public(module):
    if member.is_module:
      yield from _modules(member)


def page(module: griffe.Module) -> str:
  """Returns the page of a module in MyST's Markdown."""
  below = sorted(
    (member for member in _public(module) if member.is_module),
    key=lambda member: member.name,
  )
  lines = [] if _in_sidebar(module) else ["---", "orphan: true", "---", ""]
  lines += [f"# {_escape(module.path)}", ""]
  lines += _directive("py:module", module.path, [])
  if module.parent is not None:
    lines += [
      f"Part of [{_escape(module.parent.path)}]({module.parent.path}.md)",
      "",
    ]
  lines += _docstring(module)
  if below:
    lines += ["## Modules", "", *_modules_table(below)]
  for member in _public(module):
    if member.is_function:
      lines += _function(member)
    elif member.is_class:
      lines += _class(member)
    elif member.is_attribute:
      lines += _constant(member)
  return "\n".join(lines) + "\n"


def _in_sidebar(module):
  """Whether a module has an entry in the sidebar: packages have.

  The theme draws the whole sidebar on every page, which would take most of
  the time of a build if it had all modules.
  """
  return module.is_init_module


def _modules_table(modules):
  lines = ["| module | |", "|---|---|"]
  for module in modules:
    first = module.docstring.value.splitlines()[0] if module.docstring else ""
    lines.append(
      f"| [{_escape(module.name)}]({module.path}.md) | {_text_line(first)} |"
    )
  entries = [module.path for module in modules if _in_sidebar(module)]
  return [*lines, "", *_directive("toctree", "", [":hidden:", "", *entries])]


def _directive(name, argument, content):
  """Returns a directive whose fence is longer than any in its content."""
  longest = max(
    (
      len(match[0])
      for line in content
      if (match := re.match(r"`{3,}", line.lstrip()))
    ),
    default=2,
  )
  fence = "`" * (longest + 1)
  return [f"{fence}{{{name}}} {argument}".rstrip(), *content, fence, ""]


def _function(function, kind="py:function"):
  options = []
  if "staticmethod" in function.labels:
    options = [":staticmethod:", ""]
  elif "classmethod" in function.labels:
    options = [":classmethod:", ""]
  return _directive(
    kind, function.name + _signature(function), options + _docstring(function)
  )


def _signature(function, skip_self=None):
  if skip_self is None:
    skip_self = (
      function.parent.is_class and "staticmethod" not in function.labels
    )
  parts, kind = [], None
  for parameter in list(function.parameters)[1 if skip_self else 0 :]:
    star = {"variadic positional": "*", "variadic keyword": "**"}.get(
      parameter.kind.value, ""
    )
    if parameter.kind.value == "keyword-only" and kind not in (
      "keyword-only",
      "variadic positional",
    ):
      parts.append("*")
    if kind == "positional-only" and parameter.kind.value != kind:
      parts.append("/")
    kind = parameter.kind.value
    text = star + parameter.name
    if parameter.annotation is not None:
      text += f": {_type(parameter.annotation)}"
    if parameter.default is not None and not star:
      equals = " = " if parameter.annotation is not None else "="
      text += equals + _one_line(parameter.default)
    parts.append(text)
  if kind == "positional-only":
    parts.append("/")
  returns = (
    f" -> {_type(function.returns)}" if function.returns is not None else ""
  )
  return f"({', '.join(parts)}){returns}"


def _class(cls):
  content = _docstring(cls, skip={"attributes"})
  start = cls.members.get("__init__")
  signature = ""
  if start is not None and start.is_function:
    signature = _signature(start, skip_self=True).removesuffix(" -> None")
    content += _docstring(start)
  content += _fields(cls)
  for member in _public(cls):
    if member.is_function:
      content += _function(member, "py:method")
    elif member.is_attribute and "property" in member.labels:
      options = (
        [":type: " + _type(member.annotation), ""]
        if (member.annotation is not None)
        else []
      )
      content += _directive(
        "py:property", member.name, options + _docstring(member)
      )
    elif member.is_class:
      content += _class(member)
  return _directive("py:class", cls.name + signature, content)


def _fields(cls):
  """Returns a list of a class's fields, with types and explanations."""
  explained = {}
  for section in _sections(cls):
    if section.kind.value == "attributes":
      explained = {item.name: item.description for item in section.value}
  declared = {
    member.name: member
    for member in _public(cls)
    if member.is_attribute
    and "property" not in member.labels
    and "class-attribute" in member.labels | _declared(member)
  }
  lines = []
  for name in dict.fromkeys([*explained, *declared]):
    member = cls.members.get(name)
    annotation = getattr(member, "annotation", None)
    if member is not None and "property" in member.labels:
      continue
    typed = f" (`{_one_line(annotation)}`)" if annotation is not None else ""
    lines += _item(f"`{name}`{typed}", explained.get(name, ""))
  return ["**Attributes**", "", *lines, ""] if lines else []


def _declared(member):
  """Returns a label for a field that is annotated in the class's body."""
  return {"class-attribute"} if member.annotation is not None else set()


def _constant(attribute):
  if attribute.name.startswith("__"):
    return []
  options = []
  if attribute.annotation is not None:
    options.append(f":type: {_type(attribute.annotation)}")
  value = "" if attribute.value is None else _one_line(attribute.value)
  if 0 < len(value) <= _LONGEST_VALUE:
    options.append(f":value: {value}")
  return _directive(
    "py:data", attribute.name, [*options, "", *_docstring(attribute)]
  )


def _sections(obj):
  return obj.docstring.parsed if obj.docstring else []


def _docstring(obj, skip=frozenset()):
  """Returns the lines of an object's docstring as Markdown."""
  lines = []
  for section in _sections(obj):
    kind = section.kind.value
    if kind in skip:
      continue
    if kind == "text":
      lines += markdown(section.value)
    elif kind == "admonition":
      lines += [f"**{_escape(section.title)}**", ""]
      lines += _block(section.value.contents)
    elif kind in ("parameters", "attributes"):
      title = "Args" if kind == "parameters" else "Attributes"
      lines += [f"**{title}**", ""]
      for item in section.value:
        lines += _item(f"`{item.name}`", item.description)
    elif kind in ("returns", "yields"):
      lines += [f"**{kind.capitalize()}**", ""]
      for item in section.value:
        lines += markdown(item.description)
    elif kind == "raises":
      lines += ["**Raises**", ""]
      for item in section.value:
        lines += _item(f"`{_one_line(item.annotation)}`", item.description)
    else:
      _LOG.warning("%s: no rule for a docstring's section %r", obj.path, kind)
    lines.append("")
  return lines


def _item(name, description):
  text = " ".join(_text_line(line) for line in description.split("\n"))
  return [f"- {name}: {text}" if text else f"- {name}"]


def markdown(text: str) -> list[str]:
  """Returns a docstring's text as lines of Markdown.

  Args:
    text: Paragraphs, lists and indented blocks, with code in backticks.
  """
  lines = []
  for paragraph in re.split(r"\n\s*\n", text.strip("\n")):
    start = paragraph.lstrip("\n").split("\n")[0]
    if _LIST_ITEM.match(start.strip()):
      for line in textwrap.dedent(paragraph).split("\n"):
        indent = len(line) - len(line.lstrip())
        marker = _LIST_ITEM.match(line.lstrip())
        head = marker[0] if marker else ""
        rest = line.lstrip()[len(head) :]
        lines.append(" " * indent + head + _text_line(rest))
      lines.append("")
    elif all(line.startswith("  ") for line in paragraph.split("\n") if line):
      lines += _block(paragraph)
    else:
      lines += [_text_line(line) for line in paragraph.split("\n")] + [""]
  return lines


def _block(text):
  """Returns text whose columns are kept."""
  return ["```text", *textwrap.dedent(text).strip("\n").split("\n"), "```", ""]


def _text_line(line):
  """Escapes Markdown's signs outside of `code`."""
  parts = re.split(r"(`[^`]+`)", line.strip())
  return "".join(
    part
    if part.startswith("`") and part.endswith("`") and len(part) > 1
    else _escape(part)
    for part in parts
  )


def _escape(text):
  return _SPECIAL.sub(r"\\\1", text)


def _type(annotation):
  """Returns an annotation with full names of our own classes, to be links."""
  if isinstance(annotation, (griffe.ExprName, griffe.ExprAttribute)):
    return _full_name(annotation) or str(annotation)
  if isinstance(annotation, griffe.Expr):
    return " ".join(
      "".join(_type(part) for part in annotation.iterate(flat=False)).split()
    )
  return str(annotation)


def _full_name(name):
  """Returns the full name of a class of ours, None of any other."""
  full = name.canonical_path
  if full.split(".")[0] not in PACKAGES:
    return None
  first = name.first if isinstance(name, griffe.ExprAttribute) else name
  try:
    first.parent.modules_collection.get_member(full)
  except KeyError:
    # A field of a class has the name of an imported module, which hides it.
    return None
  return full


def _one_line(expression):
  return " ".join(str(expression).split())
