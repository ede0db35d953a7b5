import math

import pytest

from cnn_research.errors import UserError
from launch import topologies
from launch.topologies import CUBES, PLANES, TPUS, Topology, parse


@pytest.mark.parametrize(
    ("text", "topology", "chips"),
    [
        ("v5e:16x16", Topology("v5e", (16, 16)), 256),
        ("2xv5e:16x16", Topology("v5e", (16, 16), 2), 512),
        ("v4:4x4x8", Topology("v4", (4, 4, 8)), 128),
        ("v5p:2x2x1", Topology("v5p", (2, 2, 1)), 4),
        ("h100:2x8", Topology("h100", (2, 8)), 16),
        ("a100-80gb:1x8", Topology("a100-80gb", (1, 8)), 8),
        ("local:2x4", Topology("local", (2, 4)), 8),
    ],
)
def test_a_topology_and_its_name(text, topology, chips):
    assert parse(text) == topology
    assert str(topology) == text
    assert topology.chips == chips
    assert str(parse("local")) == "local"


@pytest.mark.parametrize(
    ("text", "vms", "chips_per_vm", "machine"),
    [
        ("v5e:1x1", 1, 1, "ct5lp-hightpu-1t"),
        ("v5e:2x4", 1, 8, "ct5lp-hightpu-8t"),
        ("v5e:4x4", 4, 4, "ct5lp-hightpu-4t"),
        ("2xv6e:16x16", 64, 4, "ct6e-standard-4t"),
        ("v4:2x2x2", 2, 4, "ct4p-hightpu-4t"),
        ("v5p:4x4x4", 16, 4, "ct5p-hightpu-4t"),
    ],
)
def test_machines_of_a_slice(text, vms, chips_per_vm, machine):
    """Google's tables of each generation's machines and slices."""
    topology = parse(text)
    assert (topology.vms, topology.chips_per_vm) == (vms, chips_per_vm)
    assert TPUS[topology.kind].machines[topology.chips_per_vm] == machine


@pytest.mark.parametrize(("kind", "shapes"), [("v4", CUBES), ("v5e", PLANES), ("v5p", CUBES), ("v6e", PLANES)])
def test_all_shapes_parse_and_fill_their_machines(kind, shapes):
    for shape in shapes:
        topology = parse(f"{kind}:{'x'.join(map(str, shape))}")
        assert topology.vms * topology.chips_per_vm == math.prod(shape)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v5e", f"topology 'v5e' is none; write {topologies.FORMS}"),
        ("v5e:0x4", f"topology 'v5e:0x4' is none; write {topologies.FORMS}"),
        ("v5e:3x3", "v5e comes in no slice 3x3; there are 1x1, 2x2, 2x4, 4x4, 4x8, 8x8, 8x16, 16x16"),
        ("v5e:4x4x4", "v5e comes in no slice 4x4x4; there are 1x1"),
        ("v4:16x16", "v4 comes in no slice 16x16; there are 2x2x1, 2x2x2, 2x2x4, 2x4x4, 4x4x4, and multiples of 4 such"
         " as 4x4x8, up to 4096 chips"),
        ("v4:8x4x4", "v4 comes in no slice 8x4x4"),
        ("v4:16x16x20", "v4 comes in no slice 16x16x20"),
        ("v5:4x4", r"topology 'v5:4x4': 'v5' is unknown; did you mean 'v5p' or 'v5e'"),
        ("h100:8", f"topology 'h100:8' is none; write {topologies.FORMS}"),
        ("2xh100:2x8", "topology '2xh100:2x8' is none; write h100:2x8"),
        ("local:2x2x2", "topology 'local:2x2x2' is none; write local:2x8"),
    ],
)  # fmt: skip
def test_what_is_none_is_refused_with_those_there_are(text, message):
    with pytest.raises(UserError) as raised:
        parse(text)
    assert str(raised.value).startswith(message)
