"""XLA compiler options."""

from jax.sharding import Mesh

# Options that overlap collectives with independent compute (MaxText's set for
# v5p). A test compiles with each of them, since option names disappear between
# versions of the compiler.
_TPU: dict[str, str] = {
  "xla_tpu_enable_async_collective_fusion": "true",
  "xla_tpu_enable_async_collective_fusion_fuse_all_gather": "true",
  "xla_tpu_enable_async_collective_fusion_multiple_steps": "true",
  "xla_tpu_overlap_compute_collective_tc": "true",
  "xla_enable_async_all_gather": "true",
  "xla_tpu_enable_async_all_to_all": "true",
  "xla_enable_async_collective_permute": "true",
  "xla_tpu_enable_ag_backward_pipelining": "true",
  "xla_tpu_enable_data_parallel_all_reduce_opt": "true",
  "xla_tpu_data_parallel_opt_different_sized_ops": "true",
  "xla_tpu_megacore_fusion_allow_ags": "false",
}

# XLA's default for GPUs does not move collectives away from the computation
# that waits for them. NVIDIA's JAX images set this option, and no other one
# (docs.nvidia.com/jax-toolbox/environment-variables). Outside the TPU compiler,
# values must have the option's type.
_GPU: dict[str, bool] = {"xla_gpu_enable_latency_hiding_scheduler": True}


def options(mesh: Mesh) -> dict[str, str | bool]:
  """Returns the compiler options for the devices of a mesh.

  LIBTPU_INIT_ARGS and XLA_FLAGS can set further options; those returned here
  take precedence. One GPU has no collectives and gets none.
  """
  platform = mesh.devices.flat[0].platform
  if platform == "tpu":
    return dict(_TPU)
  if platform == "gpu" and mesh.size > 1:
    return dict(_GPU)
  return {}
