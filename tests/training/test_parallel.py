import jax
import numpy as np
import pytest

from cnn_research.data.order import Shuffled
from cnn_research.errors import UserError
from cnn_research.training import make_program
from cnn_research.training.evaluation import Evaluator, open_split
from cnn_research.training.feed import make_feed
from cnn_research.training.parallel import make_parallel

STEPS = 20


def train(config, kind, devices=(), shard_state="off"):
    """Trains for a few steps; returns the losses and the state."""
    source = open_split(config, "train")
    config.data.num_examples = len(source)
    program = make_program(config)
    parallel = make_parallel(kind, devices, shard_state)
    feed = make_feed(source, Shuffled(len(source), config.batch_size, config.seed), config.data, parallel)
    layout = parallel.layout(program.abstract_state)
    state = parallel.spread(jax.jit(program.init_state, out_shardings=layout)(program.init_variables()))
    step = parallel.compile(program.train_step(parallel.axis_name), layout)
    losses = []
    for batch in feed(0, STEPS):
        state, metrics = step(state, batch, feed.data)
        losses.append(np.ravel(jax.device_get(metrics["loss"]))[0])
    whole = jax.tree.map(lambda x: x.sharding.is_fully_replicated, parallel.collect(state))
    assert kind == "pmap" or whole == jax.tree.map(lambda sharding: sharding.is_fully_replicated, layout)
    return np.array(losses), jax.device_get(parallel.collect(state))


@pytest.fixture(scope="module")
def config(digits_config):
    config = digits_config(norm="batch")
    config.duration = str(STEPS)
    config.augmentation.update(pad_crop=2, flip=True, cutout=4, mixup=0.3, cutmix=1.0)
    return config


@pytest.fixture(scope="module")
def one_device(config):
    return train(config, "jit", jax.devices()[:1])


@pytest.mark.parametrize(
    ("kind", "resident"), [("jit", "on"), ("pmap", "on"), pytest.param("pmap", "off", marks=pytest.mark.slow)]
)
def test_losses_do_not_depend_on_devices(config, one_device, kind, resident):
    """Eight devices, with batch norm and augmentation, as `jit` on one device computes them."""
    config.data.resident = resident
    losses, state = train(config, kind)
    assert losses.std() > 0.01  # the batches differ
    np.testing.assert_allclose(losses, one_device[0], atol=1e-5)
    assert int(state.step) == STEPS
    for ours, theirs in zip(*(jax.tree.leaves(each.batch_stats) for each in (state, one_device[1])), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("shard_state", ["optimizer", "all"])
def test_state_that_is_cut_over_devices_gives_the_same(config, one_device, shard_state):
    config = config.copy_and_resolve_references()
    losses, state = train(config, "jit", shard_state=shard_state)
    np.testing.assert_allclose(losses, one_device[0], atol=1e-5)
    for ours, theirs in zip(*(jax.tree.leaves(each.params) for each in (state, one_device[1])), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_layout_cuts_the_longest_axis_that_divides(digits_config):
    config = digits_config()
    config.data.num_examples, config.ema = 1437, 0.9
    state = make_program(config).abstract_state
    found = {
        kind: make_parallel("jit", shard_state=kind).layout(state).params["F6"]["kernel"].spec
        for kind in ("off", "optimizer", "all")
    }
    assert state.params["F6"]["kernel"].shape == (120, 84)
    assert found == {"off": jax.P(), "optimizer": jax.P(), "all": jax.P("devices")}
    layout = make_parallel("jit", shard_state="optimizer").layout(state)
    moments = {sharding.spec for sharding in jax.tree.leaves(layout.opt_state)}
    assert moments == {jax.P(), jax.P("devices"), jax.P(None, None, None, "devices")}
    assert all(sharding.is_fully_replicated for sharding in jax.tree.leaves((layout.average, layout.step)))
    with pytest.raises(UserError, match="shard_state=all needs parallel=jit"):
        make_parallel("pmap", shard_state="all")


def test_a_seed_gives_bit_equal_parameters(config, one_device):
    again = train(config, "jit", jax.devices()[:1])[1].params
    assert jax.tree.all(jax.tree.map(np.array_equal, one_device[1].params, again))
    other = config.copy_and_resolve_references()
    other.seed = 1
    params = train(other, "jit", jax.devices()[:1])[1].params
    assert not jax.tree.all(jax.tree.map(np.array_equal, again, params))


def test_batch_statistics_of_groups_are_the_same_under_jit_and_pmap(config, one_device):
    config = config.copy_and_resolve_references()
    config.model.bn_group = 2
    losses, state = train(config, "jit")
    mapped_losses, mapped = train(config, "pmap")
    np.testing.assert_allclose(losses, mapped_losses, atol=1e-5)
    for ours, theirs in zip(*(jax.tree.leaves(each.batch_stats) for each in (state, mapped)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)
    assert np.abs(losses - one_device[0]).max() > 1e-3


def test_dropout_draws_differ_between_replicas(digits_config):
    config = digits_config(dropout_rate=0.5)
    config.duration = str(STEPS)
    mapped, _ = train(config, "pmap")
    assert np.isfinite(mapped).all()
    assert np.abs(train(config, "jit")[0] - mapped).max() > 1e-4


def test_batch_that_does_not_divide():
    with pytest.raises(UserError, match="batch_size=12 does not divide among 8 devices; 8 or 16 does"):
        make_parallel("jit").block(12)
    with pytest.raises(UserError, match="8 devices; 8 does"):
        make_parallel("pmap").block(3)
    with pytest.raises(UserError, match="batch_size=16 is 2 for each of 8 devices, which do not divide into accumul"):
        make_parallel("jit").block(16, accumulate=4)
    assert make_parallel("jit").block(16, accumulate=2) == slice(0, 16)


@pytest.mark.parametrize("kind", ["jit", "pmap"])
def test_collect_undoes_spread(kind):
    parallel = make_parallel(kind)
    tree = parallel.replicate({"kernel": np.arange(6.0).reshape(2, 3), "rng": jax.random.key(3), "step": np.int32(7)})
    back = parallel.collect(parallel.spread(tree))
    np.testing.assert_array_equal(back["kernel"], tree["kernel"])
    np.testing.assert_array_equal(jax.random.key_data(back["rng"]), jax.random.key_data(tree["rng"]))
    assert back["kernel"].sharding == tree["kernel"].sharding


def test_evaluation_counts_every_example_once(digits_config):
    """Whatever the batch size and the number of devices."""
    counts = set()
    for devices, size, resident in [(1, 360, "on"), (8, 360, "on"), (1, 50, "off"), (8, 50, "on"), (8, 999, "off")]:
        config = digits_config()
        config.eval_batch_size, config.data.resident, config.data.num_examples = size, resident, 1437
        program = make_program(config)
        parallel = make_parallel("jit", jax.devices()[:devices])
        source = open_split(config, "test")
        evaluator = Evaluator(program.model, program.task, program.preprocessing, source, config, parallel)
        values = evaluator(parallel.replicate(program.init_variables()))
        assert values["examples"] == 360
        counts.add((values["accuracy"], values["top5_accuracy"]))
    assert len(counts) == 1
