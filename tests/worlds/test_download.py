"""Tests of downloading worlds, from a web server on this machine."""

import functools
import http.server
import json
import pathlib
import threading
from typing import ClassVar
from unittest import mock

import pytest

import genie_jax
from genie_jax.core import errors
from genie_jax.worlds import download, world_manifest
from tests.fixtures import tiny_world


class Handler(http.server.SimpleHTTPRequestHandler):
  """Serves files and records the requested paths."""

  asked: ClassVar[list[str]] = []

  def do_GET(self):
    Handler.asked.append(self.path)
    if self.path.startswith("/moved/"):
      self.send_response(302)
      self.send_header("Location", "http://example.invalid/manifest.json")
      self.end_headers()
      return
    super().do_GET()

  def log_message(self, *_):
    pass


@pytest.fixture(scope="module")
def site(tmp_path_factory):
  """The folder and the address of a web server."""
  root = tmp_path_factory.mktemp("site")
  tiny_world.write_world(
    root / "world", num_prompts=2, name="far away", dtype="bfloat16"
  )
  server = http.server.ThreadingHTTPServer(
    ("127.0.0.1", 0), functools.partial(Handler, directory=str(root))
  )
  thread = threading.Thread(target=server.serve_forever, daemon=True)
  thread.start()
  yield root, f"http://127.0.0.1:{server.server_port}"
  server.shutdown()
  server.server_close()
  thread.join()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  Handler.asked.clear()
  return tmp_path / "cache" / "genie_jax" / "worlds"


def test_a_world_is_downloaded_once_and_played_from_the_cache(site, cache):
  root, address = site
  world = genie_jax.load_world(f"{address}/world")
  assert world.name == "far away" and len(world.prompts) == 2
  assert all(cache in path.parents for path in map(pathlib.Path, world.prompts))
  assert len(Handler.asked) == 5  # Manifest, config, weights, two prompts.
  folder = download.local(f"{address}/world/manifest.json")
  assert Handler.asked[5:] == ["/world/manifest.json"]
  manifest = world_manifest.read_manifest(folder)
  assert manifest == world_manifest.read_manifest(root / "world")


def checked(folder):
  """Does the checks that every loader does first."""
  world_manifest.check_files(folder, world_manifest.read_manifest(folder))
  return folder


@pytest.mark.parametrize(
  "change",
  (
    lambda folder: flip(folder),
    lambda folder: lengthen(folder),
    lambda folder: (folder / "prompts/00.png").unlink(),
    lambda folder: (folder / "manifest.json").write_text("{}"),
    lambda folder: (folder / "manifest.json").unlink(),
  ),
  ids=("flipped", "longer", "gone", "manifest", "no manifest"),
)
def test_a_damaged_copy_in_the_cache_is_downloaded_again(site, cache, change):
  url = f"{site[1]}/world"
  folder = download.local(url)
  change(folder)
  Handler.asked.clear()
  with mock.patch.object(download.logging, "warning") as warned:
    assert download.read(url, checked) == folder
    assert warned.call_count == 1
    assert "/world/model.safetensors" in Handler.asked
    assert list(cache.iterdir()) == [folder]
    Handler.asked.clear()
    download.read(url, checked)
  assert warned.call_count == 1 and Handler.asked == ["/world/manifest.json"]


def test_a_world_with_a_flipped_bit_in_the_cache_can_be_loaded(site):
  url = f"{site[1]}/world"
  flip(download.local(url))
  assert genie_jax.load_world(url).name == "far away"


def test_a_damaged_copy_is_kept_if_the_download_fails(site, cache):
  url = publish(site, "vanished", lambda folder: None)
  folder = download.local(url)
  (folder / "config.json").unlink()
  (site[0] / "vanished/model.safetensors").unlink()
  with pytest.raises(errors.UserError, match="404"):
    download.local(url)
  assert list(cache.iterdir()) == [folder]


def test_an_undamaged_copy_that_fails_to_load_is_not_downloaded_again(site):
  url = f"{site[1]}/world"
  download.local(url)
  Handler.asked.clear()
  with pytest.raises(errors.UserError, match="float64"):
    genie_jax.load_world(url, dtype="float64")
  assert Handler.asked == ["/world/manifest.json"]


def publish(site, name, change):
  """Publishes a world with a change to its files."""
  root, address = site
  for path in (root / "world").rglob("*"):
    if path.is_file():
      target = root / name / path.relative_to(root / "world")
      target.parent.mkdir(parents=True, exist_ok=True)
      target.write_bytes(path.read_bytes())
  change(root / name)
  return f"{address}/{name}"


def flip(folder):
  path = folder / "model.safetensors"
  content = bytearray(path.read_bytes())
  content[-1] ^= 1
  path.write_bytes(content)


def lengthen(folder):
  path = folder / "model.safetensors"
  path.write_bytes(path.read_bytes() + b"more")


def escape(folder):
  path = folder / "manifest.json"
  manifest = json.loads(path.read_text())
  del manifest["seal"]
  manifest["files"]["../../escaped.png"] = {"sha256": "0" * 64, "bytes": 1}
  manifest["seal"] = world_manifest.seal(manifest)
  path.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
  "name, change, match",
  [
    ("flip", flip, "SHA-256 differs"),
    ("long", lengthen, "is longer than the"),
    (
      "short",
      lambda folder: (folder / "config.json").write_text("{}"),
      "SHA-256 differs",
    ),
    ("gone", lambda folder: (folder / "config.json").unlink(), "404"),
    ("escape", escape, "is not part of a world"),
    (
      "html",
      lambda folder: (folder / "manifest.json").write_text("<html>"),
      "is not valid JSON",
    ),
  ],
)
def test_a_download_that_differs_from_its_manifest_leaves_no_files(
  site, cache, name, change, match
):
  with pytest.raises(errors.UserError, match=match) as raised:
    download.local(publish(site, name, change))
  assert "\n" not in str(raised.value)
  assert not cache.exists() or not list(cache.iterdir())


@pytest.mark.parametrize(
  "url, match",
  [
    ("http://example.com/world", "begins with https://"),
    ("ftp://example.com/world", "begins with https://"),
    ("file:///etc", "begins with https://"),
    ("https://example.com/world?sig=1", "has a query"),
    ("http://127.0.0.1:9/world", "cannot be read"),
  ],
)
def test_unsupported_addresses_raise_a_one_line_error(url, match):
  with pytest.raises(errors.UserError, match=match) as raised:
    download.local(url)
  assert "\n" not in str(raised.value)


def test_a_redirect_to_an_unencrypted_address_is_refused(site):
  with pytest.raises(errors.UserError, match=r"https://|cannot be read"):
    download.local(f"{site[1]}/moved")


def test_a_folder_is_returned_unchanged(tmp_path):
  assert download.local(tmp_path) == tmp_path
