"""Tests that the FLOPs of the formula are those of the compiled program."""

import pytest

from genie_jax.nn import flops
from genie_jax.plan import step_flops
from genie_jax.plan.hlo import matmul_flops
from tests.fixtures import stage_training


@pytest.mark.parametrize("remat", ["none", "full"])
def test_a_compiled_step_has_the_models_flops_and_known_recomputation(remat):
  config = stage_training.load("dynamics")
  config.optimizer.name = "adamw"  # Muon multiplies matrices too.
  stack = config.model.transformer
  stack.update(num_layers=3, remat=remat)
  found = step_flops.count(config)
  frames, tokens = config.data.num_frames, 4 * 4
  places = config.data.batch_size * frames * tokens
  # The formula counts attention to (T + 1) / 2 frames, the program to all T:
  # scores and weighted sums, a multiply-add of two FLOPs each.
  masked = (
    places
    * stack.num_layers
    * 4
    * stack.num_heads
    * stack.head_dim
    * (frames - (frames + 1) / 2)
  )
  assert found.forward == found.formula / 3 + masked
  assert found.backward == 2 * found.forward
  assert found.other == 0
  # The output of a layer's last product is not needed to run it backwards.
  layers = (
    config.data.batch_size * flops.st_transformer(stack, frames, tokens)
    + masked
    - flops.linear(stack.mlp_dim, stack.width, places * stack.num_layers)
  )
  assert found.recomputed == (layers if remat == "full" else 0)
  assert found.compiled == 3 * found.forward + found.recomputed


def test_of_a_loop_every_iteration_counts_and_of_branches_the_larger():
  text = """HloModule m

%body (p: (s32[], f32[4,4])) -> (s32[], f32[4,4]) {
  %p = (s32[], f32[4,4]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[4,4]{1,0} get-tuple-element(%p), index=1
  %d = f32[4,4]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}, metadata={op_name="jit(f)/jvp(M)/dot"}
  ROOT %t = (s32[], f32[4,4]{1,0}) tuple(%i, %d)
}

%condition (q: (s32[], f32[4,4])) -> pred[] {
  %q = (s32[], f32[4,4]{1,0}) parameter(0)
  ROOT %less = pred[] constant(true)
}

%small (s: f32[4,4]) -> f32[4,4] {
  ROOT %s = f32[4,4]{1,0} parameter(0)
}

%large (l: f32[4,4]) -> f32[4,4] {
  %l = f32[4,4]{1,0} parameter(0)
  ROOT %e = f32[4,4]{1,0} dot(%l, %l), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

ENTRY %main (a: (s32[], f32[4,4])) -> f32[4,4] {
  %a = (s32[], f32[4,4]{1,0}) parameter(0)
  %w = (s32[], f32[4,4]{1,0}) while(%a), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"7"}}
  %y = f32[4,4]{1,0} get-tuple-element(%w), index=1
  %n = s32[] get-tuple-element(%w), index=0
  ROOT %c = f32[4,4]{1,0} conditional(%n, %y, %y), branch_computations={%small, %large}
}
"""  # noqa: E501
  product = 2 * 4 * 4 * 4
  assert matmul_flops.by_pass(text) == {"forward": 7 * product, "": product}
  unknown = text.replace(', backend_config={"known_trip_count":{"n":"7"}}', "")
  with pytest.raises(ValueError, match="loop w has an unknown trip count"):
    matmul_flops.by_pass(unknown)
