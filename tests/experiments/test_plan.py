"""What the plan says of a step, of a pod that fits and of one that does not; and, slowly, of TPUs by their compiler."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from cnn_research import analysis, models, training
from cnn_research.analysis import plan as plans
from cnn_research.analysis.hlo import Collective
from cnn_research.analysis.plan import Cost, OutOfMemoryError, Plan, compile_step, make_plan
from cnn_research.analysis.roofline import CHIPS
from cnn_research.errors import UserError
from cnn_research.training.feed import abstract_feed
from cnn_research.training.parallel import make_parallel
from experiments.configs import imagenet
from experiments.plan import read_topologies, report, table

REPOSITORY = Path(__file__).parents[2]
CONFIG = "--config=experiments/configs/digits.py:lenet5_modern"


def run(*arguments):
    """Runs the script as a user does, on a machine of two devices; returns its exit code, stdout and stderr."""
    command = [sys.executable, "-W", "ignore", "-m", "experiments.plan", *arguments]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2"}
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=1800, env=environment)
    return ended.returncode, ended.stdout, ended.stderr


def test_the_devices_that_are_here():
    code, stdout, stderr = run(CONFIG, "--topology=local", "--nolargest", "--batch_per_chip=4")
    assert (code, stderr) == (0, "")
    said = json.loads(stdout.splitlines()[-1])
    assert (said["topology"], said["chips"], said["batch_size"]) == ("local", 2, 8)
    # Of this machine's memory and rates nothing is known.
    assert (said["fits"], said["hbm_bytes"], said["step_seconds"], said["images_per_second"]) == (None,) * 4
    assert said["flops_per_chip"] > 0
    assert said["bytes_per_chip"] > 0
    assert said["collectives"][0]["kind"] == "all-reduce"
    assert "local: 2 chips, 8 images a step, 4 a chip\n" in stdout
    assert "not known: there are no peak rates of these devices" in stdout


def test_the_gradient_and_no_more_is_sent(digits_config):
    """Parameters in float32, two sums of the metrics and one of the examples; and state that lives on each device."""
    config = digits_config()
    config.data.num_examples = 100
    cost = compile_step(config, jax.devices()[:2])
    program = training.make_program(config)
    params = sum(leaf.size for leaf in jax.tree.leaves(program.abstract_state.params))
    sent = sum(message.bytes * message.count for message in cost.messages)
    assert 4 * params <= sent <= 4 * params + 64
    assert {message.kind for message in cost.messages} == {"all-reduce"}
    # The digits are resident: a batch is an index and a mask. SGD has a momentum for each parameter.
    assert cost.batch_bytes == 16 * (4 + 1)
    data = 100 * (32 * 32 + 4)  # images and labels; nothing asks for their original sizes
    assert cost.state_bytes == pytest.approx(2 * 4 * params + data, abs=200)


def test_a_streamed_batch_is_that_of_the_loop():
    config = imagenet.get_config("resnet50")
    batch, data = abstract_feed(config, make_parallel("jit"))
    assert not data
    assert {name: (x.shape, x.dtype.name) for name, x in batch.items()} == {
        "image": ((256, 224, 224, 3), "uint8"),
        "label": ((256,), "int32"),
        "example_mask": ((256,), "bool"),
        "original_size": ((256, 2), "int32"),
    }
    assert batch["image"].sharding.shard_shape(batch["image"].shape) == (32, 224, 224, 3)


GIB = 2**30


@pytest.fixture
def linear(monkeypatch):
    """A compiler by which a step takes 1 GiB and an eighth more for each image of a chip, of which there are 4."""
    tried = []

    def compile_step(config, devices):
        each = config.batch_size // 4
        tried.append(config.batch_size)
        if each > 200:
            raise OutOfMemoryError
        message = Collective("all-reduce", 51_114_064, 4)
        # XLA counts a loop's body once.
        flops, accessed = (fixed + slope * each / config.accumulate for fixed, slope in ((1e9, 24e9), (3e9, 0.4e9)))
        traffic = 2_000_000_000 + 200_000_000 * each
        temporary = GIB // 2 + each * GIB // 8
        return Cost(config.batch_size, flops, accessed, traffic, GIB // 2, 0, temporary, 0, (message,), 1.0)

    monkeypatch.setattr(plans, "compile_step", compile_step)
    return tried


def make(batch_size, accumulate=1, **options):
    config = imagenet.get_config("resnet50")
    config.batch_size, config.accumulate = batch_size, accumulate
    chip = CHIPS["v5e"]
    return make_plan(config, jax.devices()[:4], "v5e:2x2", (2, 2), 1, chip, chip.hbm_bytes, **options)


def test_a_step_that_fits_and_the_largest_that_does(linear):
    plan = make(256, verify=True)
    assert linear == [256, 128, 4 * 118]  # (15.75 - 1) * 8
    assert (plan.fits, plan.largest_batch, plan.verified) == (True, 472, True)
    times = plan.roofline
    assert times.compute == pytest.approx((1e9 + 64 * 24e9) / 197e12)
    assert times.memory == pytest.approx((2e9 + 64 * 0.2e9) / 819e9)
    assert times.interconnect == pytest.approx(2 * 51_114_064 * 3 / 4 / 100e9)
    assert (times.bound, plan.images_per_second) == ("memory", pytest.approx(256 / times.memory))
    steps = training.make_program(imagenet.get_config("resnet50")).total_steps
    assert plan.days == pytest.approx(steps * times.memory / 86400)
    assert "should fit; compiled: it does\n" in report(plan)


def test_a_step_that_does_not_fit_is_halved(linear):
    plan = make(4 * 500)
    # More than the compiler takes, twice; more than the chip has; and two for the line.
    assert linear == [2000, 1000, 500, 248, 124]
    assert (plan.fits, plan.cost.batch_size, plan.largest_batch) == (False, 248, 472)
    assert "the batch of 2000 does not fit" in report(plan)


def test_accumulation_counts_what_a_loop_does_as_often_as_it_runs(linear):
    plan = make(256, accumulate=4)
    assert plan.flops == pytest.approx(1e9 + 24e9 * 64)
    assert plan.accessed == pytest.approx(3e9 + 0.4e9 * 64)
    assert plan.traffic == pytest.approx(2e9 + 0.2e9 * 64)
    assert plan.largest_batch % 16 == 0


def test_one_compilation_where_the_largest_is_not_asked_for(linear):
    plan = make(256, largest=False)
    assert linear == [256]
    assert plan.largest_batch is None
    assert plan.json()["largest_batch_size"] is None


def test_not_even_one_image_fits(monkeypatch):
    def never(config, devices):
        raise OutOfMemoryError

    monkeypatch.setattr(plans, "compile_step", never)
    with pytest.raises(UserError, match="not even 1 examples a chip fit v5e:2x2; try another topology or model"):
        make(16)


def test_the_table_shows_where_more_chips_stop_paying():
    def at(topology, shape, batch_size):
        message = Collective("all-reduce", 512, shape[0] * shape[1], count=100)
        read = 0.4e9 * batch_size / (shape[0] * shape[1])
        cost = Cost(batch_size, 0.0, read, int(read), 0, 0, 0, 0, (message,), 1.0)
        chip = CHIPS["v5e"]
        return Plan(topology, shape, 1, chip, chip.hbm_bytes, batch_size, True, cost, None, 1, 1000)

    plans = [at("v5e:2x4", (2, 4), 256), at("v5e:8x8", (8, 8), 256), at("v5e:16x16", (16, 16), 256)]
    lines = table(plans).splitlines()
    assert lines[0].split() == ["topology", "chips", "batch", "fits", "step", "ms", "bound", "images/s", "of", "linear",
                                "days"]  # fmt: skip
    first, second, third = (line.split() for line in lines[1:4])
    assert (first[5], first[7]) == ("memory", "100%")
    assert second[5] == third[5] == "interconnect"
    assert float(third[4]) == pytest.approx(100 * 2 * 16e-3, rel=1e-3)  # 16 hops there and back
    assert lines[4] == "Beyond v5e:8x8 a further chip gives less than half of what the first ones do."


def test_a_fault_ends_in_one_line():
    message = "v5e comes in no slice 3x3; there are 1x1, 2x2, 2x4, 4x4, 4x8, 8x8, 8x16, 16x16"
    assert run(CONFIG, "--topology=v5e:3x3") == (2, "", f"error: {message}\n")
    code, out, err = run(CONFIG, "--topology=")
    assert (code, out) == (2, "")
    assert err.startswith("error: --topology is missing; it is pods")


def test_replicas_are_not_planned(digits_config):
    config = digits_config()
    config.parallel = "pmap"
    with pytest.raises(UserError, match=r"parallel=pmap cannot be planned; give --config\.parallel=jit"):
        compile_step(config)


def test_topologies_that_cannot_be_planned(monkeypatch):
    with pytest.raises(UserError, match="no compiler for h100 works without one; give a TPU"):
        read_topologies(["h100:2x8"])
    for texts in (["local:2x4"], ["local", "v5e:2x2"]):
        with pytest.raises(UserError, match="--topology=local is all devices of this machine, and stands alone"):
            read_topologies(texts)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'the compiler of TPUs is not installed; pip install -e "\.\[tpu\]" brings it'):
        read_topologies(["v5e:2x2"])


@pytest.mark.slow
def test_a_tpus_own_compiler():
    """A ResNet at 32 pixels: FLOPs, messages and memory of a slice, and of two slices."""
    pytest.importorskip("libtpu")
    config = ["--config=experiments/configs/cifar10.py:resnet20_cifar", "--batch_per_chip=128"]
    code, stdout, stderr = run(*config, "--topology=v5e:2x2,2xv5e:2x2")
    assert (code, stderr) == (0, "")
    one, two = json.loads(stdout.splitlines()[-1])["topologies"]
    macs = analysis.tabulate(models.create("resnet20_cifar"), (32, 32, 3)).macs
    # Three passes, of which the first layer lacks one; two FLOPs for each multiply-add.
    assert one["flops_per_chip"] == pytest.approx(3 * 2 * macs * 128, rel=0.1)
    # The gradient in bfloat16, which is the network's, and the norms' statistics.
    for plan in (one, two):
        assert plan["collective_bytes"] == pytest.approx(2 * 270_000, rel=0.2)
        assert plan["fits"]
        assert 0 < plan["hbm_traffic_per_chip"] <= plan["bytes_per_chip"]
    assert (one["chips"], two["chips"]) == (4, 8)
