"""Tests of worlds at hf:// addresses, from a hub on this machine."""

import http.server
import json
import os
import pathlib
import shutil
import subprocess
import sys
import threading

import pytest

from genie_jax.core import errors
from genie_jax.worlds import download, world_folder
from tests.fixtures import hub_server, tiny_world

pytest.importorskip(
  "huggingface_hub", reason="an extra: pip install genie_jax[hf]"
)

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
  """The folder of a world."""
  folder = tmp_path_factory.mktemp("world")
  return tiny_world.write_world(
    folder, num_prompts=2, name="far away", dtype="bfloat16"
  )


@pytest.fixture
def hub(world, tmp_path):
  """A hub's repository, its handler, and `ask(address)`.

  `ask` downloads a world in a new process, and returns the folder or the error
  message.
  """
  root = tmp_path / "repository"
  shutil.copytree(world, root)
  (root / "extra.bin").write_bytes(b"not a part of the world")
  handler = type("Handler", (hub_server.Handler,), {"root": root, "asked": []})
  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
  thread = threading.Thread(target=server.serve_forever, daemon=True)
  thread.start()

  def ask(address, **environ):
    code = (
      "import sys\n"
      "from genie_jax.core import errors\n"
      "from genie_jax.worlds import download\n"
      "try: print(download.local(sys.argv[1]))\n"
      "except errors.UserError as error: print(f'refused: {error}')\n"
    )
    done = subprocess.run(
      [sys.executable, "-c", code, address],
      cwd=ROOT,
      capture_output=True,
      text=True,
      timeout=120,
      check=True,
      env={
        **os.environ,
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "HF_HOME": str(tmp_path / "hub"),
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        **environ,
      },
    )
    [line] = done.stdout.splitlines()
    return line

  yield root, handler, ask
  server.shutdown()
  server.server_close()
  thread.join()


def test_a_world_is_downloaded_once_and_only_its_listed_files(hub, world):
  _, handler, ask = hub
  folder = pathlib.Path(ask("hf://owner/noise"))
  manifest = world_folder.read_manifest(world)
  assert {
    path.relative_to(folder).as_posix()
    for path in folder.rglob("*")
    if path.is_file()
  } == {*manifest["files"], "manifest.json"}
  assert world_folder.load(folder).name == "far away"
  assert list(folder.parent.iterdir()) == [folder]
  handler.asked.clear()
  assert ask("hf://owner/noise@v1") == str(folder)
  assert not [path for path in handler.asked if "safetensors" in path]


def test_a_file_that_differs_from_the_manifest_is_refused(hub, tmp_path):
  root, _, ask = hub
  path = root / "model.safetensors"
  path.write_bytes(path.read_bytes()[:-1] + b"\1")
  assert "SHA-256 differs" in ask("hf://owner/noise")
  path.write_bytes(path.read_bytes() + b"more")
  assert "is longer than the" in ask("hf://owner/noise")
  path.unlink()
  assert "has no model.safetensors" in ask("hf://owner/noise")
  assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_a_changed_manifest_is_refused(hub):
  root, _, ask = hub
  manifest = json.loads((root / "manifest.json").read_text())
  (root / "manifest.json").write_text(json.dumps({**manifest, "name": "x"}))
  assert "was changed after it was written" in ask("hf://owner/noise")


@pytest.mark.parametrize(
  "address, environ, message",
  (
    ("hf://owner/noise@absent", {}, "cannot be read from http://127"),
    ("hf://owner/absent", {}, "cannot be read from http://127"),
    ("hf://owner", {}, "give hf://owner/name or"),
    ("hf://owner/noise", {"HF_ENDPOINT": "http://127.0.0.1:9"}, "network"),
    ("hf://owner/noise", {"HF_ENDPOINT": "http://example.com"}, "https://"),
    ("hf://owner/noise", {"HF_HUB_OFFLINE": "1"}, "cannot be read from"),
  ),
)
def test_a_repository_that_cannot_be_read_raises_a_one_line_error(
  hub, address, environ, message
):
  answer = hub[2](address, **environ)
  assert answer.startswith("refused: ") and message in answer


def test_the_error_of_a_missing_package_names_the_command(monkeypatch):
  monkeypatch.setitem(sys.modules, "huggingface_hub", None)
  monkeypatch.delitem(sys.modules, "genie_jax.worlds.hub", raising=False)
  with pytest.raises(errors.UserError, match="`pip install huggingface_hub`"):
    download.local("hf://owner/noise")
