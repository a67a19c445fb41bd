"""Compiles the train step ahead of time, without attached TPUs.

The TPU compiler is the library `libtpu`, which runs on any x86 Linux machine.
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

# With these variables libtpu does not query a metadata server about the machine
# and logs nothing, and several programs may load it at the same time.
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
  """Memory of a program on one device, in bytes.

  Attributes:
    params: Parameters.
    optimizer: Optimizer state.
    arguments: All arguments: parameters, optimizer state, batch and others.
    temporaries: Activations, gradients and buffers.
    code: The program's code.
    peak: The most at any time, which must fit.
  """

  params: float
  optimizer: float
  arguments: float
  temporaries: float
  code: float
  peak: float


@dataclasses.dataclass(frozen=True)
class Step:
  """A train step, with what is needed to compile it.

  Attributes:
    stage: The stage that is trained.
    config: The training config.
    mesh: Devices of a topology, which need not be attached.
    abstract_state: Shapes and layouts of the train state.
    function: The jitted step that `genie train` calls too, from
      `train.step.make_train_step`.
    abstract_batch: Shapes and layouts of a batch.
  """

  stage: stage_lib.Stage
  config: ml_collections.ConfigDict
  mesh: Mesh
  abstract_state: state.TrainState
  function: Any
  abstract_batch: dict[str, jax.ShapeDtypeStruct]


@dataclasses.dataclass(frozen=True)
class Compiled:
  """A compiled step.

  Attributes:
    text: The text of the scheduled program.
    memory: Its memory on one device.
    seconds: Duration of the compilation.
  """

  text: str
  memory: Memory
  seconds: float


class OutOfMemory(Exception):
  """The compiler found no way to fit the step into memory.

  Attributes:
    needed: Bytes needed on one device, None if the compiler does not say.
    limit: Bytes available on one device, None if the compiler does not say.
    seconds: Duration of the compilation.
  """

  def __init__(self, needed: float | None, limit: float | None, seconds: float):
    super().__init__("out of memory")
    self.needed, self.limit, self.seconds = needed, limit, seconds


def set_up_compiler() -> None:
  """Finds libtpu and sets its environment variables.

  This must be called before JAX is first used. The library is searched at
  TPU_LIBRARY_PATH, then in the folder libtpu of the Python environment, then
  among the installed packages. `make test` installs it in the folder libtpu,
  because every start of JAX searches for TPUs if it is an installed package.

  Raises:
    UserError: libtpu is not installed.
  """
  os.environ.update(ENVIRONMENT)
  in_environment = os.path.join(sys.prefix, "libtpu", "libtpu", "libtpu.so")
  if "TPU_LIBRARY_PATH" not in os.environ and os.path.isfile(in_environment):
    os.environ["TPU_LIBRARY_PATH"] = in_environment
  path = os.environ.get("TPU_LIBRARY_PATH")
  requirement = library_requirement()
  if path is not None:
    if not os.path.isfile(path):
      raise errors.UserError(
        f"TPU_LIBRARY_PATH={path} is not a file; give the path of libtpu.so "
        f"after `pip install --target DIR '{requirement}'`."
      )
  elif importlib.util.find_spec("libtpu") is None:
    raise errors.UserError(
      "genie plan needs the TPU compiler; run `pip install --no-deps --target "
      f"{os.path.join(sys.prefix, 'libtpu')} '{requirement}'`."
    )


def library_requirement() -> str:
  """Returns pip's requirement of the libtpu that matches the installed JAX.

  Other versions may compile a program, but then fail to print its text.
  """
  for line in importlib.metadata.requires("jax") or ():
    if line.startswith("libtpu"):
      return line.partition(";")[0].strip()
  return "libtpu"


def build(
  config: ml_collections.ConfigDict, topology: topology_lib.Topology
) -> Step:
  """Returns the train step that `genie train` would run on a topology.

  Raises:
    UserError: The config is invalid, or does not split over the devices.
  """
  config = with_random_start(config)
  return build_from_stage(registry.make(config), config, topology)


def with_random_start(
  config: ml_collections.ConfigDict,
) -> ml_collections.ConfigDict:
  """Returns a copy of a config that starts from random parameters.

  Other starting points need a token folder with its tokenizer. The program is
  the same for all of them.
  """
  config = ml_collections.ConfigDict(config.to_dict())
  if "start" in config:
    config.start = "random"
  return config


def transformers(
  node: ml_collections.ConfigDict, path: str = "model"
) -> Iterator[tuple[str, ml_collections.ConfigDict]]:
  """Yields the transformers of a config, as (path, fields).

  Args:
    node: A group of fields, for example `config.model`.
    path: The dotted path of the group in the config.
  """
  if "num_layers" in node:
    yield path, node
  for name, child in node.items():
    if isinstance(child, ml_collections.ConfigDict):
      yield from transformers(child, f"{path}.{name}")


def build_from_stage(
  stage: stage_lib.Stage,
  config: ml_collections.ConfigDict,
  topology: topology_lib.Topology,
) -> Step:
  """Returns the train step of a stage on a topology.

  Args:
    stage: The stage that is trained.
    config: Has mesh, optimizer, batch size and number of steps.
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
    options: Compiler options in addition to those of `genie train`, which they
      override.

  Raises:
    OutOfMemory: The step does not fit into the chip's memory.
    UserError: The compiler does not know an option.
  """
  begin = time.perf_counter()
  lowered = step.function.lower(step.abstract_state, step.abstract_batch)
  try:
    compiled = lowered.compile(compiler_options=dict(options or {}))
  except jax.errors.JaxRuntimeError as error:
    too_large = out_of_memory(error, time.perf_counter() - begin)
    if too_large is not None:
      raise too_large from error
    message = str(error)
    if "No such compile option" in message:
      raise errors.UserError(
        f"Error of the TPU compiler: {message.splitlines()[0]}; correct "
        "--option."
      ) from error
    raise
  seconds = time.perf_counter() - begin
  return Compiled(
    compiled.as_text(),
    memory_of(
      compiled.memory_analysis(),
      device_bytes(step.abstract_state.params),
      device_bytes(step.abstract_state.opt_state),
    ),
    seconds,
  )


def device_bytes(tree: Any) -> float:
  """Returns the bytes of a tree of arrays with layouts on one device."""
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )


def out_of_memory(error: Exception, seconds: float) -> OutOfMemory | None:
  """Returns an OutOfMemory if the compiler ran out of memory, else None.

  Args:
    error: The exception of the compilation.
    seconds: Duration of the compilation.
  """
  message = str(error)
  if "RESOURCE_EXHAUSTED" not in message:
    return None
  return OutOfMemory(*_too_large(message), seconds)


def memory_of(stats: Any, params: float, optimizer: float) -> Memory:
  """Returns the memory of a compiled program.

  Args:
    stats: The program's `memory_analysis()`.
    params: Bytes of the parameters on one device.
    optimizer: Bytes of the optimizer state on one device.
  """
  arguments = stats.argument_size_in_bytes
  temporaries = stats.temp_size_in_bytes
  code = stats.generated_code_size_in_bytes
  total = (
    arguments
    + temporaries
    + code
    + stats.output_size_in_bytes
    - stats.alias_size_in_bytes
  )
  # The compiler's own peak may be larger or smaller than the sum.
  peak = max(total, getattr(stats, "peak_memory_in_bytes", 0) + code)
  return Memory(params, optimizer, arguments, temporaries, code, peak)


def _too_large(message: str) -> tuple[float | None, float | None]:
  """Returns needed and available bytes from the compiler's message."""
  scale = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
  for pattern in _TOO_LARGE:
    found = re.search(pattern, message)
    if found:
      return (
        float(found["used"]) * scale[found["unit"]],
        float(found["limit"]) * scale[found["limit_unit"]],
      )
  return None, None
