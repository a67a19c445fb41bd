"""Compiles the train step for TPUs that are not there.

The TPU compiler is the library `libtpu`; it runs on any x86 Linux machine.
"""

import dataclasses
import importlib.metadata
import importlib.util
import math
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import ml_collections
from jax.sharding import Mesh

from genie_jax.core import errors
from genie_jax.plan import topology as topology_lib
from genie_jax.sharding import mesh as mesh_lib
from genie_jax.stages import registry
from genie_jax.train import optimizer as optimizer_lib
from genie_jax.train import stage as stage_lib
from genie_jax.train import state
from genie_jax.train import step as step_lib

GIB = 2**30

# With these libtpu asks no metadata server which machine it is on, and logs
# nothing; several programs may load it at once.
ENVIRONMENT = {
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-4",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_WORKER_ID": "0",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}

# "... memory required for HLO temporaries (23.30G) exceeds available HBM
# (15.75G)" and "Used 98.94G of 95.74G hbm".
_TOO_LARGE = (
  r"\((?P<used>[\d.]+)(?P<unit>[KMGT])\) exceeds available HBM "
  r"\((?P<limit>[\d.]+)(?P<limit_unit>[KMGT])\)",
  r"Used (?P<used>[\d.]+)(?P<unit>[KMGT]) of (?P<limit>[\d.]+)"
  r"(?P<limit_unit>[KMGT]) hbm",
)


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes on one device.

  Attributes:
    params: Parameters.
    optimizer: Optimizer state.
    arguments: Of the program: parameters, optimizer, batch and the rest.
    temporaries: Activations, gradients and buffers.
    code: The program.
    peak: The most at any time; what must fit.
  """

  params: float
  optimizer: float
  arguments: float
  temporaries: float
  code: float
  peak: float


@dataclasses.dataclass(frozen=True)
class Step:
  """A train step and what it is compiled for.

  Attributes:
    stage: What is trained.
    config: How.
    mesh: Devices that are not there.
    like: Shapes and layouts of the state.
    function: What `train.step.make_train_step` gives, as `genie train` calls.
    batch: Shapes and layouts of a batch.
  """

  stage: stage_lib.Stage
  config: ml_collections.ConfigDict
  mesh: Mesh
  like: state.TrainState
  function: Any
  batch: dict[str, jax.ShapeDtypeStruct]


@dataclasses.dataclass(frozen=True)
class Compiled:
  """A compiled step.

  Attributes:
    text: The scheduled program.
    memory: Bytes on one device.
    seconds: That compiling took.
  """

  text: str
  memory: Memory
  seconds: float


class OutOfMemory(Exception):
  """The compiler found no way to fit the step.

  Attributes:
    needed: Bytes on one device, None where it does not say.
    limit: Bytes that there are, None where it does not say.
    seconds: That it took to find out.
  """

  def __init__(self, needed, limit, seconds):
    super().__init__("out of memory")
    self.needed, self.limit, self.seconds = needed, limit, seconds


def prepare() -> None:
  """Makes ready for compiling; call it before JAX is first used.

  The library is looked for at TPU_LIBRARY_PATH, then in the folder libtpu of
  the environment (where `make test` puts it: among the packages every start
  of JAX would look for TPUs), then among the packages.

  Raises:
    UserError: There is no libtpu.
  """
  os.environ.update(ENVIRONMENT)
  beside = os.path.join(sys.prefix, "libtpu", "libtpu", "libtpu.so")
  if "TPU_LIBRARY_PATH" not in os.environ and os.path.isfile(beside):
    os.environ["TPU_LIBRARY_PATH"] = beside
  path = os.environ.get("TPU_LIBRARY_PATH")
  wanted = library_requirement()
  if path is not None:
    if not os.path.isfile(path):
      raise errors.UserError(
        f"TPU_LIBRARY_PATH={path} is not a file; give the libtpu.so of "
        f"`pip install --target DIR '{wanted}'`."
      )
  elif importlib.util.find_spec("libtpu") is None:
    raise errors.UserError(
      "genie plan needs the TPU compiler: `pip install --no-deps --target "
      f"{os.path.join(sys.prefix, 'libtpu')} '{wanted}'`."
    )


def library_requirement() -> str:
  """Returns the libtpu that belongs to the installed JAX.

  Others may compile, but then fail to print the program.
  """
  for line in importlib.metadata.requires("jax") or ():
    if line.startswith("libtpu"):
      return line.partition(";")[0].strip()
  return "libtpu"


def build(
  config: ml_collections.ConfigDict, topology: topology_lib.Topology
) -> Step:
  """Returns the step that `genie train` would run there.

  Raises:
    UserError: The config does not make sense, or does not split over the
      devices.
  """
  config = without_start(config)
  return assemble(registry.make(config), config, topology)


def without_start(
  config: ml_collections.ConfigDict,
) -> ml_collections.ConfigDict:
  """Returns a copy of a config that starts from random parameters.

  Other starts read the tokenizer of a token folder; only values differ.
  """
  config = ml_collections.ConfigDict(config.to_dict())
  if "start" in config:
    config.start = "random"
  return config


def transformers(
  node: ml_collections.ConfigDict, path: str = "model"
) -> Iterator[tuple[str, ml_collections.ConfigDict]]:
  """Yields each transformer's dotted name below `config`, and its fields."""
  if "num_layers" in node:
    yield path, node
  for name, child in node.items():
    if isinstance(child, ml_collections.ConfigDict):
      yield from transformers(child, f"{path}.{name}")


def assemble(
  stage: stage_lib.Stage,
  config: ml_collections.ConfigDict,
  topology: topology_lib.Topology,
) -> Step:
  """Returns a stage's step for a topology.

  Args:
    stage: What is trained.
    config: Its mesh, optimizer, batch size and steps.
    topology: The chips.
  """
  mesh = mesh_lib.make(config.mesh, topology_lib.devices(topology))
  optimizer = optimizer_lib.make(config.optimizer, config.steps, stage.no_decay)
  like = state.abstract(stage, optimizer, mesh)
  size = config.data.batch_size
  function = step_lib.make_train_step(stage, optimizer, mesh, like, size)
  layout = step_lib.batch_shardings(stage, mesh, size, optimizer.accumulate)
  batch = {
    name: jax.ShapeDtypeStruct(
      (size, *feature.shape), feature.dtype, sharding=layout[name]
    )
    for name, feature in stage.features.items()
  }
  return Step(stage, config, mesh, like, function, batch)


def compile_step(
  step: Step, options: Mapping[str, str] | None = None
) -> Compiled:
  """Compiles a step.

  Args:
    step: From `build`.
    options: For the compiler, beside those of `genie train` and before them.

  Raises:
    OutOfMemory: It does not fit the chip.
    UserError: The compiler does not know an option.
  """
  begin = time.perf_counter()
  lowered = step.function.lower(step.like, step.batch)
  try:
    compiled = lowered.compile(compiler_options=dict(options or {}))
  except jax.errors.JaxRuntimeError as error:
    too_large = out_of_memory(error, time.perf_counter() - begin)
    if too_large is not None:
      raise too_large from error
    message = str(error)
    if "No such compile option" in message:
      raise errors.UserError(
        f"The TPU compiler: {message.splitlines()[0]}; mend --option."
      ) from error
    raise
  seconds = time.perf_counter() - begin
  return Compiled(
    compiled.as_text(),
    memory_of(
      compiled.memory_analysis(),
      device_bytes(step.like.params),
      device_bytes(step.like.opt_state),
    ),
    seconds,
  )


def device_bytes(tree: Any) -> float:
  """Returns the bytes of a tree of abstract arrays on one device."""
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )


def out_of_memory(error: Exception, seconds: float) -> OutOfMemory | None:
  """Returns what the compiler's error says, None where it is another one.

  Args:
    error: What compiling raised.
    seconds: That it took to find out.
  """
  message = str(error)
  if "RESOURCE_EXHAUSTED" not in message:
    return None
  return OutOfMemory(*_too_large(message), seconds)


def memory_of(stats: Any, params: float, optimizer: float) -> Memory:
  """Returns a program's memory.

  Args:
    stats: Its `memory_analysis()`.
    params: Bytes of the parameters on one device.
    optimizer: Bytes of the optimizer state.
  """
  arguments = stats.argument_size_in_bytes
  temporaries = stats.temp_size_in_bytes
  code = stats.generated_code_size_in_bytes
  whole = (
    arguments
    + temporaries
    + code
    + stats.output_size_in_bytes
    - stats.alias_size_in_bytes
  )
  # The compiler's own peak was seen above and below the sum.
  peak = max(whole, getattr(stats, "peak_memory_in_bytes", 0) + code)
  return Memory(params, optimizer, arguments, temporaries, code, peak)


def _too_large(message: str) -> tuple[float | None, float | None]:
  scale = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
  for pattern in _TOO_LARGE:
    found = re.search(pattern, message)
    if found:
      return (
        float(found["used"]) * scale[found["unit"]],
        float(found["limit"]) * scale[found["limit_unit"]],
      )
  return None, None
