"""Roofline: the least time that a step can take on a chip. Williams et al. 2009, doi:10.1145/1498765.1498785.

A chip computes, reads its memory and talks to others at the same time, each no faster than its peak: what takes longest
bounds the step. Programs reach a part of it; convolutional networks, which the memory bounds, a large one.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence

from cnn_research.analysis.hlo import Collective


@dataclasses.dataclass(frozen=True)
class Chip:
    """Peak rates of a chip.

    Attributes:
      kinds: JAX's names of the device.
      flops: FLOP/s in bfloat16, as matrix units take float32, too, by default.
      hbm_bytes: memory that programs may use.
      memory: bytes/s from it.
      link: bytes/s to a neighbour, one way.
      wraps: chips along an axis of a slice, or multiples of them, whose ends are joined to a ring.
      network: bytes/s of a chip to other slices, one way.
      source: of these numbers.
    """

    kinds: tuple[str, ...]
    flops: float
    hbm_bytes: int
    memory: float
    link: float
    wraps: int
    network: float
    source: str


# The pages give the links of a chip together and both ways: 4 (v5e, v6e) or 6 (v4, v5p). Memory is what libtpu 0.0.42
# leaves to a program of 16 (v5e), 32 (v4, v6e) and 96 GiB. The network's rate is that of a pod over its chips; v4's,
# and which axes are rings, are from https://jax-ml.github.io/scaling-book/tpus.
CHIPS = {
    "v4": Chip(
        ("TPU v4",), 275e12, int(30.75 * 2**30), 1200e9, 50e9, 4, 6.25e9, "https://cloud.google.com/tpu/docs/v4"
    ),
    "v5e": Chip(
        ("TPU v5 lite", "TPU v5e"),
        197e12, int(15.75 * 2**30), 819e9, 50e9, 16, 3.125e9, "https://cloud.google.com/tpu/docs/v5e"
    ),
    "v5p": Chip(
        ("TPU v5", "TPU v5p"),
        459e12, int(95.74 * 2**30), 2765e9, 100e9, 4, 6.25e9, "https://cloud.google.com/tpu/docs/v5p"
    ),
    "v6e": Chip(
        ("TPU v6 lite", "TPU v6e"),
        918e12, int(31.25 * 2**30), 1638e9, 100e9, 16, 12.5e9, "https://cloud.google.com/tpu/docs/v6e"
    ),
}  # fmt: skip

HOP = 1e-6  # seconds to a neighbour: https://jax-ml.github.io/scaling-book/sharding


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Least seconds of a step.

    Attributes:
      compute: for its arithmetic.
      memory: for the bytes that it reads and writes.
      interconnect: for what it says to other chips.
    """

    compute: float
    memory: float
    interconnect: float

    @property
    def bound(self) -> str:
        """What takes longest."""
        return max(dataclasses.asdict(self).items(), key=lambda item: item[1])[0]

    @property
    def seconds(self) -> float:
        """Of the whole, all at once."""
        return max(dataclasses.astuple(self))


def links(chip: Chip, shape: Sequence[int]) -> int:
    """Returns over how many links a chip of a slice sends at once: two an axis that is a ring, one where it is open.

    Args:
      chip: of the slice.
      shape: its chips along each axis.
    """
    return sum(1 + ring for ring in _rings(chip, shape).values())


def hops(chip: Chip, shape: Sequence[int]) -> int:
    """Returns the links between the two chips of a slice that are farthest apart.

    Args:
      chip: of the slice.
      shape: its chips along each axis.
    """
    return sum(shape[axis] // 2 if ring else shape[axis] - 1 for axis, ring in _rings(chip, shape).items())


def _rings(chip: Chip, shape: Sequence[int]) -> dict[int, bool]:
    """Returns for each axis of more than a chip whether it is a ring; cubes close all axes or none."""
    less_than_a_cube = len(shape) == 3 and any(size % chip.wraps for size in shape)
    return {axis: not less_than_a_cube and size % chip.wraps == 0 for axis, size in enumerate(shape) if size > 1}


def message_seconds(chip: Chip, shape: Sequence[int], message: Collective, slices: int = 1) -> float:
    """Returns the least time of a message.

    An all-reduce is a reduce-scatter and an all-gather, each of which brings a chip the n - 1 parts that it lacks, over
    all of its links, and takes as long as the way to the farthest chip. Where all slices take part, a chip exchanges
    its part of the slice's sum with its like in the others, over the network.

    Args:
      chip: that sends.
      shape: chips of its slice along each axis.
      message: what is sent.
      slices: that take part where more than the chips of one do.
    """
    within, rounds = min(message.group, math.prod(shape)), 2 if message.kind == "all-reduce" else 1
    seconds = 0.0
    if within > 1:
        sent = message.bytes * (within - 1) / within
        seconds += rounds * max(sent / (chip.link * links(chip, shape)), HOP * min(hops(chip, shape), within - 1))
    if message.group > within and slices > 1:
        seconds += rounds * message.bytes / within * (slices - 1) / slices / chip.network
    return seconds


def roofline(
    chip: Chip, shape: Sequence[int], slices: int, flops: float, traffic: float, messages: Iterable[Collective]
) -> Roofline:
    """Returns the least time of a step.

    Args:
      chip: every one of the pod.
      shape: chips of a slice along each axis.
      slices: of the pod.
      flops: of a chip.
      traffic: bytes that a chip reads and writes in its main memory.
      messages: that it sends, one after another.
    """
    talk = sum(message.count * message_seconds(chip, shape, message, slices) for message in messages)
    return Roofline(flops / chip.flops, traffic / chip.memory, talk)
