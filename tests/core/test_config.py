"""Tests of loading configs, overriding fields and fingerprints."""

import ml_collections
import pytest

from genie_jax.core import config as config_lib
from genie_jax.core import errors

_FILE = """
import ml_collections

def get_config(mode=""):
  if mode not in ("", "small"):
    raise ValueError(f"Unknown mode {mode!r}; use '' or 'small'.")
  config = ml_collections.ConfigDict()
  config.steps = 10 if mode else 100
  config.on = False
  config.path = ""
  config.grid = (2, 3)
  config.maybe = None
  config.optimizer = dict(peak_lr=1e-3, warmup=5, inner=dict(b1=0.9))
  return config
"""


@pytest.fixture
def path(tmp_path):
  (tmp_path / "c.py").write_text(_FILE)
  return str(tmp_path / "c.py")


def load(path, *overrides):
  return config_lib.load(path, overrides)


def test_the_mode_follows_the_colon_and_the_config_is_locked(path):
  assert load(path).steps == 100
  config = load(f"{path}:small")
  assert config.steps == 10
  with pytest.raises(AttributeError):
    config.stpes = 1


@pytest.mark.parametrize(
  "override, read, value",
  [
    ("--config.steps=7", lambda c: c.steps, 7),
    ("--config.steps=+7", lambda c: c.steps, 7),
    ("--config.on=true", lambda c: c.on, True),
    ("--config.on=FALSE", lambda c: c.on, False),
    ("--config.path=gs://b/a=b", lambda c: c.path, "gs://b/a=b"),
    ("--config.path=12", lambda c: c.path, "12"),
    ("--config.grid=(4, 5)", lambda c: c.grid, (4, 5)),
    ("--config.grid=[4,5]", lambda c: c.grid, (4, 5)),
    ("--config.optimizer.peak_lr=3e-4", lambda c: c.optimizer.peak_lr, 3e-4),
    ("--config.optimizer.peak_lr=1", lambda c: c.optimizer.peak_lr, 1.0),
    ("--config.optimizer.inner.b1=0.95", lambda c: c.optimizer.inner.b1, 0.95),
  ],
)
def test_an_override_is_converted_to_the_type_of_its_field(
  path, override, read, value
):
  found = read(load(path, override))
  assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
  "override",
  [
    "--config.steps=many",
    "--config.steps=1.5",
    "--config.on=1",
    "--config.on=yes",
    "--config.optimizer.peak_lr=big",
    "--config.optimizer.peak_lr=None",
    "--config.grid=4",
    "--config.steps=",
    "--config.steps=True",
  ],
)
def test_an_override_of_another_type_is_rejected(path, override):
  with pytest.raises(errors.UserError, match="is not of type") as raised:
    load(path, override)
  assert override in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
  "override, nearest",
  [
    ("--config.stepz=1", "'steps'"),
    ("--config.optimizer.peek_lr=1", "'optimizer.peak_lr'"),
    ("--config.peak_lr=1", "'optimizer.peak_lr'"),
    ("--config.steps.more=1", "'steps'"),
  ],
)
def test_the_error_for_an_unknown_field_suggests_the_closest_name(
  path, override, nearest
):
  with pytest.raises(errors.UserError, match="has no field") as raised:
    load(path, override)
  assert f"did you mean {nearest}" in str(raised.value)


def test_a_group_of_fields_cannot_be_overridden(path):
  with pytest.raises(errors.UserError, match=r"group of fields.*inner\.b1"):
    load(path, "--config.optimizer=1")


def test_a_malformed_override_is_rejected(path):
  for override in ("--config.steps", "--steps=1"):
    with pytest.raises(errors.UserError, match="is not an override"):
      load(path, override)


def test_the_error_for_an_unknown_mode_lists_the_known_modes(path):
  with pytest.raises(errors.UserError, match="Unknown mode 'big'; use ''"):
    load(f"{path}:big")


def test_a_file_that_is_not_a_config_is_rejected(tmp_path):
  with pytest.raises(errors.UserError, match="is not a file"):
    load(str(tmp_path / "none.py"))
  cases = {
    "empty.py": ("", "no function get_config"),
    "broken.py": ("def get_config(:", "cannot be imported"),
    "lost.py": ("import no_such_module_at_all", "cannot be imported"),
    "text.txt": ("hello", "is not a Python file"),
  }
  for name, (text, message) in cases.items():
    (tmp_path / name).write_text(text)
    with pytest.raises(errors.UserError, match=message):
      load(str(tmp_path / name))


def test_fingerprints_ignore_field_order_and_list_or_tuple():
  one = ml_collections.ConfigDict({"a": 1, "b": {"c": (1, 2), "d": "x"}})
  other = {"b": {"d": "x", "c": [1, 2]}, "a": 1}
  assert config_lib.fingerprint(one) == config_lib.fingerprint(other)
  assert len(config_lib.fingerprint(one)) == 64


def test_fingerprints_differ_for_different_values_and_types():
  prints = [
    config_lib.fingerprint({"a": value})
    for value in (1, 2, 1.5, "1", True, None, [1], {"b": 1})
  ]
  assert len(set(prints)) == len(prints)
