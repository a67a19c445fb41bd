"""Tests of parsing the text of a compiled program."""

import pytest

from genie_jax.plan.hlo import parse
from tests.plan import programs


@pytest.fixture(scope="module")
def module():
  return parse.parse(programs.LOOPS)


def loop(module, computation):
  return next(
    x for x in module.computations[computation] if x.opcode == "while"
  )


def test_computations_and_the_order_of_instructions_are_parsed(module):
  assert module.entry == "main"
  assert set(module.computations) == {
    "fused",
    "limit",
    "inner_condition",
    "inner_body",
    "condition",
    "body",
    "short",
    "long",
    "called",
    "main",
  }
  assert [x.opcode for x in module.computations["main"]] == [
    "parameter",
    "parameter",
    "fusion",
    "tuple",
    "while",
    "conditional",
    "call",
    "copy",
  ]


def test_shapes_of_a_tuple_with_comments_are_parsed(module):
  found = loop(module, "main")
  assert [x.shape for x in found.results] == [(), (8,), (8,)]
  assert found.operands == ("tt",)
  assert found.attribute("body") == "body"


def test_cycles_and_paths_are_parsed(module):
  first = module.by_name("main")["a0"]
  assert first.cycles == 100
  assert first.op_name == "jit(step)/jvp(M)/layers/mlp_in/dot_general"
  assert module.by_name("main")["tt"].cycles is None


def test_the_trip_count_is_the_constant_in_the_condition(module):
  assert module.trip_count(loop(module, "main")) == 3
  # The comparison is inside a fusion.
  assert module.trip_count(loop(module, "body")) == 5


LOOP = """
%add_two (p0: s32[], p1: s32[]) -> s32[] {
  %p0 = <i> parameter(0)
  %p1 = <i> parameter(1)
  ROOT %a = <i> add(%p1, %p0)
}

%condition (s: (s32[], f32[8])) -> pred[] {
  %s = <pair> parameter(0)
  %i = <i> get-tuple-element(%s), index=0
  %n = <i> constant(LIMIT)
  ROOT %c = <flag> compare(%i, %n), direction=LT
}

%body (u: (s32[], f32[8])) -> (s32[], f32[8]) {
  %u = <pair> parameter(0)
  %i = <i> get-tuple-element(%u), index=0
  %x = <x> get-tuple-element(%u), index=1
  %step = <i> constant(2)
  %next = <i> NEXT
  ROOT %t = <pair> tuple(%next, %x)
}

ENTRY %main (t: (s32[], f32[8])) -> (s32[], f32[8]) {
  %t = <pair> parameter(0)
  ROOT %w = <pair> while(%t), condition=%condition, body=%body
}
"""


@pytest.mark.parametrize(
  "added, limit, count",
  [
    ("add(%i, %step)", 4, 2),
    ("add(%step, %i)", 5, 3),
    ("fusion(%step, %i), kind=kLoop, calls=%add_two", 8, 4),
    # What is not understood counts as 1.
    ("multiply(%i, %step)", 4, 4),
    ("add(%i, %i)", 4, 4),
  ],
)
def test_a_counter_that_goes_up_in_twos_halves_the_trip_count(
  added, limit, count
):
  text = LOOP.replace("NEXT", added).replace("LIMIT", str(limit))
  found = parse.parse(programs.program(text))
  assert found.trip_count(loop(found, "main")) == count


def test_a_stated_trip_count_takes_precedence_and_an_unknown_one_is_none():
  text = programs.LOOPS.replace(
    "condition=%condition, body=%body",
    "condition=%condition, body=%body, backend_config="
    '{"known_trip_count":{"n":"11"}}',
  )
  assert parse.parse(text).trip_count(loop(parse.parse(text), "main")) == 11
  text = programs.LOOPS.replace(
    "s32[]{:T(128)} constant(3)", "s32[]{:T(128)} parameter(7)"
  )
  assert parse.parse(text).trip_count(loop(parse.parse(text), "main")) is None


@pytest.mark.parametrize(
  "text, values, padded",
  [
    ("f32[3,5]", 60, 60),
    ("f32[3,5]{1,0:T(8,128)}", 60, 4 * 8 * 128),
    # Here the first dimension varies fastest.
    ("bf16[200,3]{0,1:T(8,128)(2,1)}", 1200, 2 * 8 * 256),
    ("bf16[2,16,16,64]{3,2,1,0:T(8,128)(2,1)S(1)}", 2 * 32768, 4 * 32768),
    ("s32[]{:T(128)}", 4, 4),
    ("pred[130]{0:T(128)(4,1)}", 130, 256),
  ],
)
def test_bytes_in_memory_are_padded_to_full_tiles(text, values, padded):
  [array] = parse.parse_arrays(text)
  assert array.bytes == values
  assert array.padded_bytes == padded


def test_arrays_in_fast_memory_are_distinguished_from_those_in_hbm():
  [fast] = parse.parse_arrays("f32[8]{0:T(128)S(1)}")
  [hbm] = parse.parse_arrays("f32[8]{0:T(128)}")
  assert hbm.in_hbm and not fast.in_hbm


def test_a_text_without_an_entry_computation_is_rejected():
  with pytest.raises(ValueError, match="ENTRY"):
    parse.parse("HloModule nothing")
