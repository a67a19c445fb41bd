"""Tests of what the forward pass keeps, on programs written by hand."""

import pytest

from genie_jax.plan.hlo import parse, saved_activations
from tests.plan import programs

# Two layers of [8, 128] float32: what each keeps, and the stack of both.
PIECE, STACK = 8 * 128 * 4, 2 * 8 * 128 * 4
_SHAPES = {
  "piece": "f32[8,128]{1,0:T(8,128)}",
  "stack": "f32[2,8,128]{2,1,0:T(8,128)}",
  "hosted": "f32[2,8,128]{2,1,0:T(8,128)S(5)}",
  "near": "f32[8,128]{1,0:T(8,128)S(1)}",
  "i": "s32[]{:T(128)}",
}
_PATHS = {
  "fwd": "jit(step)/jvp(M)/a",
  "bwd": "jit(step)/transpose(jvp(M))/a",
  "opt": "jit(step)/a",
}


def kept(text, stack="stack"):
  text = text.replace("<stack>", f"<{stack}>")
  for name, shape in _SHAPES.items():
    text = text.replace(f"<{name}>", shape)
  for name, path in _PATHS.items():
    text = text.replace(f"!{name}", f', metadata={{op_name="{path}"}}')
  return saved_activations.of(parse.parse(f"HloModule m\n\n{text}"))


LOOPS = """\
%forward (p: x) -> x {
  %p = (<i>, <piece>, <stack>, <piece>) parameter(0)
  %i = <i> get-tuple-element(%p), index=0
  %x = <piece> get-tuple-element(%p), index=1
  %s = <stack> get-tuple-element(%p), index=2
  %w = <piece> get-tuple-element(%p), index=3
  %y = <piece> multiply(%x, %w)!fwd
  %t = <stack> dynamic-update-slice(%s, %y, %i)!fwd
  ROOT %r = (<i>, <piece>, <stack>, <piece>) tuple(%i, %y, %t, %w)
}

%backward (p: x) -> x {
  %p = (<i>, <piece>, <stack>, <piece>) parameter(0)
  ROOT %q = (<i>, <piece>, <stack>, <piece>) copy(%p)!bwd
}

%condition (p: x) -> x {
  ROOT %p = (<i>, <piece>, <stack>, <piece>) parameter(0)
}

ENTRY %main (a: x) -> x {
  %a = <piece> parameter(0)
  %b = <i> parameter(1)
  %w0 = f32[8,128]{1,0:T(8,128)} parameter(2)
  %cast = <piece> convert(%w0)!fwd
  %empty = <stack> custom-call(), custom_call_target="AllocateBuffer"
  %in = (<i>, <piece>, <stack>, <piece>) tuple(%b, %a, %empty, %cast)
  %loop = (<i>, <piece>, <stack>, <piece>) while(%in), \
condition=%condition, body=%forward!fwd
  %last = <piece> get-tuple-element(%loop), index=1
  %saved = <stack> get-tuple-element(%loop), index=2
  %weight = <piece> get-tuple-element(%loop), index=3
  %grad = <piece> negate(%last)!bwd
  %again = (<i>, <piece>, <stack>, <piece>) tuple(%b, %grad, %saved, %weight)
  %back = (<i>, <piece>, <stack>, <piece>) while(%again), \
condition=%condition, body=%backward!bwd
  ROOT %out = <piece> get-tuple-element(%back), index=1
}
"""


def test_a_stack_that_one_loop_writes_and_the_other_reads_is_kept():
  # And the last layer's result. The weight, a cast of an argument that both
  # loops hand through, is no activation.
  assert kept(LOOPS) == STACK + PIECE


def test_what_the_host_keeps_takes_no_memory_of_the_chip():
  assert kept(LOOPS, "hosted") == PIECE


def test_what_nobody_takes_in_the_backward_pass_is_not_kept():
  assert kept(LOOPS.replace("%grad, %saved", "%grad, %empty")) == PIECE
  assert kept(LOOPS.replace("!bwd", "!opt")) == 0


def test_loops_that_lost_their_paths_are_known_by_what_is_in_them():
  bare = LOOPS.replace("body=%forward!fwd", "body=%forward").replace(
    "body=%backward!bwd", "body=%backward"
  )
  assert kept(bare) == STACK + PIECE


def test_values_count_while_they_live():
  text = """\
ENTRY %main (a: x) -> x {
  %a = <piece> parameter(0)
  %b = <piece> parameter(1)
  %one = <piece> multiply(%a, %b)!fwd
  %use = <piece> multiply(%one, %b)!bwd
  %two = <piece> multiply(%a, %b)!fwd
  ROOT %end = <piece> multiply(%two, %KEPT)!bwd
}
"""
  assert kept(text.replace("KEPT", "b")) == PIECE
  assert kept(text.replace("KEPT", "one")) == 2 * PIECE
  assert kept(text.replace("<piece> multiply(%a", "<near> multiply(%a")) == 0


def test_a_loop_of_microbatches_keeps_what_one_of_them_does():
  body = LOOPS.replace("ENTRY %main", "%micro")
  text = (
    body
    + """
ENTRY %main (a: x) -> x {
  %a = <piece> parameter(0)
  ROOT %all = <piece> while(%a), condition=%condition, body=%micro!opt
}
"""
  )
  assert kept(text) == STACK + PIECE


def test_hand_written_programs_without_passes_keep_nothing():
  assert saved_activations.of(parse.parse(programs.gather(5))) == pytest.approx(
    0
  )
