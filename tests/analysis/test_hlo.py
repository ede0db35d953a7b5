"""Messages in HLO as XLA writes it for TPUs, GPUs and CPUs."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from cnn_research.analysis.hlo import Collective, collectives, traffic

TPU = """\
HloModule jit_traced, is_scheduled=true

%region_2.3 (a: f32[], b: f32[]) -> f32[] {
  ROOT %add = f32[] add(%a, %b)
}

%fused (p: bf16[8]) -> bf16[8] {
  ROOT %all-reduce.9 = bf16[8]{0:T(256)(128)(2,1)S(1)} all-reduce(%p), replica_groups={{0,1},{2,3}}, to_apply=%region_2.3
}

ENTRY %main (p0: bf16[6]) -> f32[] {
  %all-reduce.14 = (bf16[6]{0:T(256)(128)(2,1)S(1)}, f32[5,5,1,6]{3,2,1,0:T(2,128)S(1)}, /*index=2*/pred[]) all-reduce(%a, %b, %c), channel_id=2, replica_groups=mesh['axis_0'=4,'axis_1'=1] {'axis_0','axis_1'}, use_global_device_ids=true, to_apply=%region_2.3, metadata={op_name="jit(traced)/ all-reduce("}
  %fusion = bf16[8]{0} fusion(%x), kind=kCustom, calls=%fused
  %gte = bf16[6]{0} get-tuple-element(%all-reduce.14), index=0
  %ar = f32[3] all-reduce(%z), replica_groups=mesh['axis_0'=8] {'axis_0':(1)2}, to_apply=%region_2.3
  %alone = f32[9] all-reduce(%z), replica_groups=[4,1]<=[4], to_apply=%region_2.3
  ROOT %r = f32[] add(%d, %e)
}
"""  # noqa: E501


def test_messages_of_a_tpu():
    assert collectives(TPU, 4) == (
        Collective("all-reduce", 6 * 2 + 150 * 4 + 1, 4),
        Collective("all-reduce", 16, 2),
        Collective("all-reduce", 12, 2),
    )


ASYNC = """\
%cond (s: s32[]) -> pred[] {
  ROOT %lt = pred[] compare(%a, %b), direction=LT
}

%gather (p: f32[2]) -> f32[8] {
  ROOT %ag = f32[8]{0} all-gather(%p), replica_groups=[2,4]<=[8], dimensions={0}
}

%body (s: s32[]) -> s32[] {
  %s = (f32[2]{0}, f32[8]{0}) all-gather-start(%p), replica_groups=[2,4]<=[8], dimensions={0}
  %d = f32[8]{0} all-gather-done(%s), calls=%gather
  %rs = f32[2]{0} reduce-scatter(%q), replica_groups=[2,4]<=[8], dimensions={0}
  %cs = (f32[2]{0}, f32[2]{0}, u32[], u32[]) collective-permute-start(%q), source_target_pairs={{0,1},{1,0}}
  ROOT %i = s32[] add(%s, %one)
}

ENTRY %main (p0: f32[2]) -> s32[] {
  %as = ((f32[2]), f32[8], u32[]) async-start(%p0), calls=%gather
  %ad = f32[8] async-done(%as), calls=%gather
  ROOT %w = s32[] while(%init), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"5"}}
}
"""


def test_messages_in_loops_and_in_the_background():
    """A loop's count as often as it runs; what begins in one line and ends in another counts once."""
    assert set(collectives(ASYNC, 8)) == {
        Collective("all-gather", 32, 4, count=6),
        Collective("reduce-scatter", 32, 4, count=5),
        Collective("collective-permute", 8, 2, count=5),
    }


@pytest.mark.parametrize("devices", [1, 8])
def test_messages_of_a_program_that_xla_compiled(devices):
    """A sum over a batch that is cut, and three times in a loop the mean of something else."""
    mesh = jax.make_mesh((devices,), ("x",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
    cut = NamedSharding(mesh, PartitionSpec("x"))

    def function(x):
        def add(carry, _):
            return carry + jnp.sin(x + carry[0]).sum(0), None

        return jax.lax.scan(add, jnp.zeros(5), length=3)[0]

    out = NamedSharding(mesh, PartitionSpec())
    x = jax.ShapeDtypeStruct((16, 5), jnp.float32, sharding=cut)
    found = collectives(jax.jit(function, out_shardings=out).lower(x).compile().as_text(), devices)
    assert found == ((Collective("all-reduce", 20, 8, count=3),) if devices > 1 else ())


PLACED = """\
%inside (p: f32[100]) -> f32[100] {
  ROOT %hidden = f32[100]{0} add(%p, %p)
}

%body (s: f32[10]) -> f32[10] {
  %s = f32[10]{0} parameter(0)
  ROOT %twice = f32[10]{0:T(128)} add(%s, %s)
}

ENTRY %main (a: f32[100], b: bf16[8]) -> f32[100] {
  %a = f32[100]{0:T(128)} parameter(0)
  %b = bf16[8]{0:T(256)(128)(2,1)S(1)} parameter(1)
  %f = (f32[100]{0:T(128)}, bf16[8]{0:S(1)}) fusion(%a, %b), kind=kLoop, calls=%inside
  %g = f32[100]{0:T(128)} get-tuple-element(%f), index=0
  %ss = ((f32[100]{0:T(128)}), f32[25]{0:T(128)S(1)}, s32[]{:S(2)}) slice-start(%g), slice={[0:25]}
  %sd = f32[25]{0:T(128)S(1)} slice-done(%ss)
  %cs = (f32[100]{0:T(128)S(1)}, f32[100]{0:T(128)}, u32[]{:S(2)}) copy-start(%g)
  %cd = f32[100]{0:T(128)S(1)} copy-done(%cs)
  %w = f32[10]{0} while(%init), body=%body, backend_config={"known_trip_count":{"n":"3"}}
  ROOT %r = f32[100]{0:T(128)S(1)} add(%sd, %cd)
}
"""


def test_traffic_is_that_of_main_memory():
    """Operands and results there, a part of what is sliced, and what a loop does, each time."""
    fusion, sliced, copied, loop = 400 + 400, 100, 400, 3 * (40 + 40 + 40)
    assert traffic(PLACED) == fusion + sliced + copied + loop


def test_traffic_of_a_program_that_xla_compiled():
    x = jax.ShapeDtypeStruct((1000, 100), jnp.float32)
    compiled = jax.jit(lambda x: x.T @ x).lower(x).compile()
    assert traffic(compiled.as_text()) == pytest.approx(4 * (2 * 100_000 + 10_000), rel=0.5)
