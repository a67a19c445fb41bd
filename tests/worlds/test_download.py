"""Tests of downloading worlds, from a web server on this machine."""

import contextlib
import functools
import http.server
import json
import pathlib
import threading
import time
import urllib.request
from typing import ClassVar
from unittest import mock

import pytest

import genie_jax
from genie_jax.cli import main
from genie_jax.core import errors
from genie_jax.worlds import download, world_manifest
from tests.fixtures import tiny_world


class Handler(http.server.SimpleHTTPRequestHandler):
  """Serves files and records the requested paths."""

  asked: ClassVar[list[str]] = []
  moved_to = "http://example.invalid/manifest.json"
  slow = "/slow"

  def do_GET(self):
    Handler.asked.append(self.path)
    if self.path.startswith("/moved/"):
      self.send_response(302)
      self.send_header("Location", Handler.moved_to)
      self.end_headers()
      return
    if self.path.startswith("/rude/"):
      self.send_response(404, "\x1b[31mgone\x9b1m")
      self.end_headers()
      return
    if self.path.startswith(Handler.slow):
      self.drip()
      return
    super().do_GET()

  def drip(self):
    """Sends a file a byte at a time, after its headers or with them."""
    self.close_connection = True
    if "header" not in self.path:
      self.send_response(200)
      self.end_headers()
    with contextlib.suppress(OSError):
      for _ in range(3000):
        self.wfile.write(b" ")
        time.sleep(0.01)

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


def test_a_redirect_is_refused_before_it_is_followed(site, monkeypatch):
  # The same server, by a name that is not this machine's.
  other = site[1].replace("127.0.0.1", "127.0.0.2")
  monkeypatch.setattr(Handler, "moved_to", f"{other}/world/manifest.json")
  with pytest.raises(errors.UserError, match="it is not encrypted"):
    download.local(f"{site[1]}/moved")
  monkeypatch.setattr(Handler, "moved_to", "file:///etc/passwd")
  with pytest.raises(errors.UserError, match="is not allowed"):
    download.local(f"{site[1]}/moved")
  assert Handler.asked == ["/moved/manifest.json"] * 2


def test_a_redirect_that_may_be_followed_is_followed(site, monkeypatch):
  moved_to = f"{site[1]}/world/manifest.json?signature=1"
  monkeypatch.setattr(Handler, "moved_to", moved_to)
  with download._open(f"{site[1]}/moved/manifest.json") as file:
    assert file.read() == (site[0] / "world/manifest.json").read_bytes()


@pytest.mark.parametrize(
  "url, refused",
  [
    ("https://127.0.0.1/x", "into a local network"),
    ("https://[::1]/x", "into a local network"),
    ("https://[::ffff:127.0.0.1]/x", "into a local network"),
    ("https://2130706433/x", "into a local network"),
    ("https://localhost/x", "into a local network"),
    ("https://10.1.2.3/x", "into a local network"),
    ("https://169.254.169.254/x", "into a local network"),
    ("http://127.0.0.1/x", "into a local network"),
    ("http://8.8.8.8/x", "not encrypted"),
    ("ftp://8.8.8.8/x", "not encrypted"),
    ("https://[::1/x", "not a valid address"),
    ("https://8.8.4.4/x?signature=1#part", None),
  ],
)
def test_a_public_server_redirects_only_to_public_servers(url, refused):
  asked = urllib.request.Request("https://8.8.8.8/world/manifest.json")
  redirect = functools.partial(
    download._Redirects().redirect_request, asked, None, 302, "", {}
  )
  if refused is None:
    followed = redirect(url)
    assert followed is not None and followed.full_url == url
    return
  with pytest.raises(errors.UserError, match=refused):
    redirect(url)


@pytest.mark.parametrize(
  "path",
  ["/slow", "/slow-header", "/world"],
  ids=["manifest", "header", "file"],
)
def test_a_server_that_sends_a_byte_at_a_time_is_given_up(
  site, cache, monkeypatch, path
):
  monkeypatch.setattr(download, "_TIMEOUT_S", 1)
  monkeypatch.setattr(download, "_POLL_S", 0.1)
  if path == "/world":
    monkeypatch.setattr(Handler, "slow", "/world/model")
  began = time.monotonic()
  with pytest.raises(errors.UserError, match="is too slow") as seen:
    download.local(f"{site[1]}{path}")
  assert time.monotonic() - began < 10  # The server needs 30 s.
  assert "\n" not in str(seen.value)
  assert not cache.exists() or not list(cache.iterdir())


def test_a_world_that_does_not_fit_the_disk_is_refused_before_its_files(site):
  def enlarge(folder):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["seal"]
    manifest["files"]["model.safetensors"]["bytes"] = 1 << 60
    manifest["seal"] = world_manifest.seal(manifest)
    path.write_text(json.dumps(manifest))

  url = publish(site, "huge", enlarge)
  with pytest.raises(errors.UserError, match=r"has 1,152,921,.* MB, but only"):
    download.local(url)
  assert Handler.asked == ["/huge/manifest.json"]


@pytest.mark.parametrize(
  "url",
  [
    "http://[::1/x",
    "https://[x/y",
    "hf://[x",
    "gs://[a/b",
    "https://example.com:port/x",
    "https://example.com:99999/x",
    "https://....example.com/x",
    "https://a b/c",
  ],
)
def test_a_malformed_address_is_one_line_and_code_2(url, capsys):
  assert main.main(["play", "--world", url]) == 2
  err = capsys.readouterr().err
  assert err.startswith("genie play: ") and err.count("\n") == 1


def test_a_server_cannot_control_the_terminal(site, capsys):
  for path, shown in (
    ("x\x1b]0;owned\x07", "\\x1b]0;"),
    ("x", "\\x1b[31mgone\\x9b1m"),  # The server's answer.
  ):
    assert main.main(["play", "--world", f"{site[1]}/rude/{path}"]) == 2
    err = capsys.readouterr().err
    assert shown in err and err.removesuffix("\n").isprintable()


def test_a_folder_is_returned_unchanged(tmp_path):
  assert download.local(tmp_path) == tmp_path
