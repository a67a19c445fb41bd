"""Tests of the forms of input, and of reading JSON by them."""

import json
import math

import hypothesis
import pytest
from hypothesis import strategies as st

from genie_jax.core import errors, files, schema

_FORM = {
  "step": schema.NATURAL,
  "rate": schema.Number(0, 1, above=True, below=True),
  "name": str,
  "size": (schema.COUNT, schema.COUNT),
  "rows": [{"id": schema.Text("[a-z]+", "a word")}],
  "note": schema.Maybe(str),
  "last": schema.Maybe(schema.NATURAL, null=True),
}
_GOOD = {
  "step": 0,
  "rate": 0.5,
  "name": "x",
  "size": [1, 2],
  "rows": [{"id": "a"}, {"id": "b", "other": [None]}],
  "last": None,
}
# Few characters: all of Unicode takes seconds to prepare.
_TEXT = st.text('ab. \0\n\x7f"\\{[é', max_size=8)
JSON = st.recursive(
  st.none()
  | st.booleans()
  | st.integers()
  | st.floats(allow_nan=False, allow_infinity=False)
  | _TEXT,
  lambda inner: (
    st.lists(inner, max_size=4) | st.dictionaries(_TEXT, inner, max_size=4)
  ),
  max_leaves=8,
)


def refused(value, form=_FORM):
  """Returns the message with which a value is refused."""
  with pytest.raises(errors.UserError) as raised:
    schema.check(value, form, "here", "mend it")
  message = str(raised.value)
  assert message.startswith("here") and message.endswith("; mend it.")
  assert message.isprintable(), message
  return message


def test_a_value_of_the_form_passes():
  schema.check(_GOOD, _FORM, "here", "mend it")
  schema.check({"step": 3, "x": None, "y": 1}, schema.METRICS, "here", "mend")


@pytest.mark.parametrize(
  "field, value, message",
  [
    ("step", -1, "step is -1, but must be a whole number of at least 0"),
    ("step", True, "step is True"),
    ("step", 1.0, "step is 1.0"),
    ("step", 1 << 200, "step is a number of 201 bits"),
    ("rate", 0, "rate is 0, but must be a finite number of more than 0 and"),
    ("rate", 1, "less than 1"),
    ("rate", math.nan, "rate is nan"),
    ("name", "a\0b", "name is 'a\\x00b', but must be text without control"),
    ("name", "\ud800", "name is '\\ud800'"),
    ("size", [1], "size is a list of 1, but must be a list of 2"),
    ("size", [1, 0], r"size[1] is 0"),
    ("rows", {}, "rows is {}, but must be a list"),
    ("rows", [{"id": "a"}, {}], "rows[1].id is missing"),
    ("rows", [{"id": "A"}], "rows[0].id is 'A', but must be a word"),
    ("note", None, "note is None"),
    ("last", "1", "last is '1'"),
  ],
)
def test_the_first_wrong_part_is_named_with_its_value(field, value, message):
  assert message in refused({**_GOOD, field: value})


def test_names_with_control_characters_are_shown_in_one_line():
  assert "a?b is 'x'" in refused({"step": 1, "a\nb": "x"}, schema.METRICS)


def test_a_missing_field_is_named():
  assert "here: step is missing" in refused({})
  assert "must be a group of fields" in refused([])


@pytest.mark.parametrize(
  "content, why",
  [
    (b"", "Expecting value"),
    (b"[1, 2]", "a list of 2, but must be a group of fields"),
    (b"7", "is 7"),
    (b'"x"', "is 'x'"),
    (b"null", "is None"),
    (b'{"a": ', "Expecting value"),
    (b'{"a": 1}\xff', "can't decode"),
    (b'{"a": NaN}', "NaN is not a finite number"),
    (b'{"a": -Infinity}', "-Infinity is not"),
    (b'{"a": 1e999}', "1e999 is not"),
    (b'{"a": 1%s}' % (b"0" * 5000), "too large"),
    (b'{"a": 36893488147419103232}', "too large"),
    (b'{"a": %s%s}' % (b"[" * 70, b"]" * 70), "more than 64 levels"),
    (b'{"a": %s%s}' % (b"[" * 99_999, b"]" * 99_999), "levels"),
  ],
)
def test_a_file_of_other_json_is_one_line(tmp_path, content, why):
  path = tmp_path / "state.json"
  path.write_bytes(content)
  with pytest.raises(errors.UserError) as raised:
    files.read_json(path)
  message = str(raised.value)
  assert str(path) in message and why in message and len(message) < 500


def test_what_is_not_a_file_is_one_line(tmp_path):
  for path in (tmp_path, f"{tmp_path}/a\0b"):
    with pytest.raises(errors.UserError, match="cannot be read"):
      files.read_json(path)


def test_a_file_that_is_too_large_is_not_read(tmp_path, monkeypatch):
  monkeypatch.setattr(files, "_MOST_BYTES", 8)
  (tmp_path / "a.json").write_text('{"a": 10}')
  with pytest.raises(errors.UserError, match="check the path"):
    files.read_json(tmp_path / "a.json")


def test_lines_are_checked_one_by_one(tmp_path):
  path = tmp_path / "metrics.jsonl"
  path.write_text('{"step": 1, "loss": 2.5}\n{"step": 2, "loss": nu')
  with pytest.raises(errors.UserError, match="line 2 is not valid JSON"):
    files.read_json_lines(path, schema.METRICS)
  assert files.read_json_lines(path, schema.METRICS, torn=True) == [
    {"step": 1, "loss": 2.5}
  ]
  path.write_text('{"step": 1}\n{"step": 2, "loss": "low"}\n')
  with pytest.raises(errors.UserError, match="line 2: loss is 'low'"):
    files.read_json_lines(path, schema.METRICS, torn=True)


@hypothesis.settings(max_examples=60, derandomize=True, deadline=None)
@hypothesis.given(st.binary(max_size=40) | JSON.map(json.dumps))
def test_any_content_is_read_or_refused_in_one_line(content):
  content = content.encode() if isinstance(content, str) else content
  try:
    found = files.parse_json(content, "here", object)
  except errors.UserError as error:
    assert str(error).startswith("here") and len(str(error)) < 500
  else:
    assert json.loads(content) == found


@hypothesis.settings(max_examples=60, derandomize=True, deadline=None)
@hypothesis.given(JSON, st.sampled_from(sorted(_GOOD)))
def test_any_value_has_the_form_or_is_refused(value, field):
  for each in (value, {**_GOOD, field: value}):
    try:
      schema.check(each, _FORM, "here", "mend it")
    except errors.UserError as error:
      assert str(error).isprintable() and len(str(error)) < 300
    else:
      assert set(each) >= set(_FORM) - {"note", "last"}
