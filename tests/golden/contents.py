"""What the program reads from the golden files of one version.

    python -m tests.golden.contents tests/golden/v2

records it, in the version folder: numbers and hashes in `expected.json`,
frames that worlds draw in `expected_frames.npz`, and what training writes when
it resumes from the workdirs. Type this once, with the program that wrote the
folder; `tests/test_compatibility.py` compares later programs with it.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

import genie_jax
from genie_jax.checkpoints import reader
from genie_jax.core import images
from genie_jax.data import counterfactuals as counterfactuals_lib
from genie_jax.data import manifest, records, shards, sources
from genie_jax.models import store
from genie_jax.ports.stablehlo import runtime
from genie_jax.weights import param_tree, tensor_files
from genie_jax.worlds import world_manifest

ROOT = pathlib.Path(__file__).parents[2]
EXPECTED, FRAMES = "expected.json", "expected_frames.npz"
STAGES = ("tokenizer", "lam", "dynamics", "joint")
CLIPS_H264 = "clips_h264"
TOKENS = ("tokens", "tokens_with_frames")
SAVED = ("float32", "bfloat16", "int8")
WORLDS = ("bfloat16", "int8", "sharded", "stablehlo")
# Two steps more than the workdirs have.
STEPS = 4
SHIPPED = ROOT / "experiments/coinrun/results/world"
# The shipped world's window is 32 frames, so these cross its end.
SHIPPED_ACTIONS = tuple(range(4)) * 12
SHIPPED_SEEDS = (0, 1, 2)
# Compiles quickly; rounding depends on it.
SHIPPED_FLAGS = "--xla_backend_optimization_level=0"
# Indices of the frames that are stored: the first drawn one, the last one.
SHIPPED_STORED = (1, len(SHIPPED_ACTIONS))
_ACTIONS = (0, 1, 2, 2, 1, 0)  # Pressed in the small worlds; their window is 4.
_SEEDS = (0, 1)
_RECORD_VERSION = slice(4, 6)  # Bytes of a record; see `data.records`.


def written_versions(folder: pathlib.Path) -> dict[str, int]:
  """Returns format -> the version that the files of a folder state."""
  read = lambda path: json.loads((folder / path).read_text())
  path, entry = manifest.Manifest.read(folder / "clips").shards("train")[0]
  record = shards.ShardReader(path, entry).open().read([0])[0]
  step = reader.valid_steps(folder / "workdirs/lam")[-1]
  note = reader.read_note(
    epath.Path(folder / "workdirs/lam" / reader.FOLDER / str(step))
  )
  # The only kind of folder that states the newest version of manifests.
  clips_folder = CLIPS_H264 if (folder / CLIPS_H264).is_dir() else "clips"
  return {
    "manifest": read(f"{clips_folder}/manifest.json")["schema_version"],
    "record": int.from_bytes(record[_RECORD_VERSION], "little"),
    "counterfactuals": read("counterfactuals/manifest.json")["made_by"][
      "counterfactuals"
    ]["version"],
    "checkpoint": note["format"],
    "saved model": read("saved/float32/config.json")["format_version"],
    "world": read("worlds/bfloat16/manifest.json")["schema_version"],
    "programs": read("worlds/stablehlo/stablehlo/programs.json")[
      "format_version"
    ],
  }


def current_versions() -> dict[str, int]:
  """Returns format -> the version that this program writes."""
  return {
    "manifest": manifest.SCHEMA_VERSION,
    "record": records.SCHEMA_VERSION,
    "counterfactuals": counterfactuals_lib.VERSION,
    "checkpoint": reader.FORMAT,
    "saved model": store.FORMAT_VERSION,
    "world": world_manifest.SCHEMA_VERSION,
    "programs": runtime.FORMAT_VERSION,
  }


def machine() -> dict[str, Any]:
  """Returns what rounding depends on: JAX, and the CPU's instructions.

  Floating-point results are compared bit by bit only where this is the same.
  """
  found = [
    line
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    if line.startswith(("flags", "Features"))
  ]
  return {
    "jax": jax.__version__,
    "cores": os.cpu_count(),
    "cpu": hashlib.sha256(found[0].encode()).hexdigest()[:16],
  }


def digest(array: Any) -> str:
  """Returns 16 digits of the SHA-256 of an array's type, shape and bytes."""
  array = np.ascontiguousarray(array)
  found = hashlib.sha256(f"{array.dtype} {array.shape}\n".encode())
  found.update(array.tobytes())
  return found.hexdigest()[:16]


def clips(folder: pathlib.Path) -> dict[str, Any]:
  """Returns a clips folder: its manifest, and hashes of all its windows."""
  found = manifest.Manifest.read(folder)
  splits = {}
  for split in found.splits:
    source = sources.WindowSource(
      folder,
      split,
      5,
      keys=("frames", *(["actions"] if found.num_actions else []), "first"),
    )
    splits[split] = _digests(source.gather(range(len(source)))) | {
      "windows": len(source),
      "levels": found.sources(split),
    }
  return _manifest(found) | {"splits": splits}


def counterfactuals(folder: pathlib.Path) -> dict[str, Any]:
  """Returns a folder of counterfactuals: manifest, and hashes of all arrays."""
  found = counterfactuals_lib.read_manifest(folder)
  moments = {}
  for moment in counterfactuals_lib.read(found, "validation", 100, seed=0):
    fields = dataclasses.asdict(moment)
    level, step = fields.pop("level"), fields.pop("step")
    moments[f"{level} {step}"] = _digests(fields) | {
      "num_distinct": len(moment.distinct),
      "classes": moment.classes(2).tolist(),
    }
  return _manifest(found) | {
    "form": counterfactuals_lib.form(found),
    "moments": dict(sorted(moments.items())),
  }


def tokens(folder: pathlib.Path) -> dict[str, Any]:
  """Returns a token folder: manifest, hashes of records, its models."""
  found = manifest.Manifest.read(folder)
  splits = {}
  for split in found.splits:
    source = sources.TokenSource(folder, split)
    merged = sources.TokenSource(
      folder, split, 3, ("actions",), merge_aliases=True
    )
    everything = range(len(source))
    splits[split] = _digests(source.gather(everything)) | {
      "records": len(source),
      "merged_actions": digest(merged.gather(everything)["actions"]),
    }
  return _manifest(found) | {
    "splits": splits,
    "models": {
      name: saved_model(found.model_folder(name))
      for name in ("tokenizer", "lam")
    },
  }


def workdir(folder: pathlib.Path) -> dict[str, Any]:
  """Returns a workdir's newest checkpoint: its step and hashes of arrays."""
  step = reader.valid_steps(folder)[-1]
  params, extra, config = reader.load_params(folder)
  note = reader.read_note(epath.Path(folder / reader.FOLDER / str(step)))
  return {
    "step": step,
    "config": _digest_of_json(config | {"data": None}),
    "iterator": note["iterator"],
    "arrays": {
      name: digest(leaf)
      for name, leaf in param_tree.flatten(
        {"params": params, "extra": extra}
      ).items()
    },
    # Of the optimizer and of the random key, too.
    "fingerprints": _digest_of_json(note["fingerprints"]),
  }


def saved_model(folder: pathlib.Path) -> dict[str, Any]:
  """Returns a saved model: hashes as it is stored and as it is loaded."""
  found = store.load(folder)
  return {
    "fingerprint": found.fingerprint,
    "dtype": found.config["dtype"],
    "stored": {
      name: digest(tensor)
      for name, tensor in (tensor_files.read(folder).items())
    },
    "loaded": {
      name: digest(leaf)
      for name, leaf in param_tree.flatten(
        {name: part.params for name, part in (found.parts.items())}
      ).items()
    },
  }


def world(folder: pathlib.Path) -> tuple[dict[str, Any], np.ndarray]:
  """Returns a world, and frames that it draws.

  Returns:
    What does not depend on rounding, or hardly: tokens of a prompt are the
    nearest codes. And frames uint8 [seeds, 1 + actions, H, W, C].
  """
  found = genie_jax.load_world(folder)
  prompts = _prompts(found)
  return {
    "fingerprint": found.fingerprint,
    "weights": store.load(folder).fingerprint,
    "name": found.name,
    "actions": found.actions,
    "sampling": found.sampling.to_config(),
    "slide": vars(found.slide),
    "num_frames": found.num_frames,
    "num_actions": found.num_actions,
    "frame_shape": list(found.frame_shape),
    "fps": found.fps,
    "made_by": _digest_of_json(found.manifest["made_by"]),
    "prompts": [digest(prompt) for prompt in prompts],
    "tokens": np.asarray(found.encode(prompts[:, None])).tolist(),
    "latent_actions": np.asarray(
      found.infer_actions(
        np.stack([prompts[0], prompts[0][::-1], prompts[0]])[None]
      )
    ).tolist(),
  }, np.stack(
    [
      found.rollout(prompts[0], np.array(_ACTIONS), seed=seed)
      for seed in _SEEDS
    ]
  )


def stablehlo(folder: pathlib.Path) -> tuple[dict[str, Any], np.ndarray]:
  """Returns what a world's programs give, as `world` does."""
  found = runtime.load(folder)
  prompts = _prompts(genie_jax.load_world(folder))
  codes = found.encode(prompts[:, None])
  state = found.reset(
    np.repeat(codes[:1, 0], len(_SEEDS), axis=0), seeds=_SEEDS
  )
  frames = [np.repeat(found.decode(codes[:1])[:, 0], len(_SEEDS), axis=0)]
  for action in _ACTIONS:
    state, drawn = found.step(state, [action] * len(_SEEDS))
    frames.append(drawn)
  return {
    "window": found.window,
    "frame_shape": list(found.frame_shape),
    "grid": list(found.grid),
    "num_actions": found.num_actions,
    "tokens": codes.tolist(),
  }, np.stack(frames, 1)


def resumed(
  folder: pathlib.Path, scratch: pathlib.Path, stage: str
) -> dict[str, Any]:
  """Resumes a copy of a golden workdir for two more steps.

  In a process of its own that has one device, as the one that began the run:
  a sum over several devices would round differently.

  Args:
    folder: A version folder.
    scratch: Where the copy goes.
    stage: Which workdir.

  Returns:
    What `workdir` says of the result, and the losses of its steps.
  """
  target = scratch / stage
  shutil.copytree(folder / "workdirs" / stage, target)
  config = target / "config.json"
  data = folder / json.loads(config.read_text())["data"]["path"]
  subprocess.run(
    [
      sys.executable,
      "-m",
      "genie_jax.cli.main",
      "train",
      "--config",
      f"{pathlib.Path(__file__).with_name('stored_config.py')}:"
      f"{shutil.copy(config, scratch / f'{stage}.json')}",
      "--workdir",
      str(target),
      f"--config.data.path={data}",
      f"--config.steps={STEPS}",
    ],
    cwd=ROOT,
    check=True,
    # The tests' own flags turn off optimizations, which changes rounding.
    env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
  )
  lines = map(json.loads, (target / "metrics.jsonl").read_text().splitlines())
  return workdir(target) | {
    "losses": {
      str(line["step"]): line["loss"] for line in lines if "loss" in line
    }
  }


def shipped(seed: int) -> np.ndarray:
  """Returns frames of the world in the repository, from its own prompt.

  In a process of its own, with the options of XLA of the recorded frames.

  Args:
    seed: Of the noise, and the number of the prompt.

  Returns:
    uint8 [1 + actions, H, W, C].
  """
  with tempfile.NamedTemporaryFile(suffix=".npy") as out:
    subprocess.run(
      [
        sys.executable,
        "-m",
        "tests.golden.contents",
        "--shipped-frames",
        str(seed),
        out.name,
      ],
      cwd=ROOT,
      check=True,
      env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": SHIPPED_FLAGS},
    )
    return np.load(out.name)


def write_shipped(seed: int, path: str) -> None:
  """Writes what `shipped` returns, drawn in this process."""
  found = genie_jax.load_world(SHIPPED)
  frames = found.rollout(
    _prompts(found)[seed], np.array(SHIPPED_ACTIONS), seed=seed
  )
  np.save(path, frames)


def record(folder: pathlib.Path) -> None:
  """Writes the expected contents of a version folder."""
  found: dict[str, Any] = {
    "machine": machine(),
    "versions": written_versions(folder),
    "clips": clips(folder / "clips"),
    CLIPS_H264: clips(folder / CLIPS_H264),
    "counterfactuals": counterfactuals(folder / "counterfactuals"),
  }
  frames = {}
  for name in TOKENS:
    found[name] = tokens(folder / name)
  for name in SAVED:
    found[f"saved/{name}"] = saved_model(folder / "saved" / name)
  for name in WORLDS:
    path = f"worlds/{name}"
    found[path], frames[path] = world(folder / path)
  found["programs"], frames["programs"] = stablehlo(folder / "worlds/stablehlo")
  with tempfile.TemporaryDirectory() as scratch:
    for stage in STAGES:
      found[f"workdirs/{stage}"] = workdir(folder / "workdirs" / stage)
      found[f"resumed/{stage}"] = resumed(folder, pathlib.Path(scratch), stage)
  (folder / EXPECTED).write_text(json.dumps(found, indent=1) + "\n")
  np.savez_compressed(folder / FRAMES, **frames)


def record_shipped(folder: pathlib.Path) -> None:
  """Writes what the world in the repository draws."""
  rollouts = {str(seed): shipped(seed) for seed in SHIPPED_SEEDS}
  (folder / "shipped_frames.json").write_text(
    json.dumps(
      {
        "machine": machine(),
        "xla_flags": SHIPPED_FLAGS,
        "fingerprint": world_manifest.read_manifest(SHIPPED)["fingerprint"],
        "actions": SHIPPED_ACTIONS,
        "sha256": {
          seed: [digest(frame) for frame in frames]
          for seed, frames in rollouts.items()
        },
      },
      indent=1,
    )
    + "\n"
  )
  np.savez_compressed(
    folder / "shipped_frames.npz",
    **{seed: frames[list(SHIPPED_STORED)] for seed, frames in rollouts.items()},
  )


def _prompts(found: Any) -> np.ndarray:
  """Returns a world's own prompts, uint8 [n, H, W, C]."""
  return np.stack(
    [images.load_prompt(path, *found.frame_shape[:2]) for path in found.prompts]
  )


def _manifest(found: manifest.Manifest) -> dict[str, Any]:
  names = (
    "kind",
    "name",
    "fps",
    "num_actions",
    "num_codes",
    "num_latent_actions",
    "num_frames",
    "stride",
    "source_fingerprint",
    "tokenizer_fingerprint",
    "lam_fingerprint",
    "fingerprint",
  )
  return {name: getattr(found, name) for name in names} | {
    "frame_shape": list(found.frame_shape),
    "aliases": sorted(map(list, found.action_aliases.items())),
  }


def _digests(batch: Mapping[str, np.ndarray]) -> dict[str, str]:
  return {name: digest(array) for name, array in sorted(batch.items())}


def _digest_of_json(value: Any) -> str:
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


if __name__ == "__main__":
  if sys.argv[1:] == ["--shipped"]:
    record_shipped(pathlib.Path(__file__).parent)
  elif sys.argv[1:2] == ["--shipped-frames"]:
    write_shipped(int(sys.argv[2]), sys.argv[3])
  else:
    record(pathlib.Path(sys.argv[1]).resolve())
