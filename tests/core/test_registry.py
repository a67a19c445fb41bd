"""Tests of registries that a user's own package can extend."""

import sys

import pytest

from genie_jax.core import errors, registry


def make(**options):
  parts = registry.Registry("sampler", "samplers.register", **options)
  parts.register("maskgit", 1)
  parts.register("raster", 2)
  return parts


def test_a_registered_part_is_found_by_its_name():
  parts = make()
  assert parts.get("raster", where="config.sampling.name") == 2
  assert parts.names() == ["maskgit", "raster"] == list(parts)
  assert "raster" in parts and "other" not in parts


@pytest.mark.parametrize("trusted", [True, False])
def test_the_error_for_an_unknown_name_says_the_closest_and_how_to_register(
  trusted,
):
  with pytest.raises(
    errors.UserError,
    match=r"config\.sampling\.name='rastre' is unknown \(did you mean "
    r"'raster'\?\); use one of maskgit, raster, .*samplers\.register",
  ):
    make().get("rastre", where="config.sampling.name", trusted=trusted)


@pytest.mark.parametrize("name", [None, 3, "", {"a": 1}])
def test_an_invalid_name_is_rejected(name):
  with pytest.raises(errors.UserError, match="is not the name of a part"):
    make().get(name, where="config.sampling.name")


def test_a_name_cannot_be_registered_for_two_parts():
  parts = make()
  assert parts.register("raster", 2) == 2  # The same part may be repeated.
  with pytest.raises(errors.UserError, match="'raster' is registered already"):
    parts.register("raster", 3)


def test_a_part_of_another_package_is_imported_when_trusted(
  tmp_path, monkeypatch
):
  (tmp_path / "own_parts.py").write_text("mine = 7\n")
  monkeypatch.syspath_prepend(str(tmp_path))
  monkeypatch.delitem(sys.modules, "own_parts", raising=False)
  parts = make()
  with pytest.raises(errors.UserError, match="GENIE_PLUGINS=own_parts if you"):
    parts.get("own_parts:mine", where="config.json")
  assert "own_parts" not in sys.modules
  assert parts.get("own_parts:mine", where="x", trusted=True) == 7
  # Once it is imported, untrusted names find it too.
  assert parts.get("own_parts:mine", where="config.json") == 7
  with pytest.raises(errors.UserError, match="own_parts has no 'other'"):
    parts.get("own_parts:other", where="x", trusted=True)
  with pytest.raises(errors.UserError, match="cannot be imported"):
    parts.get("no_such_module_x:a", where="x", trusted=True)


def test_untrusted_names_may_refer_to_modules_that_the_user_loads(
  tmp_path, monkeypatch
):
  (tmp_path / "trusted_parts.py").write_text("mine = 7\n")
  (tmp_path / "other_parts.py").write_text("mine = 8\n")
  monkeypatch.syspath_prepend(str(tmp_path))
  monkeypatch.setenv(registry.PLUGINS, "trusted_parts")
  parts = make()
  assert parts.get("trusted_parts:mine", where="config.json") == 7
  with pytest.raises(errors.UserError, match="GENIE_PLUGINS=other_parts if"):
    parts.get("other_parts:mine", where="config.json")
  assert "other_parts" not in sys.modules


def test_a_part_that_breaks_the_protocol_cannot_be_registered():
  def check(name, value):
    registry.check_methods(
      "sampler", name, value, {"draw": "(score, grid, keys) -> tokens"}
    )

  parts = registry.Registry("sampler", "samplers.register", check)

  class Good:
    def draw(self):
      """Draws."""

  assert parts.register("good", Good) is Good
  with pytest.raises(
    errors.UserError,
    match=r"sampler 'bad' \(int\) has no method draw; it needs "
    r"draw\(score, grid, keys\) -> tokens",
  ):
    parts.register("bad", int)


def test_plugins_named_by_the_environment_are_imported(tmp_path, monkeypatch):
  (tmp_path / "own_plugin.py").write_text("loaded = True\n")
  monkeypatch.syspath_prepend(str(tmp_path))
  monkeypatch.setenv(registry.PLUGINS, " own_plugin, ")
  monkeypatch.delitem(sys.modules, "own_plugin", raising=False)
  registry.load_plugins()
  assert sys.modules["own_plugin"].loaded
  monkeypatch.setenv(registry.PLUGINS, "no_such_module_x")
  with pytest.raises(errors.UserError, match="no_such_module_x, which cannot"):
    registry.load_plugins()


def test_data_may_name_a_part_of_a_plugin_and_imports_nothing_for_it(
  tmp_path, monkeypatch
):
  package = tmp_path / "plugged"
  package.mkdir()
  (package / "__init__.py").write_text("import plugged.used\n")
  for name in ("used", "unused"):
    (package / f"{name}.py").write_text("value = 5\n")
  monkeypatch.syspath_prepend(str(tmp_path))
  monkeypatch.setattr(registry, "_plugins", set())
  parts = registry.Registry("sampler", "samplers.register")
  with pytest.raises(
    errors.UserError, match=r"set GENIE_PLUGINS=plugged\.used"
  ):
    parts.get("plugged.used:value", where="x")
  monkeypatch.setenv(registry.PLUGINS, "plugged")
  registry.load_plugins()
  assert parts.get("plugged.used:value", where="x") == 5
  for name in ("plugged.unused:value", "sys:path", "plug:value"):
    with pytest.raises(errors.UserError, match="which is not loaded"):
      parts.get(name, where="x")
  assert "plugged.unused" not in sys.modules
  for name in ("plugged", "plugged.used"):
    monkeypatch.delitem(sys.modules, name)
