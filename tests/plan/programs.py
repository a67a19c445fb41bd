"""Small hand-written scheduled programs, and networks to simulate them on.

In the texts "@7" stands for the compiler's estimate of 7 cycles, and a word in
angle brackets for a type in TYPES.
"""

import re

from genie_jax.core import chips
from genie_jax.plan.cost import collectives

CHIP = chips.find("v5p")

TYPES = {
  "i": "s32[]{:T(128)}",
  "flag": "pred[]{:T(512)}",
  "x": "f32[8]{0:T(128)}",
  "pair": "(s32[]{:T(128)}, f32[8]{0:T(128)})",
  "three": "(s32[]{:T(128)}, f32[8]{0:T(128)}, /*index=2*/f32[8]{0:T(128)})",
  "part": "bf16[1024,4096]{1,0:T(8,128)(2,1)}",
  "whole": "bf16[4096,4096]{1,0:T(8,128)(2,1)}",
  "hosted": "bf16[4096,4096]{1,0:T(8,128)(2,1)S(5)}",
  "going": "((bf16[4096,4096]{1,0:T(8,128)(2,1)S(5)}, "
  "bf16[1024,4096]{1,0:T(8,128)(2,1)}, s32[]{:T(128)}, "
  "s32[]{:T(128)}), bf16[4096,4096]{1,0:T(8,128)(2,1)S(5)}, "
  "u32[]{:S(2)})",
  "began": "(bf16[1024,4096]{1,0:T(8,128)(2,1)}, "
  "bf16[4096,4096]{1,0:T(8,128)(2,1)}, u32[]{:S(2)})",
  "small": "bf16[64,128]{1,0:T(8,128)(2,1)}",
  "state": "(s32[]{:T(128)}, bf16[64,128]{1,0:T(8,128)(2,1)})",
  "slices": "frontend_attributes={"
  '_xla_host_transfer_rendezvous="all-reduce.2_0",'
  '_xla_megascale_transfer_type="ALL_REDUCE"}',
  "gather": "channel_id=7, replica_groups={{0,1,2,3}}, dimensions={0}",
}


def program(text):
  """Expands the abbreviations in the text of a program."""
  text = re.sub(
    r"@(\d+)",
    r', backend_config={"window_config":{"estimated_cycles":"\1"}}',
    text,
  )
  text = re.sub(r"<(\w+)>", lambda found: TYPES[found[1]], text)
  return f"HloModule jit_step, is_scheduled=true\n\n{text}"


def ring(size, chip=CHIP, slices=1):
  """Returns a network with one ring of chips in each slice."""
  return collectives.Network(
    tuple(
      collectives.Position((x, 0, 0), s)
      for s in range(slices)
      for x in range(size)
    ),
    (size, 1, 1),
    (True, False, False),
    chip,
  )


LOOPS = program("""\
%fused (p: f32[8]) -> f32[8] {
  %p = <x> parameter(0)
  ROOT %n = <x> negate(%p)@99999
}

%limit (a: s32[], b: s32[]) -> pred[] {
  %a = <i> parameter(0)
  %five = <i> constant(5)
  ROOT %lt = <flag> compare(%a, %five), direction=LT
}

%inner_condition (q: (s32[], f32[8])) -> pred[] {
  %q = <pair> parameter(0)
  %i = <i> get-tuple-element(%q), index=0
  ROOT %c = <flag> fusion(%i, %i), kind=kLoop, calls=%limit
}

%inner_body (r: (s32[], f32[8])) -> (s32[], f32[8]) {
  %r = <pair> parameter(0)
  %x = <x> get-tuple-element(%r), index=1
  %f = <x> fusion(%x), kind=kLoop, calls=%fused@7
  ROOT %t = <pair> tuple(%r, %f)
}

%condition (s: (s32[], f32[8])) -> pred[] {
  %three = <i> constant(3)
  %s = <pair> parameter(0)
  %j = <i> get-tuple-element(%s), index=0
  ROOT %d = <flag> compare(%j, %three), direction=LT@2
}

%body (u: (s32[], f32[8])) -> (s32[], f32[8]) {
  %u = <pair> parameter(0)
  %g = <x> fusion(%u), kind=kLoop, calls=%fused@10
  ROOT %w = <pair> while(%u), condition=%inner_condition, body=%inner_body
}

%short (v: f32[8]) -> f32[8] {
  %v = <x> parameter(0)
  ROOT %vs = <x> copy(%v)@20
}

%long (y: f32[8]) -> f32[8] {
  %y = <x> parameter(0)
  ROOT %ys = <x> copy(%y)@500
}

%called (z: f32[8]) -> f32[8] {
  %z = <x> parameter(0)
  ROOT %zs = <x> copy(%z)@40
}

ENTRY %main (k: f32[8], h: s32[]) -> f32[8] {
  %k = <x> parameter(0)
  %h = <i> parameter(1)
  %a0 = <x> fusion(%k), kind=kLoop, calls=%fused, \
metadata={op_name="jit(step)/jvp(M)/layers/mlp_in/dot_general"}@100
  %tt = <pair> tuple(%h, %a0)
  %loop = <three> while(%tt), condition=%condition, body=%body
  %b0 = <x> conditional(%h, %k, %k), branch_computations={%short, %long}
  %c0 = <x> call(%b0), to_apply=%called
  ROOT %e0 = <x> copy(%c0)@1000
}
""")
LOOPS_CYCLES = 100 + 3 * (10 + 5 * 7 + 2) + 500 + 40 + 1000

# An asynchronous all-gather: its start, a part of it fused with other work, and
# its end.
_GATHER = """\
%start (p: bf16[1024,4096]) -> (bf16[1024,4096], bf16[4096,4096], u32[]) {
  %p = <part> parameter(0)
  %g1 = <whole> all-gather(%p), <gather>, frontend_attributes={chain_id="3"}
  ROOT %s = <began> custom-call(%g1), custom_call_target="AsyncCollectiveStart"
}

%middle (p2: bf16[1024,4096], p3: f32[8]) -> f32[8] {
  %p2 = <part> parameter(0)
  %p3 = <x> parameter(1)
  %g2 = <whole> all-gather(%p2), <gather>, frontend_attributes={chain_id="3"}
  ROOT %m = <x> negate(%p3)
}

%done (p4: bf16[1024,4096]) -> bf16[4096,4096] {
  %p4 = <part> parameter(0)
  %g3 = <whole> all-gather(%p4), <gather>, frontend_attributes={chain_id="3"}
  ROOT %o = <whole> custom-call(%g3), custom_call_target="AsyncCollectiveDone"
}
"""
GATHERED_BYTES = 2 * 4096 * 4096


def gather(between):
  """Returns an all-gather that overlaps with `between` cycles of compute."""
  return program(
    _GATHER
    + f"""
ENTRY %main (a: bf16[1024,4096], b: f32[8]) -> bf16[4096,4096] {{
  %a = <part> parameter(0)
  %b = <x> parameter(1)
  %begin = <began> fusion(%a), kind=kCustom, calls=%start
  %work = <x> fusion(%a, %b), kind=kOutput, calls=%middle@{between}
  ROOT %end = <whole> fusion(%begin), kind=kCustom, calls=%done
}}
"""
  )


def two_gathers(between):
  """Returns two all-gathers that both start before the first one ends."""
  second = (
    _GATHER.replace('"3"', '"4"')
    .replace("%start", "%start2")
    .replace("%done", "%done2")
    .replace("%middle", "%unused")
  )
  return program(
    _GATHER
    + "\n"
    + second
    + f"""
ENTRY %main (a: bf16[1024,4096], b: f32[8]) -> bf16[4096,4096] {{
  %a = <part> parameter(0)
  %b = <x> parameter(1)
  %begin = <began> fusion(%a), kind=kCustom, calls=%start
  %begin2 = <began> fusion(%a), kind=kCustom, calls=%start2
  %work = <x> fusion(%a, %b), kind=kOutput, calls=%middle@{between}
  %end = <whole> fusion(%begin), kind=kCustom, calls=%done
  ROOT %end2 = <whole> fusion(%begin2), kind=kCustom, calls=%done2
}}
"""
  )


def all_reduce():
  """Returns a synchronous all-reduce."""
  return program("""\
ENTRY %main (a: bf16[4096,4096]) -> bf16[4096,4096] {
  %a = <whole> parameter(0)
  ROOT %r = <whole> all-reduce(%a), replica_groups={{0,1,2,3}}, to_apply=%add
}
""")


def plain_gather(between):
  """Returns an all-gather as a pair of all-gather-start and -done."""
  return program(f"""\
ENTRY %main (a: bf16[1024,4096], b: f32[8]) -> bf16[4096,4096] {{
  %a = <part> parameter(0)
  %b = <x> parameter(1)
  %begin = <began> all-gather-start(%a), <gather>
  %work = <x> copy(%b)@{between}
  ROOT %end = <whole> all-gather-done(%begin)
}}
""")


def slice_all_reduce(between):
  """Returns an all-reduce over slices that overlaps with `between` cycles."""
  return program(f"""\
ENTRY %main (a: bf16[4096,4096], b: f32[8]) -> bf16[4096,4096] {{
  %a = <whole> parameter(0)
  %b = <x> parameter(1)
  %token = token[] after-all()
  %s = (<whole>, u32[], token[]) send(%a, %token), <slices>
  %r = (<whole>, u32[], token[]) recv(%token), <slices>
  %sd = token[] send-done(%s), <slices>
  %work = <x> copy(%b)@{between}
  ROOT %end = (<whole>, token[]) recv-done(%r), <slices>
}}
""")


def copy_from_hbm(between):
  """Returns a copy from HBM that overlaps with `between` cycles."""
  return program(f"""\
ENTRY %main (a: bf16[4096,4096], b: f32[8]) -> bf16[4096,4096] {{
  %a = <whole> parameter(0)
  %b = <x> parameter(1)
  %begin = (<whole>, u32[]{{:S(2)}}) copy-start(%a)
  %work = <x> copy(%b)@{between}
  ROOT %end = <whole> copy-done(%begin)
}}
""")


def copy_to_host(between):
  """Returns a copy to the host that overlaps with `between` cycles."""
  return program(f"""\
ENTRY %main (a: bf16[4096,4096], b: bf16[1024,4096]) -> bf16[4096,4096] {{
  %a = <hosted> parameter(0)
  %b = <part> parameter(1)
  %c = <x> constant({{...}})
  %zero = <i> constant(0)
  %begin = <going> dynamic-update-slice-start(%a, %b, %zero, %zero)
  %work = <x> copy(%c)@{between}
  ROOT %end = <hosted> dynamic-update-slice-done(%begin)
}}
""")


def kernel(stated=""):
  """Returns a loop of three calls of a Pallas kernel without a cost model.

  Args:
    stated: Further attributes of the kernel.
  """
  return program(
    """\
%condition (s: (s32[], bf16[64,128])) -> pred[] {
  %three = <i> constant(3)
  %s = <state> parameter(0)
  %j = <i> get-tuple-element(%s), index=0
  ROOT %d = <flag> compare(%j, %three), direction=LT
}

%body (u: (s32[], bf16[64,128])) -> (s32[], bf16[64,128]) {
  %u = <state> parameter(0)
  %x = <small> get-tuple-element(%u), index=1
  %mystery.1 = <small> custom-call(%x), custom_call_target="tpu_custom_call", \
metadata={op_name="jit(step)/jvp(M)/mystery/pallas_call"}, \
backend_config={"custom_call_config":{"body":"xyz"STATED}}
  ROOT %t = <state> tuple(%u, %mystery.1)
}

ENTRY %main (a: bf16[64,128], h: s32[]) -> bf16[64,128] {
  %a = <small> parameter(0)
  %h = <i> parameter(1)
  %tt = <state> tuple(%h, %a)
  ROOT %loop = <state> while(%tt), condition=%condition, body=%body
}
""".replace("STATED", stated)
  )
