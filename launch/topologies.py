"""What `--topology` names: TPU slices, nodes of GPUs, processes of this machine."""

import dataclasses
import math
import re

from cnn_research.errors import UserError, nearest


@dataclasses.dataclass(frozen=True)
class Generation:
    """What a generation of TPUs is called, and the slices and the machines that it comes in.

    Attributes:
      shapes: slices that there are, the smallest first; 3-D ones of more than a cube of 4x4x4 are not listed.
      max_chips: of a slice.
      machines: GKE's machine type by the chips of a VM.
      accelerator: GKE's name of the node label `cloud.google.com/gke-tpu-accelerator`.
      sky: SkyPilot's name of the accelerator, before the size.
      cores: cores of a chip as that size counts them.
      runtime: image of Cloud TPU VMs.
    """

    shapes: tuple[tuple[int, ...], ...]
    max_chips: int
    machines: dict[int, str]
    accelerator: str
    sky: str
    cores: int
    runtime: str


PLANES = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
CUBES = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4), (4, 4, 4))

# https://cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus, https://cloud.google.com/tpu/docs/v4 and so on,
# https://cloud.google.com/tpu/docs/runtimes.
TPUS = {
    "v4": Generation(
        CUBES, 4096, {4: "ct4p-hightpu-4t"}, "tpu-v4-podslice", "tpu-v4", cores=2, runtime="tpu-ubuntu2204-base"
    ),
    "v5e": Generation(
        PLANES,
        256,
        {1: "ct5lp-hightpu-1t", 4: "ct5lp-hightpu-4t", 8: "ct5lp-hightpu-8t"},
        "tpu-v5-lite-podslice",
        "tpu-v5litepod",
        cores=1,
        runtime="v2-alpha-tpuv5-lite",
    ),
    "v5p": Generation(
        CUBES, 6144, {4: "ct5p-hightpu-4t"}, "tpu-v5p-slice", "tpu-v5p", cores=2, runtime="v2-alpha-tpuv5"
    ),
    "v6e": Generation(
        PLANES,
        256,
        {1: "ct6e-standard-1t", 4: "ct6e-standard-4t", 8: "ct6e-standard-8t"},
        "tpu-v6e-slice",
        "tpu-v6e",
        cores=1,
        runtime="v2-alpha-tpuv6e",
    ),
}

# By SkyPilot's names.
GPUS = {"a100": "A100", "a100-80gb": "A100-80GB", "b200": "B200", "h100": "H100", "h200": "H200", "l4": "L4"}

LOCAL = "local"
FORMS = "v5e:4x4 (a slice), 2xv5e:16x16 (two slices), h100:2x8 (2 nodes of 8 GPUs) or local:2x4 (2 processes of 4)"


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices and how they lie.

    Attributes:
      kind: a key of `TPUS` or `GPUS`, or `LOCAL`.
      shape: chips of a slice along its axes; (nodes, GPUs of a node); (processes, devices of a process), or () for
        what this machine has.
      slices: slices of TPUs, which a network of the data centre joins.
    """

    kind: str
    shape: tuple[int, ...]
    slices: int = 1

    def __str__(self) -> str:
        size = f":{self.size}" if self.shape else ""
        return (f"{self.slices}x" if self.slices > 1 else "") + self.kind + size

    @property
    def size(self) -> str:
        """The shape as `4x4`."""
        return "x".join(map(str, self.shape))

    @property
    def chips(self) -> int:
        """Devices altogether."""
        return self.slices * math.prod(self.shape)

    @property
    def chips_per_vm(self) -> int:
        """Chips of one virtual machine of a slice: those of a whole small one, else 4."""
        chips = math.prod(self.shape)
        return chips if chips in TPUS[self.kind].machines else 4

    @property
    def vms(self) -> int:
        """Virtual machines of a slice."""
        return math.prod(self.shape) // self.chips_per_vm


def parse(text: str) -> Topology:
    """Returns the topology that a text names.

    Args:
      text: see `FORMS`; `local` is what this machine has.

    Raises:
      UserError: it names none; the message names those that there are.
    """
    if text == LOCAL:
        return Topology(LOCAL, ())
    match = re.fullmatch(r"(?:([1-9]\d*)x)?([a-z][a-z0-9-]*):([1-9]\d*(?:x[1-9]\d*){1,2})", text)
    if not match:
        raise UserError(f"topology {text!r} is none; write {FORMS}")
    slices, kind, shape = int(match[1] or 1), match[2], tuple(map(int, match[3].split("x")))
    topology = Topology(kind, shape, slices)
    if kind in TPUS:
        _check_slice(topology)
    elif kind not in (*GPUS, LOCAL):
        raise UserError(f"topology {text!r}: {kind!r} is unknown; {nearest(kind, [*TPUS, *GPUS, LOCAL])}")
    elif slices > 1 or len(shape) != 2:
        raise UserError(f"topology {text!r} is none; write {kind}:2x8, 2 times 8 devices")
    return topology


def _check_slice(topology: Topology) -> None:
    """Raises `UserError` where there is no such slice."""
    generation, shape = TPUS[topology.kind], topology.shape
    if shape in generation.shapes:
        return
    cubes = len(shape) == 3 and generation.shapes is CUBES and not any(size % 4 for size in shape)
    if cubes and sorted(shape) == [*shape] and math.prod(shape) <= generation.max_chips:
        return
    there = ", ".join("x".join(map(str, known)) for known in generation.shapes)
    more = (
        f", and multiples of 4 such as 4x4x8, up to {generation.max_chips} chips" if generation.shapes is CUBES else ""
    )
    raise UserError(f"{topology.kind} comes in no slice {topology.size}; there are {there}{more}")
