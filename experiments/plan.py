"""Compiles a run's training step for a pod that is not here, and says what it costs there.

python -m experiments.plan --config=experiments/configs/imagenet.py:resnet50 --topology=v5e:16x16 --batch_per_chip=128
python -m experiments.plan --config=experiments/configs/digits.py:lenet5 --topology=v5e:2x2,v5e:4x4,2xv5e:16x16
python -m experiments.plan --config=experiments/configs/digits.py:lenet5 --topology=local

It is the step that training runs, compiled by the chips' own compiler: FLOPs, bytes and messages are what that says,
and times are the least that the chips' peak rates allow. Several topologies make a table, which shows where more chips
stop paying. No data is needed. `pip install -e ".[tpu]"` brings the compiler. The last line of stdout is one JSON
object; of several topologies it holds a list, `topologies`.
"""

import importlib.util
import itertools
import json
import os
from collections.abc import Sequence
from typing import Any

import jax
from absl import flags
from jax.experimental import topologies as jax_topologies
from ml_collections import ConfigDict, config_flags

from cnn_research.analysis.plan import Plan, make_plan
from cnn_research.analysis.roofline import CHIPS
from cnn_research.errors import UserError
from experiments import command_line
from launch.topologies import LOCAL, TPUS, Topology, parse

_CONFIG = config_flags.DEFINE_config_file("config", help_string="a recipe, FILE.py or FILE.py:argument")
_TOPOLOGY = flags.DEFINE_list("topology", [], "pods, such as v5e:4x4,2xv5e:16x16, or local: the devices that are here")
_BATCH_PER_CHIP = flags.DEFINE_integer(
    "batch_per_chip", 0, "sets batch_size to as many times the chips; 0: the recipe's"
)
_LARGEST = flags.DEFINE_boolean("largest", True, "compile a second batch too, which says what the largest one is")
_VERIFY = flags.DEFINE_boolean("verify", False, "compile that largest batch too")

# What keeps libtpu from looking for a TPU, and from saying that there is none.
OFFLINE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # a compiler holds no chip that another could want
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
}


def read_topologies(texts: Sequence[str]) -> list[Topology]:
    """Returns the pods that are named.

    Raises:
      UserError: one of them is none, or cannot be planned.
    """
    pods = [parse(text) for text in texts]
    for pod in pods:
        if pod.kind == LOCAL and (pod.shape or len(pods) > 1):
            raise UserError("--topology=local is all devices of this machine, and stands alone")
        if pod.kind not in (LOCAL, *TPUS):
            raise UserError(
                f"no compiler for {pod.kind} works without one; give a TPU ({', '.join(TPUS)}), or local on such a node"
            )
    if any(pod.kind in TPUS for pod in pods) and importlib.util.find_spec("libtpu") is None:
        raise UserError('the compiler of TPUs is not installed; pip install -e ".[tpu]" brings it')
    return pods


def describe_devices(pod: Topology) -> Sequence[Any]:
    """Returns devices of a pod of TPUs for the compiler."""
    options: dict[str, Any] = {"num_slices": pod.slices} if pod.slices > 1 else {}
    if pod.shape == (1, 1):
        options["chips_per_host_bounds"] = (1, 1, 1)
    if pod.kind == "v4":  # whose two cores work as one
        options["chip_config_name"] = "megacore"
    name = f"{pod.kind}:{pod.size}"
    return jax_topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices


def plan(config: ConfigDict, pod: Topology) -> Plan:
    """Plans a run on a pod, or on the devices that are here.

    Args:
      config: of the run.
      pod: which.
    """
    if pod.kind == LOCAL:
        devices: Sequence[Any] = jax.devices()
        chip = next((chip for chip in CHIPS.values() if devices[0].device_kind in chip.kinds), None)
        shape: tuple[int, ...] = (len(devices),)
        hbm_bytes = (devices[0].memory_stats() or {}).get("bytes_limit", 0)
    else:
        devices, chip, shape = describe_devices(pod), CHIPS[pod.kind], pod.shape
        hbm_bytes = chip.hbm_bytes
    if _BATCH_PER_CHIP.value:
        config = config.copy_and_resolve_references()
        config.batch_size = _BATCH_PER_CHIP.value * len(devices)
    return make_plan(
        config, devices, str(pod), shape, pod.slices, chip, hbm_bytes, largest=_LARGEST.value, verify=_VERIFY.value
    )


def report(plan: Plan) -> str:
    """Returns what a plan says, a line for each thing."""
    cost, times, chips = plan.cost, plan.roofline, plan.chips
    each = cost.batch_size / chips
    lines = [f"{plan.topology}: {_count(chips, 'chip')}, {cost.batch_size} images a step, {each:g} a chip"]
    if cost.batch_size != plan.batch_size:
        lines.append(f"  the batch of {plan.batch_size} does not fit; what follows is of the largest tried that does")
    size = cost.memory / 2**30
    of = f" of {plan.hbm_bytes / 2**30:.2f}" if plan.hbm_bytes else ""
    parts = {
        "state": cost.state_bytes,
        "batch": cost.batch_bytes,
        "activations and temporaries": cost.temporary_bytes,
        "program": cost.program_bytes,
    }
    listed = ", ".join(f"{name} {value / 2**30:.2f}" for name, value in parts.items())
    lines.append(f"  memory of a chip   {size:.2f}{of} GiB: {listed}")
    if plan.largest_batch is not None:
        verdict = {None: "", True: "; compiled: it does", False: "; compiled: it does not"}[plan.verified]
        lines.append(
            f"  largest batch      {plan.largest_batch}, {plan.largest_batch // chips} a chip, should fit{verdict}"
        )
    lines.append(f"  FLOPs of a chip    {plan.flops / 1e12:.4g} T a step, {plan.flops / each / 1e9:.4g} G an image")
    lines.append(
        f"  bytes of a chip    {plan.accessed / 1e9:.4g} GB a step, {plan.accessed / each / 1e6:.4g} MB an image; "
        f"in main memory {plan.traffic / 1e9:.4g} and {plan.traffic / each / 1e6:.4g}"
    )
    sent = ", ".join(
        f"{sum(message.count for message in messages)} {kind} {sum(m.count * m.bytes for m in messages) / 1e6:.4g} MB"
        for kind, messages in _by_kind(cost.messages).items()
    )
    lines.append(f"  messages           {sent or 'none'}")
    if times is None or plan.chip is None:
        return "\n".join([*lines, "  time               not known: there are no peak rates of these devices"])
    lines += [
        f"  time of a step     {times.seconds * 1e3:.4g} ms at least, bound by {times.bound}: compute "
        f"{times.compute * 1e3:.4g}, memory {times.memory * 1e3:.4g}, interconnect {times.interconnect * 1e3:.4g}",
        f"  speed              {plan.images_per_second:,.0f} images/s at most, the whole run {plan.days:.3g} days",
        f"  peak rates         {plan.chip.flops / 1e12:g} TFLOP/s, {plan.chip.memory / 1e9:g} GB/s of memory: "
        f"{plan.chip.source}",
    ]
    return "\n".join(lines)


def _by_kind(messages: Sequence[Any]) -> dict[str, list[Any]]:
    return {kind: [each for each in messages if each.kind == kind] for kind in dict.fromkeys(m.kind for m in messages)}


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("s" if number != 1 else "")


def table(plans: Sequence[Plan]) -> str:
    """Returns a row for each plan, and where more chips stop paying: where each more gives less than half a first one.

    Args:
      plans: with known rates.
    """
    rows = [("topology", "chips", "batch", "fits", "step ms", "bound", "images/s", "of linear", "days")]
    first = plans[0].images_per_second / plans[0].chips  # type: ignore[operator]
    for each in plans:
        speed = each.images_per_second or 0.0
        rows.append((
            each.topology, str(each.chips), str(each.cost.batch_size), "yes" if each.fits else "no",
            f"{each.roofline.seconds * 1e3:.4g}", each.roofline.bound,  # type: ignore[union-attr]
            f"{speed:,.0f}", f"{speed / each.chips / first:.0%}", f"{each.days:.3g}",
        ))  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows]
    for before, after in itertools.pairwise(plans):
        more = after.chips - before.chips
        gained = after.images_per_second - before.images_per_second  # type: ignore[operator]
        if more > 0 and gained / more < first / 2:
            lines.append(f"Beyond {before.topology} a further chip gives less than half of what the first ones do.")
            break
    return "\n".join(lines)


def main() -> None:
    """Writes the plans to stdout."""
    command_line.require("config", "topology")
    pods = read_topologies(_TOPOLOGY.value)
    config = _CONFIG.value
    if config.data.num_examples < 1:
        raise UserError(
            "--config.data.num_examples is not known without the data; give the length of the training split"
        )
    if _BATCH_PER_CHIP.value < 0:
        raise UserError(f"--batch_per_chip={_BATCH_PER_CHIP.value} must not be negative")
    if pods[0].kind != LOCAL:
        os.environ.update({name: value for name, value in OFFLINE.items() if name not in os.environ})
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_enable_compilation_cache", False)  # which cannot be read without the chips
    plans = []
    for pod in pods:
        plans.append(plan(config, pod))
        print(report(plans[-1]), flush=True)
    if len(plans) > 1:
        print(f"\n{table(plans)}")
    results = [each.json() for each in plans]
    print(json.dumps(results[0] if len(results) == 1 else {"topologies": results}))


if __name__ == "__main__":
    command_line.run(main)
