"""Tests of the default folder of the compilation cache."""

import pathlib

from genie_jax.core import cache


def test_the_folder_is_in_the_users_cache(tmp_path, monkeypatch):
  found = cache.default_folder({"XDG_CACHE_HOME": str(tmp_path)})
  assert found.parent == tmp_path / "genie_jax" / "xla"
  monkeypatch.setattr(pathlib.Path, "home", lambda: tmp_path / "home")
  assert cache.default_folder({}).parent == (
    tmp_path / "home" / ".cache" / "genie_jax" / "xla"
  )


def test_cpus_with_different_instructions_use_different_folders(
  tmp_path, monkeypatch
):
  folders = set()
  for flags in ("sse avx", "sse avx avx512", "sse avx"):
    info = tmp_path / "cpuinfo"
    info.write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
    monkeypatch.setattr(cache, "_CPU", info)
    folders.add(cache.default_folder({"XDG_CACHE_HOME": str(tmp_path)}))
  assert len(folders) == 2
