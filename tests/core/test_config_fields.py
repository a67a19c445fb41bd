"""Tests of the bounds of config fields."""

import contextlib
import json
import pathlib

import hypothesis
import pytest
from hypothesis import strategies as st

from genie_jax.cli import main
from genie_jax.core import config as config_lib
from genie_jax.core import config_fields, errors, schema

_EXPERIMENTS = pathlib.Path(__file__).parents[2] / "experiments"
_SHIPPED = sorted(
  path
  for path in _EXPERIMENTS.glob("*/*.py")
  if "def get_config(" in path.read_text()
)
_SMOKE = f"{_EXPERIMENTS / 'coinrun/joint.py'}:smoke"
_NUMBERS = (int, float)


@pytest.mark.parametrize(
  "path", _SHIPPED, ids=lambda path: f"{path.parent.name}/{path.stem}"
)
def test_every_number_of_the_shipped_configs_has_bounds(path):
  config = load_first_mode(path)
  for name, value in config_lib.dotted(config_lib.to_dict(config)).items():
    if isinstance(value, _NUMBERS) and not isinstance(value, bool):
      form = config_fields.form_of(name)
      assert isinstance(form, schema.Number), f"state the bounds of {name}"
      assert form.low is not None, name


def load_first_mode(path):
  """Loads a config in the first mode that it has."""
  for mode in ("", "tiny", "smoke"):
    with contextlib.suppress(errors.UserError):
      return config_lib.load(f"{path}:{mode}")
  raise AssertionError(f"{path} has none of the modes")


@pytest.mark.parametrize(
  "override, wanted",
  [
    ("log_every=0", "a whole number of at least 1"),
    ("eval_every=0", "a whole number of at least 1"),
    ("checkpoint_every=0", "a whole number of at least 1"),
    ("keep_checkpoints=0", "a whole number of at least 1"),
    ("eval_batches=-1", "a whole number of at least 0"),
    ("steps=-4", "a whole number of at least 1"),
    ("steps=0", "a whole number of at least 1"),
    ("steps=99999999999", "at most 2147483647"),
    ("seed=-1", "a whole number of at least 0"),
    ("data.num_threads=-1", "a whole number of at least 0"),
    ("data.num_workers=-2", "a whole number of at least 0"),
    ("data.batch_size=0", "a whole number of at least 1"),
    ("optimizer.peak_lr=-1e-3", "a finite number of at least 0"),
    ("optimizer.peak_lr=1e999", "a finite number of at least 0"),
    ("optimizer.end_lr=-1.0", "a finite number of at least 0"),
    ("optimizer.b1=1.0", "less than 1"),
    ("optimizer.weight_decay=-1e999", "a finite number of at least 0"),
    ("model.lam.encoder.num_heads=0", "a whole number of at least 1"),
    ("model.dynamics.transformer.num_layers=-1", "at least 1"),
    ("world.fps=0", "more than 0"),
    ("loss.codebook=-1", "a finite number of at least 0"),
  ],
)
def test_a_value_out_of_bounds_is_one_line_and_code_2(
  capsys, tmp_path, override, wanted
):
  workdir = tmp_path / "run"
  words = ["--config", _SMOKE, "--workdir", str(workdir)]
  if "loss." in override:
    words[1] = f"{_EXPERIMENTS / 'coinrun/lam.py'}:smoke"
  assert main.main(["train", *words, f"--config.{override}"]) == 2
  err = capsys.readouterr().err
  assert len(err.splitlines()) == 1 and wanted in err, err
  name = override.partition("=")[0]
  assert f"config.{name} is" in err and f"--config.{name}=VALUE" in err
  assert not workdir.exists()


@pytest.mark.parametrize(
  "value", ["(" * 500, "-" * 20_000 + "1", "1" * 5000, "[" * 99_999, "1e9999j"]
)
def test_a_value_that_python_cannot_read_is_refused(value):
  for name in ("steps", "optimizer.peak_lr", "press_frames"):
    with pytest.raises(errors.UserError) as raised:
      config_lib.load(_SMOKE, [f"--config.{name}={value}"])
    assert len(str(raised.value)) < 400


def test_fields_of_other_packages_are_finite_or_have_their_own_bounds(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(config_fields, "_added", {})
  path = tmp_path / "mine.py"
  path.write_text(
    "import ml_collections\n"
    "def get_config(mode):\n"
    "  return ml_collections.ConfigDict(dict(mine=dict(width=-1.5, on=True)))\n"
  )
  load = lambda value: config_lib.load(
    str(path), [f"--config.mine.width={value}"]
  )
  assert load("-2.5").mine.width == -2.5
  for value in ("1e999", "-1e999"):
    with pytest.raises(errors.UserError, match="must be a finite number;"):
      load(value)
  config_fields.register("mine.width", schema.COUNT)
  config_fields.register("mine.width", schema.COUNT)
  with pytest.raises(errors.UserError, match=r"mine\.width is -1\.5, but"):
    load("-1.5")
  with pytest.raises(errors.UserError, match="registered with other bounds"):
    config_fields.register("mine.width", schema.NATURAL)


_FIELDS = sorted(
  config_lib.dotted(config_lib.to_dict(config_lib.load(_SMOKE))).items()
)
_ODD = ("0", "-1", "1e999", "nan", "None", "True", "[]", "{}", "()", "''")
_VALUES = st.one_of(
  st.integers(-(10**30), 10**30).map(str),
  st.sampled_from(_ODD),
  st.floats().map(repr),
  st.lists(st.integers(-2, 3), max_size=3).map(repr),
  st.text("ab.=,'\"[]{}()\\\0\n19-e", max_size=12),
)


def load_any(name, value):
  """Loads a config with any value; it passes within bounds or is refused."""
  try:
    config = config_lib.load(_SMOKE, [f"--config.{name}={value}"])
  except errors.UserError as error:
    assert len(str(error)) < 500
    return
  found = config_lib.to_dict(config)
  json.dumps(found, allow_nan=False)
  config_fields.check(config_lib.dotted(found), "again")


@hypothesis.settings(max_examples=40, derandomize=True, deadline=None)
@hypothesis.given(st.sampled_from([name for name, _ in _FIELDS]), _VALUES)
def test_any_override_is_within_bounds_or_refused(name, value):
  load_any(name, value)


@pytest.mark.slow
@hypothesis.settings(max_examples=3000, deadline=None)
@hypothesis.given(st.sampled_from([name for name, _ in _FIELDS]), _VALUES)
def test_many_overrides_are_within_bounds_or_refused(name, value):
  load_any(name, value)
