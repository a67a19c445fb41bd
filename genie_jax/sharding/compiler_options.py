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


def options(mesh: Mesh) -> dict[str, str]:
  """Returns the compiler options for the devices of a mesh.

  LIBTPU_INIT_ARGS can set further options; those returned here take precedence.
  """
  on_tpu = mesh.devices.flat[0].platform == "tpu"
  return dict(_TPU) if on_tpu else {}
