"""Stages of training: what learns in each, what begins anew, and that a run may stop at any of their borders."""

import shutil

import jax
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from cnn_research import analysis, training
from cnn_research.errors import UserError
from cnn_research.training.checkpoints import Checkpoints
from cnn_research.training.program import make_program
from cnn_research.training.together import check_alike
from cnn_research.training.writers import read_records

NETWORK = dict(
    num_classes=5,
    body="vgg11",
    strides=(4,),
    width=1 / 32,
    norm="batch",
    anchor_sizes=(8.0, 16.0),
    anchor_ratios=(1.0,),
    candidates=(16, 16),
    proposals=(8, 8),
    region_pool="align",
    region_size=2,
    hidden=(64,),
    dropout_rate=0.0,
    kernel_init="he_normal",
)
PARTS = ("body", "detector", "rpn")


@pytest.fixture(scope="module")
def config():
    """Two steps in each of the four stages, the first of which has a learning rate of 0."""
    config = training.default_config("faster_rcnn", **NETWORK)
    config.data.update(name="shapes/32x24_train32_test6", image_size=(32, 32), resize="pad", max_objects=4)
    config.update(duration="8", batch_size=8, eval_batch_size=6, eval_every="2", checkpoint_every="1", keep_last=20)
    config.update(tensorboard=False)
    config.optimizer.update(name="nesterov", learning_rate=0.05, schedule="constant", warmup="1", weight_decay=0.01)
    config.loss.update(training="alternating", stage_shares=(1.0, 1.0, 1.0, 1.0), regions_drawn=8, anchors_drawn=16)
    return config


def train(config, workdir, devices=1):
    return training.train(config, workdir, jax.devices()[:devices])


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """A run that nothing disturbed: its directory and its result."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, train(config, workdir)


@pytest.fixture(scope="module")
def states(whole, config):
    """What each checkpoint holds: `variables` and `twin`, from that of step 1 on."""
    program = make_program(training.config.load(whole[0]))
    items = {"variables": program.abstract_variables, "twin": program.abstract_state.twin}
    sharding = jax.tree.map(lambda _: SingleDeviceSharding(jax.devices()[0]), items)
    with Checkpoints(whole[0], read_only=True) as checkpoints:
        assert checkpoints.steps == list(range(1, 9))
        loaded = [jax.device_get(checkpoints._try(step, items, sharding)[0]) for step in range(1, 9)]
    first = jax.device_get(program.init_variables())
    return program, [{"variables": first, "twin": of_part(program, first, "body")}, *loaded]


def of_part(program, variables, part):
    """Returns the layers of a part of the network."""
    return {
        name: {layer: leaves for layer, leaves in tree.items() if program.model.part(layer) == part}
        for name, tree in variables.items()
    }


def equal(first, second):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    return jax.tree.all(jax.tree.map(np.array_equal, first, second))


def test_parts_are_all_of_the_network(states):
    program, (first, *_) = states
    parts = {part: of_part(program, first["variables"], part) for part in PARTS}
    assert parts["rpn"]["params"].keys() == {"rpn"}
    assert parts["detector"]["params"].keys() == {"fc6", "head", "box"}
    convolutions = ("conv1_1", "conv2_1", "conv3_1", "conv3_2")
    assert parts["body"]["params"].keys() == {*convolutions, *(f"{layer}_norm" for layer in convolutions)}


@pytest.mark.parametrize(
    ("stage", "learn"), [(0, {"body", "rpn"}), (1, {"body", "detector"}), (2, {"rpn"}), (3, {"detector"})]
)
def test_what_learns_in_a_stage(states, stage, learn):
    """In its second step; all the rest, statistics of norms among it, is the same to the last bit."""
    program, held = states
    before, after = (held[2 * stage + done]["variables"] for done in (1, 2))
    for part in PARTS:
        old, new = (of_part(program, variables, part) for variables in (before, after))
        assert equal(old, new) == (part not in learn), part
        if part in learn:
            changed = jax.tree.map(lambda x, y: bool((x != y).any()), old, new)
            assert jax.tree.all(changed), changed
    assert equal(held[2 * stage + 1]["twin"], held[2 * stage + 2]["twin"])


def test_stages_begin_with_their_own_warmup(states):
    """Nothing learns in their first steps, where the rate is 0; so the second body's beginning is that of the first."""
    program, held = states
    params = [state["variables"]["params"] for state in held]
    assert equal(params[0], params[1])
    beginning, learnt = (of_part(program, held[step]["variables"], "body") for step in (0, 2))
    assert not equal(beginning["params"], learnt["params"])
    assert equal(of_part(program, held[3]["variables"], "body")["params"], beginning["params"])
    for part in ("detector", "rpn"):
        assert equal(*(of_part(program, held[step]["variables"], part)["params"] for step in (2, 3))), part
    assert equal(params[4], params[5])
    assert equal(params[6], params[7])
    # The twin is the beginning, and from the exchange on the first body.
    assert equal(held[2]["twin"], beginning)
    assert equal(held[3]["twin"], learnt)
    assert equal(held[8]["twin"], learnt)


def test_metrics_are_of_the_terms_that_learn(whole):
    records = [record for record in read_records(whole[0] / "metrics.jsonl") if "train/loss" in record]
    assert [record["step"] for record in records] == list(range(1, 9))
    for record in records:
        of_proposals = record["step"] in (1, 2, 5, 6)
        assert ("train/rpn_class" in record) == ("train/rpn_box" in record) == of_proposals
        assert ("train/class" in record) == ("train/region_accuracy" in record) == (not of_proposals)
        assert 0 <= record["train/proposal_recall"] <= 1


@pytest.mark.parametrize("step", [2, 3, *(pytest.param(step, marks=pytest.mark.slow) for step in (4, 6))])
def test_a_run_goes_on_from_any_step(whole, config, tmp_path, step):
    """As if it had been killed there, at a stage's border or within a stage; on the same device the bits are equal."""
    workdir, result = whole
    shutil.copytree(workdir, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    for later in range(step + 1, 9):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / str(later))
    again = train(config, tmp_path / "run")
    variables = [analysis.load_run(folder).variables for folder in (workdir, tmp_path / "run")]
    assert equal(*map(jax.device_get, variables))
    assert again["test/ap50"] == result["test/ap50"]


@pytest.mark.slow
@pytest.mark.parametrize(("parallel", "shard_state"), [("jit", "all"), ("pmap", "off")])
def test_on_several_devices(states, whole, config, tmp_path, parallel, shard_state):
    """Replicas draw other regions than the whole batch; the stages are the same."""
    program, held = states
    other = config.copy_and_resolve_references()
    other.update(parallel=parallel, shard_state=shard_state)
    train(other, tmp_path, devices=2)
    found = jax.device_get(analysis.load_run(tmp_path).variables)
    if parallel == "jit":
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), found, held[8]["variables"])
    third = jax.device_get(analysis.load_run(tmp_path, 5).variables)
    assert equal(*(of_part(program, variables, "body") for variables in (third, found)))
    assert not equal(*(of_part(program, variables, "detector") for variables in (third, found)))


def test_two_bodies_are_evaluated_and_not_restored(whole, config, states):
    """At the second stage's end, its detector is measured on what the first body and its layers propose."""
    workdir, _ = whole
    program, held = states
    for step in (3, 4):
        with pytest.raises(UserError, match=rf"step {step} in .* is of two bodies, .* steps \[1, 2, 5, 6, 7, 8\]"):
            analysis.load_run(workdir, step)
    with Checkpoints(workdir, metric="test/ap50", read_only=True) as checkpoints:
        assert checkpoints.best in (2, 6, 8)
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)

    @jax.jit
    def found(variables, twin, images):
        """Returns the best scores by hand, what is found with the twin, and what without."""
        first = {name: tree | twin[name] for name, tree in variables.items()}
        regions = program.model.apply(first, images, train=False).regions
        logits = program.model.apply(variables, images, train=False, regions=regions).classified.logits
        batch = {"image": images}
        both = program.task.predict(program.model, variables | {"twin": twin}, batch)
        return jax.nn.softmax(logits)[..., 1:].max((1, 2)), both, program.task.predict(program.model, variables, batch)

    best, both, alone = found(held[4]["variables"], held[4]["twin"], images)
    np.testing.assert_allclose(both["scores"][:, 0], best, rtol=1e-5)
    assert not np.array_equal(both["boxes"], alone["boxes"])


def test_at_a_steps_program(config):
    config = config.copy_and_resolve_references()
    config.loss.stage_shares = (2.0, 1.0, 2.0, 1.0)
    config.update(duration="60")
    config.data.num_examples = 32
    program = make_program(config)
    assert [part.start for part in program.parts] == [0, 20, 30, 50]
    assert [program.at(step).start for step in (0, 19, 20, 29, 49, 59)] == [0, 0, 20, 20, 30, 50]
    assert [step for step in range(61) if program.sees_twins(step)] == list(range(21, 31))
    assert [float(program.at(step).schedule(step)) for step in (20, 21)] == pytest.approx([0.0, 0.05])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: config.loss.update(training="alternate"), "did you mean 'alternating'"),
        (lambda config: config.loss.update(stage_shares=(1.0, 1.0)), "are no four numbers above 0"),
        (lambda config: config.update(duration="3"), "duration='3', 3 steps, leaves a stage of training none"),
        (lambda config: config.update(ema=0.9), "ema=0.9 averages over steps that are alike"),
        (
            lambda config: (
                config.model.update(anchor_sizes=(), anchor_ratios=(0.5, 1.0, 2.0)),
                config.model.update(candidates=(12_000, 6000), proposals=(2000, 300)),
                config.data.update(max_proposals=4),
            ),
            "needs a network that proposes regions",
        ),
    ],
)
def test_faults(config, change, message):
    config = config.copy_and_resolve_references()
    config.data.num_examples = 32
    change(config)
    with pytest.raises(UserError, match=message):
        make_program(config)


def test_runs_of_one_program_have_no_stages(config):
    other = config.copy_and_resolve_references()
    other.seed = 1
    with pytest.raises(UserError, match=r"loss\.training=joint only"):
        check_alike([config, other])
