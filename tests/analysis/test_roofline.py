import dataclasses

import pytest

from cnn_research.analysis.hlo import Collective
from cnn_research.analysis.roofline import CHIPS, HOP, Roofline, hops, links, message_seconds, roofline
from launch.topologies import TPUS


@pytest.mark.parametrize(
    ("kind", "shape", "expected"),
    [
        ("v5e", (1, 1), (0, 0)),
        ("v5e", (2, 2), (2, 2)),
        ("v5e", (2, 4), (2, 4)),
        ("v5e", (8, 16), (3, 7 + 8)),  # the axis of 16 is a ring
        ("v5e", (16, 16), (4, 16)),
        ("v6e", (16, 16), (4, 16)),
        ("v4", (2, 2, 1), (2, 2)),
        ("v4", (2, 4, 4), (3, 7)),  # half a cube: none is
        ("v4", (4, 4, 4), (6, 6)),
        ("v5p", (8, 8, 16), (6, 16)),
        ("v5e", (8,), (1, 7)),
    ],
)
def test_links_and_hops(kind, shape, expected):
    assert (links(CHIPS[kind], shape), hops(CHIPS[kind], shape)) == expected


def test_every_generation_has_its_rates():
    assert set(CHIPS) == set(TPUS)
    # Google's tables: the links of a chip together, both ways; the all-reduce of a pod of v5e, 51.2 TB/s, is one way.
    for kind, ports, both_ways in (("v5e", 4, 400e9), ("v5p", 6, 1200e9), ("v6e", 4, 800e9)):
        assert 2 * ports * CHIPS[kind].link == both_ways
    assert 256 * links(CHIPS["v5e"], (16, 16)) * CHIPS["v5e"].link == 51.2e12
    assert 256 * CHIPS["v5e"].network * 8 == 6.4e12  # of a pod, bits/s


def test_messages_take_what_their_bytes_and_their_way_take():
    chip = CHIPS["v5e"]
    large = Collective("all-reduce", 400_000_000, 256)
    assert message_seconds(chip, (16, 16), large) == pytest.approx(2 * 4e8 * 255 / 256 / 200e9)
    gather = Collective("all-gather", 400_000_000, 256)
    assert message_seconds(chip, (16, 16), gather) == pytest.approx(message_seconds(chip, (16, 16), large) / 2)
    small = Collective("all-reduce", 512, 256)
    assert message_seconds(chip, (16, 16), small) == pytest.approx(2 * 16 * HOP)
    assert message_seconds(chip, (16, 16), Collective("all-reduce", 512, 4)) == pytest.approx(2 * 3 * HOP)


def test_slices_exchange_a_part_for_each_chip():
    chip, message = CHIPS["v5e"], Collective("all-reduce", 100_000_000, 512)
    within = message_seconds(chip, (16, 16), Collective("all-reduce", 100_000_000, 256))
    across = 2 * (1e8 / 256) * (1 / 2) / 3.125e9
    assert message_seconds(chip, (16, 16), message, slices=2) == pytest.approx(within + across)
    assert message_seconds(chip, (1, 1), Collective("all-reduce", 1000, 2), slices=2) == pytest.approx(1000 / 3.125e9)


def test_what_takes_longest_bounds_a_step():
    chip = CHIPS["v5e"]
    message = Collective("all-reduce", 200_000_000, 256, count=3)
    times = roofline(chip, (16, 16), 1, 197e9, 819e6, [message])
    assert dataclasses.astuple(times) == pytest.approx((1e-3, 1e-3, 3 * 2 * 2e8 * 255 / 256 / 200e9))
    assert (times.bound, times.seconds) == ("interconnect", times.interconnect)
    assert Roofline(2.0, 1.0, 0.0).bound == "compute"
    assert Roofline(1.0, 2.0, 0.0).bound == "memory"
