"""Encodes clips as token records with a trained tokenizer and, optionally, LAM.

A record is a clip of T frames, encoded from its own first frame. Both models
are causal in time, so a code depends on the frame at which encoding began.
Records are therefore neither shortened at the front nor concatenated.

Shapes:
  n  clips per batch, the same in all calls of the models
"""

import dataclasses
import pathlib
import time
from collections.abc import Callable, Iterator
from concurrent import futures

import jax
import jax.numpy as jnp
import numpy as np

from genie_jax.core import buckets, errors, files, progress
from genie_jax.data import manifest as manifest_lib
from genie_jax.data import records, resumable, shards, sources
from genie_jax.models import build, button_map, store
from genie_jax.sampling import prepare
from genie_jax.worlds import trained_models

_VERSION = 1  # Increase it if the same options give other bytes.

# `frames uint8 [n, T, H, W, C] -> tokens [n, T, h, w], latent actions [n, T-1]`
Encode = Callable[[np.ndarray], tuple[jax.Array, jax.Array | None]]


@dataclasses.dataclass(frozen=True)
class Options:
  """Options of `tokenize`; the same options give the same bytes.

  Attributes:
    num_frames: T, frames per record; 0 for the number that the tokenizer was
      trained on.
    stride: Frames from the start of a record to that of the next; 0 for T.
    keep_frames: Whether records also contain the pixels, for the joint stage.
    uncompressed: Whether pixels are stored uncompressed. Frames of games then
      take five times the space, and are read a third faster. Tokens are never
      compressed.
    batch_size: Clips encoded at once.
    records_per_shard: Records per shard file. A killed run repeats at most one
      shard.
    splits: Splits to encode; empty for all splits of the clips.
  """

  num_frames: int = 0
  stride: int = 0
  keep_frames: bool = False
  uncompressed: bool = False
  batch_size: int = 32
  records_per_shard: int = 4096
  splits: tuple[str, ...] = ()

  def check(self) -> None:
    """Raises UserError if a value is out of range."""
    for name, least in (
      ("num_frames", 0),
      ("stride", 0),
      ("batch_size", 1),
      ("records_per_shard", 1),
    ):
      if getattr(self, name) < least:
        raise errors.UserError(
          f"--{name.replace('_', '-')} must be at least {least}, not "
          f"{getattr(self, name)}."
        )


@dataclasses.dataclass(frozen=True)
class Report:
  """The result of a call of `tokenize`.

  Attributes:
    manifest: Manifest of the finished folder.
    records: Number of records written by this call.
    kept_records: Number of records written by earlier calls.
    seconds: Wall time of this call, compilation included.
  """

  manifest: manifest_lib.Manifest
  records: int
  kept_records: int
  seconds: float


@dataclasses.dataclass(frozen=True)
class _Plan:
  """The checked inputs of a call."""

  options: Options
  manifest: manifest_lib.Manifest  # Of the tokens, without the splits.
  splits: dict[str, sources.WindowSource]


def tokenize(
  clips: files.PathLike,
  out: files.PathLike,
  *,
  tokenizer: files.PathLike,
  lam: files.PathLike | None = None,
  options: Options | None = None,
) -> Report:
  """Writes a token folder, or completes one that an interrupted run started.

  Args:
    clips: The clips folder; may be in a bucket.
    out: The folder to write; the models are copied to tokenizer/ and lam/ in
      it.
    tokenizer: Workdir or saved model of a tokenizer.
    lam: Workdir or saved model of a LAM; None for tokens without latent
      actions.
    options: Options; the defaults if None.

  Raises:
    UserError: An input is missing, inputs do not fit together, or `out` was
      started with other models, clips or options.
    OSError: The disk is full; the next run keeps the finished shards.
  """
  began, out = time.monotonic(), buckets.disk(out, "--out")
  options = options or Options()
  options.check()
  models, prints, made_by = {}, {}, {}
  for name, folder in (("tokenizer", tokenizer), ("lam", lam)):
    if folder is not None:
      found = trained_models.read(folder)
      models[name] = found.part(name)
      prints[name] = trained_models.fingerprint(name, models[name])
      made_by[name] = found.record(name)
  plan = _plan(clips, out, models, prints, options)
  writer = resumable.FolderWriter(
    out,
    plan.manifest,
    {split: range(len(source)) for split, source in plan.splits.items()},
    options.records_per_shard,
  )
  with writer:
    for name, model in models.items():
      extra = {"made_by": made_by[name]} if made_by[name] else None
      store.save(out / name, {name: model}, extra=extra)
    count = lambda shards: sum(len(shard.items) for shard in shards)
    kept, missing = count(writer.kept), count(writer.missing)
    encode = _encoder(models)
    with progress.track(
      total=kept + missing, initial=kept, unit="clips", description="tokenize"
    ) as bar:
      for shard in writer.missing:
        _write(out, plan, shard, encode, bar.update)
    manifest = writer.finish()
  return Report(manifest, missing, kept, time.monotonic() - began)


def _plan(
  clips: files.PathLike,
  out: pathlib.Path,
  models: dict[str, store.Part],
  prints: dict[str, str],
  options: Options,
) -> _Plan:
  """Checks that the inputs fit together, and returns the plan."""
  if out.resolve() == pathlib.Path(clips).resolve():
    raise errors.UserError(
      f"--out {out} is the clips folder itself; give another folder."
    )
  source = manifest_lib.Manifest.read(clips)
  for name, model in models.items():
    world = model.config["world"]
    shape = (world["height"], world["width"], world["channels"])
    if tuple(source.frame_shape) != shape:
      raise errors.UserError(
        f"{clips} has frames of {tuple(source.frame_shape)}, but the {name} "
        f"was trained on {shape}; give clips of that shape, or a {name} "
        "trained on these."
      )
  world = models["tokenizer"].config["world"]
  options = dataclasses.replace(
    options, num_frames=options.num_frames or world["num_frames"]
  )
  options = dataclasses.replace(
    options, stride=options.stride or options.num_frames
  )
  for name, model in models.items():
    store.check_length(name, model, options.num_frames)
  for split in options.splits:
    source.shards(split)  # Raises if the split does not exist.
  splits = {}
  for split, summary in source.splits.items():
    wanted = not options.splits or split in options.splits
    if not wanted or not summary["shards"]:
      continue
    splits[split] = sources.WindowSource(
      clips,
      split,
      options.num_frames,
      options.stride,
      keys=_arrays_of(source, split),
    )
  lam = models.get("lam")
  manifest = manifest_lib.Manifest(
    kind="tokens",
    name=source.name,
    fps=source.fps,
    frame_shape=source.frame_shape,
    frames_per_record=options.num_frames,
    splits={},
    num_actions=source.num_actions,
    action_aliases=source.action_aliases,
    made_by={
      "maker": "genie tokenize",
      "maker_version": _VERSION,
      "options": dataclasses.asdict(options),
      "source": dict(source.made_by),
    },
    token_grid=build.token_grid(world),
    num_codes=world["num_codes"],
    num_latent_actions=(lam and button_map.num_buttons(lam.config)),
    num_frames=options.num_frames,
    stride=options.stride,
    source_fingerprint=source.fingerprint,
    tokenizer_fingerprint=prints["tokenizer"],
    lam_fingerprint=prints.get("lam"),
  )
  return _Plan(options, manifest, splits)


def _arrays_of(source: manifest_lib.Manifest, split: str) -> tuple[str, ...]:
  """Returns the arrays to read: frames, and true actions if there are any."""
  path, entry = source.shards(split)[0]
  arrays, _ = shards.ShardReader(path, entry).read([0])[0]
  return ("frames", "actions") if "actions" in arrays else ("frames",)


def _encoder(models: dict[str, store.Part]) -> Encode:
  """Returns the compiled encoder of both models."""
  modules = {
    name: prepare.hashable(model.module) for name, model in models.items()
  }
  params = {
    name: jax.device_put(model.params) for name, model in models.items()
  }

  @jax.jit
  def encode(weights, frames):
    frames = frames.astype(jnp.float32) / 255
    found = {
      name: module.apply({"params": weights[name]}, frames, method="encode")
      for name, module in modules.items()
    }
    return found["tokenizer"], found.get("lam")

  return lambda frames: encode(params, frames)


def _write(
  out: pathlib.Path,
  plan: _Plan,
  shard: resumable.Shard,
  encode: Encode,
  tick: Callable[[int], object],
) -> None:
  """Writes one shard; calls `tick` with the number of records after each."""
  options = (
    shards.FRAMES_OPTIONS
    if plan.options.keep_frames and not plan.options.uncompressed
    else shards.TOKENS_OPTIONS
  )
  with resumable.ShardWriter(out, shard, options) as writer:
    for batch in _encoded(plan, shard, encode):
      for row in range(len(batch["source"])):
        source, start = int(batch["source"][row]), int(batch["start"][row])
        arrays = {
          name: array[row]
          for name, array in batch.items()
          if name not in ("source", "start")
        }
        writer.episodes.append(
          [source, len(writer.episodes), start, plan.options.num_frames]
        )
        writer.write(
          records.pack(
            arrays,
            {"fps": plan.manifest.fps, "source": source, "start": start},
          )
        )
      tick(len(batch["source"]))


def _encoded(
  plan: _Plan, shard: resumable.Shard, encode: Encode
) -> Iterator[dict[str, np.ndarray]]:
  """Yields the arrays of one shard's records in batches.

  The first batch begins with the first record of the shard, and the last batch
  is padded with copies of its last clip. All batches therefore use one compiled
  program, and a shard's bytes do not depend on the shards written before it.
  """
  source, size = plan.splits[shard.split], plan.options.batch_size
  starts = range(shard.items.start, shard.items.stop, size)
  rows = lambda start: range(start, min(start + size, shard.items.stop))
  num_codes = plan.manifest.num_codes
  assert num_codes is not None  # Set for every token folder.
  token_dtype = np.uint16 if num_codes <= 1 << 16 else np.uint32
  # The next batch is read while the models run.
  with futures.ThreadPoolExecutor(1) as reader:
    coming = reader.submit(source.gather, rows(starts[0]))
    for number, start in enumerate(starts):
      batch = coming.result()
      if number + 1 < len(starts):
        coming = reader.submit(source.gather, rows(starts[number + 1]))
      count = len(rows(start))
      filled = batch["frames"][np.minimum(np.arange(size), count - 1)]
      tokens, latent_actions = encode(filled)
      if not plan.options.keep_frames:
        del batch["frames"]
      batch["tokens"] = np.asarray(tokens)[:count].astype(token_dtype)
      if latent_actions is not None:
        batch["latent_actions"] = np.asarray(latent_actions)[:count].astype(
          np.int32
        )
      yield batch
