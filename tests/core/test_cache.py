"""Tests of the compilation cache: its default folder and its checksums."""

import pathlib

from jax._src import compilation_cache

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


def test_a_flipped_bit_of_a_kept_program_is_detected(monkeypatch):
  for name in ("zstd", "zstandard"):  # Back as they were after the test.
    monkeypatch.setattr(compilation_cache, name, object())
  cache.use_checksums()
  program = bytes(range(256)) * 4
  kept = compilation_cache.compress_executable(program)
  assert compilation_cache.decompress_executable(kept) == program
  for bit in range(8 * len(kept)):
    damaged = bytearray(kept)
    damaged[bit // 8] ^= 1 << bit % 8
    try:
      assert compilation_cache.decompress_executable(bytes(damaged)) == program
    except Exception as error:
      assert not isinstance(error, AssertionError), bit
