"""A training step compiled for chips that need not be there: what it costs, whether it fits, how fast it can be."""

import dataclasses
import math
import time
from collections.abc import Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from cnn_research.analysis.hlo import Collective, collectives, traffic
from cnn_research.analysis.roofline import Chip, Roofline, roofline
from cnn_research.errors import UserError
from cnn_research.training.feed import abstract_feed
from cnn_research.training.parallel import make_parallel
from cnn_research.training.program import make_program


@dataclasses.dataclass(frozen=True)
class Cost:
    """What XLA says of a compiled step, on one chip.

    Attributes:
      batch_size: of all chips together.
      flops: a step.
      accessed: bytes a step that its operations read and write, in the chip's main memory and inside it.
      traffic: bytes of the main memory alone, see `analysis.hlo.traffic`.
      state_bytes: parameters, statistics, the optimizer's state, and data that lives on the chip.
      batch_bytes: images and targets.
      temporary_bytes: activations and what else lives for a part of a step.
      program_bytes: the program itself.
      messages: to other chips.
      seconds: that compiling took.
    """

    batch_size: int
    flops: float
    accessed: float
    traffic: int
    state_bytes: int
    batch_bytes: int
    temporary_bytes: int
    program_bytes: int
    messages: tuple[Collective, ...]
    seconds: float

    @property
    def memory(self) -> int:
        """Bytes altogether."""
        return self.state_bytes + self.batch_bytes + self.temporary_bytes + self.program_bytes


class OutOfMemoryError(Exception):
    """The compiler found no way to fit the step into the chip."""


def compile_step(config: ConfigDict, devices: Sequence[Any] = ()) -> Cost:
    """Compiles a run's training step, as training does, and reads what it costs.

    Args:
      config: of the run; `data.num_examples` must be known, the data itself need not be there.
      devices: of this process, or those of `jax.experimental.topologies`; all there are unless given.

    Raises:
      UserError: the config is not right, or its batch does not divide among the devices.
      OutOfMemoryError: the step does not fit.
    """
    devices = devices or jax.devices()
    if config.parallel != "jit":
        raise UserError(
            f"parallel={config.parallel} cannot be planned; give --config.parallel=jit, which moves as much"
        )
    program = make_program(config, devices[0].platform)
    parallel = make_parallel(config.parallel, devices, config.shard_state)
    parallel.block(config.batch_size, config.accumulate)
    batch, data = abstract_feed(config, parallel)
    layout = parallel.layout(program.abstract_state)
    state = jax.tree.map(
        lambda x, to: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=to), program.abstract_state, layout
    )
    step: Any = parallel.compile(program.train_step(parallel.axis_name), layout)
    began = time.perf_counter()
    try:
        compiled = step.lower(state, batch, data).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            raise OutOfMemoryError(str(error)) from error
        raise
    costs, memory, text = compiled.cost_analysis(), compiled.memory_analysis(), compiled.as_text()
    batch_bytes = sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(batch))
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return Cost(
        batch_size=config.batch_size,
        flops=costs.get("flops", 0.0),
        accessed=costs.get("bytes accessed", 0.0),
        traffic=traffic(text),
        state_bytes=max(0, memory.argument_size_in_bytes - batch_bytes),
        batch_bytes=batch_bytes,
        temporary_bytes=memory.temp_size_in_bytes + results,
        program_bytes=memory.generated_code_size_in_bytes,
        messages=collectives(text, len(devices)),
        seconds=time.perf_counter() - began,
    )


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run on a pod.

    Attributes:
      topology: its name.
      shape: chips of a slice along its axes.
      slices: how many.
      chip: each of them; None where its rates are not known.
      hbm_bytes: of each; 0 where that is not known.
      batch_size: of all chips together, that was asked for.
      fits: whether the step does; None where the chip's memory is not known.
      cost: of the step, or, where it does not fit, of the largest tried that does.
      other: of a step with another batch, from which what grows with the batch is told from what does not; or None.
      accumulate: micro-batches a step.
      total_steps: of the run.
      verified: whether a step of `largest_batch` was compiled and fits; None: not tried.
    """

    topology: str
    shape: tuple[int, ...]
    slices: int
    chip: Chip | None
    hbm_bytes: int
    batch_size: int
    fits: bool | None
    cost: Cost
    other: Cost | None
    accumulate: int
    total_steps: int
    verified: bool | None = None

    @property
    def chips(self) -> int:
        """Of all slices."""
        return self.slices * math.prod(self.shape)

    def _line(self, field: str) -> tuple[float, float]:
        """Returns what a cost is without a batch, and what each example of a chip adds."""
        assert self.other is not None
        (first, low), (second, high) = sorted(
            (cost.batch_size / self.chips, getattr(cost, field)) for cost in (self.cost, self.other)
        )
        slope = (high - low) / (second - first)
        return low - slope * first, slope

    def _of_step(self, field: str) -> float:
        """Returns a cost; XLA counts what a loop does once, which here is what grows with the batch."""
        reported = getattr(self.cost, field)
        if self.accumulate == 1:
            return reported
        fixed = self._line(field)[0]
        return fixed + self.accumulate * (reported - fixed)

    @property
    def flops(self) -> float:
        """Of a chip and step."""
        return self._of_step("flops")

    @property
    def accessed(self) -> float:
        """Bytes that a chip reads and writes in a step, as XLA counts them."""
        return self._of_step("accessed")

    @property
    def traffic(self) -> float:
        """Bytes of them in the chip's main memory: XLA knows better where an operand is read in part."""
        return min(self.accessed, float(self.cost.traffic))

    @property
    def collective_bytes(self) -> int:
        """Bytes of all messages of a step."""
        return sum(message.bytes * message.count for message in self.cost.messages)

    @property
    def largest_batch(self) -> int | None:
        """The largest batch of all chips together that should fit, as memory grows between the two that were compiled.

        None where there is but one, or the chip's memory is not known.
        """
        if self.other is None or not self.hbm_bytes:
            return None
        fixed, slope = self._line("memory")
        if slope <= 0:
            return None
        examples = int((self.hbm_bytes - fixed) / slope)
        return examples // self.accumulate * self.accumulate * self.chips

    @property
    def roofline(self) -> Roofline | None:
        """Least times of a step, where the chip's rates are known."""
        if self.chip is None:
            return None
        return roofline(self.chip, self.shape, self.slices, self.flops, self.traffic, self.cost.messages)

    @property
    def images_per_second(self) -> float | None:
        """At most, of all chips."""
        return self.cost.batch_size / self.roofline.seconds if self.roofline else None

    @property
    def days(self) -> float | None:
        """At least, of the whole run without evaluation; that of `total_steps` of the batch that was asked for."""
        if self.images_per_second is None:
            return None
        return self.total_steps * self.batch_size / self.images_per_second / 86400

    def json(self) -> dict[str, Any]:
        """Returns all of it by flat names; sizes in bytes, times in seconds, counts of one chip where they say so."""
        cost, times = self.cost, self.roofline
        return {
            "topology": self.topology,
            "chips": self.chips,
            "fits": self.fits,
            "hbm_bytes": self.hbm_bytes or None,
            "memory_bytes": cost.memory,
            "state_bytes": cost.state_bytes,
            "batch_bytes": cost.batch_bytes,
            "temporary_bytes": cost.temporary_bytes,
            "program_bytes": cost.program_bytes,
            "batch_size": cost.batch_size,
            "largest_batch_size": self.largest_batch,
            "verified": self.verified,
            "flops_per_chip": self.flops,
            "bytes_per_chip": self.accessed,
            "bytes_per_image": self.accessed * self.chips / cost.batch_size,
            "hbm_traffic_per_chip": self.traffic,
            "collective_bytes": self.collective_bytes,
            "collectives": [dataclasses.asdict(message) for message in cost.messages],
            "compute_seconds": times and times.compute,
            "memory_seconds": times and times.memory,
            "interconnect_seconds": times and times.interconnect,
            "step_seconds": times and times.seconds,
            "bound": times and times.bound,
            "images_per_second": self.images_per_second,
            "days": self.days,
            "compile_seconds": cost.seconds + (self.other.seconds if self.other else 0),
        }


def make_plan(
    config: ConfigDict,
    devices: Sequence[Any],
    topology: str,
    shape: tuple[int, ...],
    slices: int = 1,
    chip: Chip | None = None,
    hbm_bytes: int = 0,
    *,
    largest: bool = True,
    verify: bool = False,
) -> Plan:
    """Compiles a run's step for a pod, and once more for half the batch.

    A step that does not fit is halved until it does.

    Args:
      config: of the run.
      devices: of all slices; see `compile_step`.
      topology: the pod's name.
      shape: chips of a slice along its axes.
      slices: how many.
      chip: its rates, where they are known.
      hbm_bytes: of a chip; 0 where that is not known.
      largest: whether to compile a second batch where only the largest that fits asks for it.
      verify: whether to compile the largest batch that should fit, too.

    Raises:
      UserError: the config is not right, or not even an example a chip fits.
    """
    config = config.copy_and_resolve_references()
    asked, chips, unit = config.batch_size, slices * math.prod(shape), config.accumulate
    total_steps = make_program(config, devices[0].platform).total_steps

    def attempt(batch_size: int) -> Cost | None:
        config.batch_size = batch_size
        try:
            cost = compile_step(config, devices)
        except OutOfMemoryError:
            return None
        return None if hbm_bytes and cost.memory > hbm_bytes else cost

    def half(batch_size: int) -> int:
        return batch_size // (2 * chips * unit) * chips * unit

    size, cost = asked, attempt(asked)
    while cost is None:
        size = half(size)
        if not size:
            raise UserError(f"not even {unit} examples a chip fit {topology}; try another topology or model")
        cost = attempt(size)
    other = attempt(half(size) or 2 * size) if largest or verify or unit > 1 else None
    plan = Plan(
        topology=topology,
        shape=shape,
        slices=slices,
        chip=chip,
        hbm_bytes=hbm_bytes,
        batch_size=asked,
        fits=size == asked if hbm_bytes else None,
        cost=cost,
        other=other,
        accumulate=unit,
        total_steps=total_steps,
    )
    if verify and plan.largest_batch:
        plan = dataclasses.replace(plan, verified=attempt(plan.largest_batch) is not None)
    return plan
