"""Tests of the bytes of saved activations, on hand-written programs."""

import pytest

from genie_jax.plan.hlo import parse, saved_activations
from tests.plan import programs

# Bytes of an array of one layer, [8, 128] float32, and of a stack of two.
LAYER, STACK = 8 * 128 * 4, 2 * 8 * 128 * 4
_SHAPES = {
  "layer": "f32[8,128]{1,0:T(8,128)}",
  "stack": "f32[2,8,128]{2,1,0:T(8,128)}",
  "hosted": "f32[2,8,128]{2,1,0:T(8,128)S(5)}",
  "fast": "f32[8,128]{1,0:T(8,128)S(1)}",
  "i": "s32[]{:T(128)}",
}
_PATHS = {
  "fwd": "jit(step)/jvp(M)/a",
  "bwd": "jit(step)/transpose(jvp(M))/a",
  "opt": "jit(step)/a",
}


def saved_bytes(text, stack="stack"):
  """Returns the bytes of saved activations of a program.

  Args:
    text: The program, with types <layer>, ... and passes !fwd, ... abbreviated.
    stack: The type that replaces <stack>.
  """
  text = text.replace("<stack>", f"<{stack}>")
  for name, shape in _SHAPES.items():
    text = text.replace(f"<{name}>", shape)
  for name, path in _PATHS.items():
    text = text.replace(f"!{name}", f', metadata={{op_name="{path}"}}')
  return saved_activations.peak_bytes(parse.parse(f"HloModule m\n\n{text}"))


LOOPS = """\
%forward (p: x) -> x {
  %p = (<i>, <layer>, <stack>, <layer>) parameter(0)
  %i = <i> get-tuple-element(%p), index=0
  %x = <layer> get-tuple-element(%p), index=1
  %s = <stack> get-tuple-element(%p), index=2
  %w = <layer> get-tuple-element(%p), index=3
  %y = <layer> multiply(%x, %w)!fwd
  %t = <stack> dynamic-update-slice(%s, %y, %i)!fwd
  ROOT %r = (<i>, <layer>, <stack>, <layer>) tuple(%i, %y, %t, %w)
}

%backward (p: x) -> x {
  %p = (<i>, <layer>, <stack>, <layer>) parameter(0)
  ROOT %q = (<i>, <layer>, <stack>, <layer>) copy(%p)!bwd
}

%condition (p: x) -> x {
  ROOT %p = (<i>, <layer>, <stack>, <layer>) parameter(0)
}

ENTRY %main (a: x) -> x {
  %a = <layer> parameter(0)
  %b = <i> parameter(1)
  %w0 = f32[8,128]{1,0:T(8,128)} parameter(2)
  %cast = <layer> convert(%w0)!fwd
  %empty = <stack> custom-call(), custom_call_target="AllocateBuffer"
  %in = (<i>, <layer>, <stack>, <layer>) tuple(%b, %a, %empty, %cast)
  %loop = (<i>, <layer>, <stack>, <layer>) while(%in), \
condition=%condition, body=%forward!fwd
  %last = <layer> get-tuple-element(%loop), index=1
  %saved = <stack> get-tuple-element(%loop), index=2
  %weight = <layer> get-tuple-element(%loop), index=3
  %grad = <layer> negate(%last)!bwd
  %again = (<i>, <layer>, <stack>, <layer>) tuple(%b, %grad, %saved, %weight)
  %back = (<i>, <layer>, <stack>, <layer>) while(%again), \
condition=%condition, body=%backward!bwd
  ROOT %out = <layer> get-tuple-element(%back), index=1
}
"""


def test_a_stack_that_the_forward_loop_writes_for_the_backward_loop_counts():
  # The result of the last layer counts too. The weight, a cast of an argument
  # that both loops pass through, is not an activation.
  assert saved_bytes(LOOPS) == STACK + LAYER


def test_activations_in_host_memory_are_not_counted():
  assert saved_bytes(LOOPS, "hosted") == LAYER


def test_values_that_the_backward_pass_does_not_use_are_not_counted():
  assert saved_bytes(LOOPS.replace("%grad, %saved", "%grad, %empty")) == LAYER
  assert saved_bytes(LOOPS.replace("!bwd", "!opt")) == 0


def test_the_pass_of_a_loop_without_a_path_is_that_of_its_body():
  bare = LOOPS.replace("body=%forward!fwd", "body=%forward").replace(
    "body=%backward!bwd", "body=%backward"
  )
  assert saved_bytes(bare) == STACK + LAYER


def test_values_count_until_their_last_use():
  text = """\
ENTRY %main (a: x) -> x {
  %a = <layer> parameter(0)
  %b = <layer> parameter(1)
  %one = <layer> multiply(%a, %b)!fwd
  %use = <layer> multiply(%one, %b)!bwd
  %two = <layer> multiply(%a, %b)!fwd
  ROOT %end = <layer> multiply(%two, %KEPT)!bwd
}
"""
  assert saved_bytes(text.replace("KEPT", "b")) == LAYER
  assert saved_bytes(text.replace("KEPT", "one")) == 2 * LAYER
  assert (
    saved_bytes(text.replace("<layer> multiply(%a", "<fast> multiply(%a")) == 0
  )


def test_a_loop_of_microbatches_counts_one_microbatch():
  body = LOOPS.replace("ENTRY %main", "%micro")
  text = (
    body
    + """
ENTRY %main (a: x) -> x {
  %a = <layer> parameter(0)
  ROOT %all = <layer> while(%a), condition=%condition, body=%micro!opt
}
"""
  )
  assert saved_bytes(text) == STACK + LAYER


def test_a_program_without_passes_has_no_saved_activations():
  assert saved_activations.peak_bytes(
    parse.parse(programs.gather(5))
  ) == pytest.approx(0)
