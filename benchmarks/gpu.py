r"""Measures on one GPU what plans and docs say has not been measured.

Run:      python benchmarks/gpu.py --json gpu.json
          stops after eight minutes; `--seconds` sets another limit
Try it:   python benchmarks/gpu.py --size smoke --json F    on any device
Sections, in this order (`--only NAME` runs one, and may be repeated):
  rates      a large matrix product and a copy, as shares of the data sheet's
             rates; what plan/gpu.py assumes as PRODUCTS and MEMORY
  attention  attention within frames as the chip has it ("auto", cuDNN on a GPU)
             against plain attention: largest differences of values and
             gradients, relative to the largest value, and milliseconds
  stages     seconds, MFU and memory of a training step of the case study
             (Genie, appendix F) by remat policy, beside `genie plan`'s
             roofline for this GPU
  layer      the same for one layer of the 10.1B model at full width
  sampling   benchmarks/sampling.py with 1 and 32 players
  play       benchmarks/play.py: frames per second of the page in a browser

Every section runs in a process of its own and reports each figure as soon as it
has it, so a failure or the time limit loses nothing else. What is missing is in
`not_measured`, with the reason.
"""

import argparse
import json
import os
import pathlib
import shlex
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent

# Section -> the most seconds that it may take.
LIMITS = {
  "rates": 30,
  "attention": 60,
  "stages": 150,
  "layer": 70,
  "sampling": 90,
  "play": 60,
}
_STAGES = ("dynamics", "tokenizer", "lam")
# The most useful policy first, as the time may end.
_POLICIES = ("full", "products", "attention", "none")
_REPEATS = 5

Figure = tuple[str, dict[str, Any]]


def timed(run: Callable[[], Any]) -> float:
  """Returns the median seconds of a call that has been compiled before."""
  import jax

  jax.block_until_ready(run())
  seconds = []
  for _ in range(_REPEATS):
    began = time.perf_counter()
    jax.block_until_ready(run())
    seconds.append(time.perf_counter() - began)
  return statistics.median(seconds)


def rates(size: str) -> Iterator[Figure]:
  """Yields rates of a matrix product and of a copy."""
  import jax
  import jax.numpy as jnp

  from genie_jax.core import chips, gpus

  kind = jax.devices()[0].device_kind
  peak = chips.device_peak_flops(kind)
  bandwidth = next(
    (x.memory_bandwidth for x in gpus.GPUS.values() if kind in x.device_kinds),
    None,
  )
  side = 8192 if size == "case" else 256
  x = jnp.ones((side, side), jnp.bfloat16)
  multiply = jax.jit(lambda a, b: a @ b)
  rate = 2 * side**3 / timed(lambda: multiply(x, x))
  yield (
    f"product of {side}",
    {"flops_per_second": rate, "share_of_peak": peak and rate / peak},
  )
  count = 2**30 if size == "case" else 2**16
  y = jnp.ones((count,), jnp.float32)
  add = jax.jit(lambda a: a + 1)
  rate = 2 * 4 * count / timed(lambda: add(y))
  yield (
    "copy",
    {
      "bytes_per_second": rate,
      "share_of_bandwidth": bandwidth and rate / bandwidth,
    },
  )


def _differentiated(implementation: str, valid: int | None, weight: Any) -> Any:
  """Returns attention, with the gradients of its sum weighted by `weight`."""
  import jax
  import jax.numpy as jnp

  from genie_jax.nn import attention as attention_lib

  def loss(query, key, value):
    out = attention_lib.space_attention(
      query, key, value, valid, implementation
    )
    return (out.astype(jnp.float32) * weight).sum(), out

  return jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))


def attention(size: str) -> Iterator[Figure]:
  """Yields how attention of the chip compares with plain attention."""
  import jax
  import jax.numpy as jnp

  # Clips, frames, tokens, heads, width; tokens that are attended to.
  shapes = {
    "case study": ((4, 16, 256, 8, 64), None),
    "10.1B model": ((1, 16, 920, 36, 128), None),
    "padded frame": ((1, 16, 1024, 8, 128), 920),
  }
  if size == "smoke":
    shapes = {"smoke": ((1, 2, 8, 2, 8), None), "padded": ((1, 2, 8, 2, 8), 5)}
  for name, (shape, valid) in shapes.items():
    keys = jax.random.split(jax.random.key(0), 4)
    query, key, value, weight = (
      jax.random.normal(k, shape).astype(jnp.bfloat16) for k in keys
    )

    found, seconds = {}, {}
    for implementation in ("auto", "plain"):
      call = _differentiated(implementation, valid, weight)
      seconds[implementation] = timed(
        lambda call=call, x=(query, key, value): call(*x)
      )
      (_, out), gradients = call(query, key, value)
      found[implementation] = (out, *gradients)
    program = (
      _differentiated("auto", valid, weight).lower(query, key, value).as_text()
    )
    exact = [x.astype(jnp.float32) for x in found["plain"]]
    differences = [
      float(jnp.abs(x.astype(jnp.float32) - y).max() / jnp.abs(y).max())
      for x, y in zip(found["auto"], exact, strict=True)
    ]
    yield (
      name,
      {
        "shape": list(shape),
        "fused": "cudnn" in program,
        "largest_differences": dict(
          zip(("values", "query", "key", "value"), differences, strict=True)
        ),
        **{f"{name}_ms": 1000 * value for name, value in seconds.items()},
      },
    )


def step_figures(config: Any, policy: str) -> dict[str, Any]:
  """Returns the figures of a training step on one device."""
  import jax
  import jax.numpy as jnp

  from genie_jax.core import chips, errors, gpus
  from genie_jax.plan import aot_compile, gpu, training
  from genie_jax.sharding import mesh as mesh_lib
  from genie_jax.stages import registry
  from genie_jax.train import optimizer as optimizer_lib
  from genie_jax.train import state as state_lib
  from genie_jax.train import step as step_lib

  config = aot_compile.with_random_start(config)
  training.set_remat(config, policy)
  config.mesh.update(data=1, fsdp=1, tensor=1, frame=1)
  config.optimizer.accumulate = 1
  device = jax.devices()[0]
  planned: dict[str, Any] | None = None
  kinds = {x: y.name for y in gpus.GPUS.values() for x in y.device_kinds}
  if device.device_kind in kinds:
    try:
      planned = gpu.plan(config, gpu.parse(f"{kinds[device.device_kind]}:1"))
    except errors.UserError:
      planned = None  # A stage that plans for GPUs do not count.
  stage = registry.make(config)
  mesh = mesh_lib.make(config.mesh, [device])
  optimizer = optimizer_lib.make(config.optimizer, config.steps, stage.no_decay)
  like = state_lib.abstract(stage, optimizer, mesh)
  rows = config.data.batch_size
  batch = {
    name: jnp.zeros((rows, *feature.shape), feature.dtype)
    for name, feature in stage.features.items()
  }
  step = step_lib.make_train_step(stage, optimizer, mesh, like, rows)
  began = time.perf_counter()
  compiled = step.lower(like, batch).compile()
  compile_seconds = time.perf_counter() - began
  memory = aot_compile.memory_of(compiled.memory_analysis(), 0, 0).peak
  state = state_lib.create(stage, optimizer, like, config.seed)
  seconds = []
  for _ in range(_REPEATS + 1):
    began = time.perf_counter()
    state, metrics = compiled(state, batch)
    jax.block_until_ready((state, metrics))
    seconds.append(time.perf_counter() - began)
  took = statistics.median(seconds[1:])
  flops = stage.flops_per_clip * rows
  peak = chips.device_peak_flops(device.device_kind)
  return {
    "clips": rows,
    "step_seconds": took,
    "model_flops": flops,
    "mfu": peak and flops / took / peak,
    "program_gib": memory / 2**30,
    "peak_gib_in_use": (device.memory_stats() or {}).get("peak_bytes_in_use", 0)
    / 2**30
    or None,
    "compile_seconds": compile_seconds,
    "planned_seconds": planned and planned["step_seconds_low"],
    "planned_gib": planned and planned["memory_gib_per_gpu"],
    "planned_over_measured": planned and planned["step_seconds_low"] / took,
  }


def _or_reason(run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
  """Returns figures, or why there are none if they do not fit."""
  import jax

  try:
    return run()
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    return {"not_measured": "does not fit into the memory of this device"}


def stages(size: str) -> Iterator[Figure]:
  """Yields figures of the three stages of the case study."""
  from genie_jax.core import config as config_lib

  mode = "" if size == "case" else ":smoke"
  for policy in _POLICIES:
    for stage in _STAGES:
      path = ROOT / f"experiments/coinrun/{stage}.py"
      config = config_lib.load(f"{path}{mode}").unlock()
      yield (
        f"{stage}, remat {policy}",
        _or_reason(lambda c=config, p=policy: step_figures(c, p)),
      )


def layer(size: str) -> Iterator[Figure]:
  """Yields figures of one layer of the 10.1B model at full width."""
  from genie_jax.core import config as config_lib

  mode = "" if size == "case" else ":smoke"
  for policy in _POLICIES:
    config = config_lib.load(
      f"{ROOT / 'experiments/platformers/dynamics.py'}{mode}"
    ).unlock()
    config.model.transformer.num_layers = 1
    config.data.batch_size = 1
    yield (
      f"one layer, remat {policy}",
      _or_reason(lambda c=config, p=policy: step_figures(c, p)),
    )


def _script(name: str, *words: str) -> dict[str, Any]:
  """Runs another benchmark; returns what it writes to --json.

  Raises:
    RuntimeError: It failed; with the last line of its output.
  """
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "F"
    argv = [
      sys.executable,
      f"benchmarks/{name}.py",
      *words,
      "--json",
      str(path),
    ]
    done = subprocess.run(
      argv, cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode or not path.exists():
      lines = (done.stderr or done.stdout).strip().splitlines()
      raise RuntimeError(lines[-1] if lines else f"code {done.returncode}")
    return json.loads(path.read_text())


def sampling(size: str) -> Iterator[Figure]:
  """Yields the speed of cached sampling for one player and for many."""
  many = "32" if size == "case" else "2"
  for players in ("1", many):
    words = ["--rollouts", players, "--size", size, "--memory-steps", "0"]
    words += ["--rounds", "3" if size == "case" else "1"]
    words += [] if size == "case" else ["--refinements", "2"]
    yield f"{players} players", _script("sampling", *words)


def play(size: str) -> Iterator[Figure]:
  """Yields the speed of the page in a browser."""
  seconds = "10" if size == "case" else "1"
  yield "page", _script("play", "--seconds", seconds, "--presses", "20")


SECTIONS = {
  "rates": rates,
  "attention": attention,
  "stages": stages,
  "layer": layer,
  "sampling": sampling,
  "play": play,
}


def run_section(name: str, size: str) -> None:
  """Prints each figure of a section as one line of JSON."""
  if name in ("rates", "attention", "stages", "layer"):
    import jax

    print(json.dumps(["device", jax.devices()[0].device_kind]), flush=True)
  for label, figures in SECTIONS[name](size):
    print(json.dumps([label, figures]), flush=True)


def measure(name: str, size: str, seconds: float) -> dict[str, Any]:
  """Runs a section in a process of its own.

  Args:
    name: The section.
    size: "case" or "smoke".
    seconds: After so many seconds it is stopped.

  Returns:
    "device", "figures", and "not_measured": why the rest is missing, or None.
  """
  found: dict[str, Any] = {"device": None, "figures": {}, "not_measured": None}
  process = subprocess.Popen(
    [sys.executable, __file__, "--section", name, "--size", size],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    start_new_session=True,
    env={
      **os.environ,
      "PYTHONPATH": str(ROOT),
      # Sections follow each other, and each frees what it used.
      "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    },
  )
  late = threading.Event()

  def stop() -> None:
    late.set()
    # With the benchmarks that it has started.
    os.killpg(process.pid, 9)

  clock = threading.Timer(seconds, stop)
  clock.start()
  errors: list[str] = []
  reader = threading.Thread(target=lambda: errors.extend(process.stderr))
  reader.start()
  for line in process.stdout:
    label, value = json.loads(line)
    if label == "device":
      found["device"] = value
    else:
      print(f"{name}: {label}: {json.dumps(value)[:300]}", flush=True)
      found["figures"][label] = value
  code = process.wait()
  reader.join()
  clock.cancel()
  if late.is_set():
    found["not_measured"] = f"the rest: stopped after {seconds:.0f} s"
  elif code:
    last = errors[-1].strip() if errors else ""
    found["not_measured"] = f"the rest: code {code}: {last}"
  return found


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--json", metavar="F", help="also write the result")
  parser.add_argument("--size", choices=("case", "smoke"), default="case")
  parser.add_argument(
    "--only", action="append", choices=SECTIONS, help="may be repeated"
  )
  parser.add_argument("--seconds", type=float, default=470)
  parser.add_argument("--section", choices=SECTIONS, help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.section:
    run_section(args.section, args.size)
    return
  if args.seconds <= 0:
    parser.error(f"--seconds={args.seconds} must be positive.")
  sys.path.insert(0, str(ROOT))
  from genie_jax.core import files, provenance

  began = time.monotonic()
  result: dict[str, Any] = {
    **provenance.collect(["python", "benchmarks/gpu.py", *sys.argv[1:]]),
    "size": args.size,
    "sections": {},
  }
  for name in args.only or SECTIONS:
    left = args.seconds - (time.monotonic() - began)
    limit = min(left, LIMITS[name]) if args.size == "case" else left
    result["sections"][name] = (
      measure(name, args.size, limit)
      if limit > 1
      else {
        "device": None,
        "figures": {},
        "not_measured": f"no time left of --seconds {args.seconds:g}",
      }
    )
    result["seconds"] = time.monotonic() - began
    if args.json:
      files.write_json(args.json, result)
  missing = {
    name: section["not_measured"]
    for name, section in result["sections"].items()
    if section["not_measured"]
  }
  for name, reason in missing.items():
    print(f"{name} not measured: {reason}")
  print(f"{shlex.join(sys.argv)}: {result['seconds']:.0f} s")


if __name__ == "__main__":
  main()
