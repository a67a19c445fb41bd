"""Writes the golden files of the program's present formats.

    python -m tests.golden.make_golden tests/golden/v2

writes a new version folder (see README.md, which also says what is in it).
Every folder of it is written by a `genie` command, except for the clips and
counterfactuals, which a data pipeline writes. Afterwards
`python -m tests.golden.contents` records what the program reads from it.
"""

import os
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = pathlib.Path(__file__).with_name("config.py")
# What a workdir keeps; the rest is for people (TensorBoard, previews).
_KEPT = ("config.json", "started.json", "metrics.jsonl", "checkpoints")
DTYPES = ("float32", "bfloat16", "int8")


def main() -> None:
  """Writes the folder that the command line names."""
  out = pathlib.Path(sys.argv[1]).resolve()
  out.mkdir(parents=True)
  from tests.golden import clips, counterfactuals

  clips.write(out / "clips")
  clips.write(out / "clips_h264", "h264")
  counterfactuals.write(out / "counterfactuals")
  _train(out, "tokenizer")
  _train(out, "lam")
  _add_buttons(out / "workdirs/lam", out / "buttons")
  tokenize = [
    "tokenize",
    "--tokenizer",
    "workdirs/tokenizer",
    "--lam",
    "buttons",
    "--clips",
    "clips",
    "--stride",
    "2",
    "--batch-size",
    "4",
  ]
  _genie(out, *tokenize, "--out", "tokens", "--records-per-shard", "16")
  _genie(out, *tokenize, "--out", "tokens_with_frames", "--keep-frames")
  _train(out, "dynamics")
  _train(out, "joint")
  export = [
    "export",
    "--workdir",
    "workdirs/dynamics",
    "--workdir",
    "workdirs/tokenizer",
    "--num-prompts",
    "2",
    "--name",
    "square",
  ]
  for dtype in DTYPES:
    _genie(out, *export, "--dtype", dtype, "--out", f"worlds/{dtype}")
  _genie(out, *export, "--stablehlo", "--out", "worlds/stablehlo")
  _genie(
    out,
    "export",
    "--workdir",
    "workdirs/joint",
    "--workdir",
    "workdirs/tokenizer",
    "--num-prompts",
    "1",
    "--name",
    "square",
    "--dtype",
    "float32",
    "--shard-bytes",
    "1500",
    "--out",
    "worlds/sharded",
  )
  # A world without its manifest is a folder of saved models.
  for dtype in DTYPES:
    (out / "saved" / dtype).mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
      shutil.copy(out / "worlds" / dtype / name, out / "saved" / dtype)
  shutil.rmtree(out / "buttons")  # Copied into the token folders.
  shutil.rmtree(out / "worlds/float32")  # The sharded world is float32 too.


def _add_buttons(workdir: pathlib.Path, out: pathlib.Path) -> None:
  """Writes the LAM with buttons; two steps are too few for `genie buttons`."""
  from genie_jax.evals import code_buttons
  from genie_jax.models import button_map, store
  from genie_jax.worlds import trained_models

  lam, _ = trained_models.part(workdir, "lam")
  buttons = button_map.ButtonMap(
    names=("left", "jump", "nothing"),
    button_of=(0, button_map.NOT_PRESSED, 1),
    longest=(0, 1, 0),
    first=2,
  )
  store.save(out, {"lam": code_buttons.with_buttons(lam, buttons)})


def _train(out: pathlib.Path, stage: str) -> None:
  """Trains a stage for two steps."""
  workdir = f"workdirs/{stage}"
  _genie(out, "train", "--config", f"{CONFIG}:{stage}", "--workdir", workdir)
  for path in (out / workdir).iterdir():
    if path.is_dir() and path.name not in _KEPT:
      shutil.rmtree(path)
    elif path.name not in _KEPT:
      path.unlink()


def _genie(out: pathlib.Path, *words: str) -> None:
  """Runs a command in the version folder, so that it stores relative paths."""
  print("genie", *words, flush=True)
  subprocess.run(
    [sys.executable, "-m", "genie_jax.cli.main", *words],
    cwd=out,
    check=True,
    env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
  )


if __name__ == "__main__":
  main()
