"""Schedules and optimizers against their formulas, and which parameters decay or stay as they are."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnn_research.errors import UserError
from cnn_research.training.config import default_config
from cnn_research.training.optimizers import OPTIMIZERS, make_optimizer, make_schedule, matches, path_name

PARAMS = {
    "conv1": {"kernel": np.random.default_rng(0).normal(size=(3, 3, 2, 4)).astype(np.float32), "bias": np.ones(4)},
    "norm1": {"scale": np.full(4, 2.0), "bias": np.full(4, 0.5)},
    "head": {"kernel": np.random.default_rng(1).normal(size=(6, 5)).astype(np.float32), "bias": np.full(5, -1.0)},
}
PARAMS = jax.tree.map(lambda x: np.asarray(x, np.float32), PARAMS)
ZEROS = jax.tree.map(np.zeros_like, PARAMS)
GRADIENTS = jax.tree.map(lambda x: np.cos(3 * x), PARAMS)
RATE = 0.1


def options(**fields):
    config = default_config("lenet5").optimizer
    config.update(fields)
    return config


def make(name, rate=RATE, **fields):
    return make_optimizer(options(name=name, **fields), optax.constant_schedule(rate))


def steps(optimizer, gradients, params=PARAMS, count=1):
    """Returns the parameters after each of some steps."""
    update = jax.jit(optimizer.update)
    state, history = optimizer.init(params), []
    for _ in range(count):
        updates, state = update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        history.append(params)
    return history


def decays(path):
    return path[-1].key == "kernel"


def each(function, *trees):
    """Maps a function of whether a leaf decays, and of the leaf."""
    return jax.tree_util.tree_map_with_path(lambda path, *leaves: function(decays(path), *leaves), *trees)


def assert_close(tree, expected, rtol=1e-4, atol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), tree, expected)


def shape_of(schedule, peak, warmup, total, final, factor, milestones, step):
    """The schedules as they are usually written down."""
    if step < warmup:
        return peak * step / warmup
    progress = min((step - warmup) / max(total - warmup, 1), 1)
    return {
        "constant": peak,
        "cosine": peak * (final + (1 - final) * (1 + np.cos(np.pi * progress)) / 2),
        "linear": peak * (1 + (final - 1) * progress),
        "step": peak * factor ** sum(step >= at for at in milestones),
    }[schedule]


@settings(deadline=None, max_examples=30)
@given(
    st.sampled_from(["constant", "cosine", "linear", "step"]),
    st.integers(0, 60),
    st.floats(0, 1),
    st.lists(st.integers(0, 120), max_size=3),
    st.integers(0, 100),
)
def test_schedules_are_their_formulas(schedule, warmup, final, milestones, step):
    config = options(schedule=schedule, learning_rate=0.4, warmup=str(warmup), final=final, factor=0.5)
    config.milestones = tuple(map(str, milestones))
    rate = make_schedule(config, total_steps=100, steps_per_epoch=10.0)(jnp.array(step))
    expected = shape_of(schedule, 0.4, warmup, 100, final, 0.5, milestones, step)
    np.testing.assert_allclose(rate, expected, rtol=1e-4, atol=1e-7)


def test_a_schedules_durations_may_be_epochs_and_shares():
    config = options(schedule="step", learning_rate=1.0, warmup="1ep", milestones=("50%", "7.5ep"), factor=0.1)
    schedule = make_schedule(config, total_steps=100, steps_per_epoch=10.0)
    rates = [float(schedule(step)) for step in (0, 5, 10, 49, 50, 74, 75, 99)]
    np.testing.assert_allclose(rates, [0, 0.5, 1, 1, 0.1, 0.1, 0.01, 0.01], rtol=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"schedule": "cosin"}, "optimizer.schedule='cosin' is unknown; did you mean 'cosine'"),
        ({"learning_rate": 0.0}, "optimizer.learning_rate=0.0 must be above 0"),
        ({"warmup": "long"}, "optimizer.warmup='long' is no duration"),
        ({"schedule": "step", "milestones": ("50%", "late")}, "optimizer.milestones='late' is no duration"),
    ],
)
def test_a_schedule_that_is_none_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        make_schedule(options(**fields), 100, 10.0)


def test_a_path_name_is_the_address_in_the_tree():
    names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(PARAMS)]
    assert names == ["conv1/bias", "conv1/kernel", "head/bias", "head/kernel", "norm1/bias", "norm1/scale"]
    assert path_name(jax.tree_util.tree_leaves_with_path(({"a": [1, 2]},))[1][0]) == "0/a/1"


@pytest.mark.parametrize(
    ("regex", "found"),
    [
        ("", []),
        ("kernel", ["conv1/kernel", "head/kernel"]),
        ("^conv", ["conv1/bias", "conv1/kernel"]),
        ("(^|/)scale$|head", ["head/bias", "head/kernel", "norm1/scale"]),
        ("onv1/k", ["conv1/kernel"]),
    ],
)
def test_matches_searches_the_paths(regex, found):
    mask = matches(regex, "field")(PARAMS)
    assert [path_name(path) for path, match in jax.tree_util.tree_leaves_with_path(mask) if match] == found


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_optimizer_finds_the_kernel_of_a_convolution(name):
    images = jax.random.normal(jax.random.key(0), (16, 4, 4, 2))
    truth = jax.random.normal(jax.random.key(1), (3, 3, 2, 3))
    convolve = partial(jax.lax.conv_general_dilated, images, window_strides=(1, 1), padding="SAME")
    targets = convolve(truth, dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def loss(params):
        return ((convolve(params["kernel"], dimension_numbers=("NHWC", "HWIO", "NHWC")) - targets) ** 2).mean()

    # LARS moves a layer by a thousandth of its norm for each unit of the rate.
    optimizer = make(name, rate={"lars": 20.0, "lamb": 0.1, "adamw": 0.1}.get(name, 0.05), weight_decay=0.0)

    @jax.jit
    def run(params):
        def step(carry, _):
            params, state = carry
            before, gradients = jax.value_and_grad(loss)(params)
            updates, state = optimizer.update(gradients, state, params)
            return (optax.apply_updates(params, updates), state), before

        return jax.lax.scan(step, (params, optimizer.init(params)), length=100)[1]

    losses = run({"kernel": jnp.full((3, 3, 2, 3), 0.1)})
    assert losses[-1] < 0.1 * losses[0]


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_adds_the_decay_to_the_gradient_and_then_the_momentum(nesterov):
    history = steps(make("nesterov" if nesterov else "sgd", momentum=0.8, weight_decay=0.3), GRADIENTS, count=3)
    expected, velocity = PARAMS, ZEROS
    for params in history:
        gradients = each(lambda decay, g, p: g + 0.3 * decay * p, GRADIENTS, expected)
        velocity = jax.tree.map(lambda v, g: 0.8 * v + g, velocity, gradients)
        moved = jax.tree.map(lambda v, g: g + 0.8 * v, velocity, gradients) if nesterov else velocity
        expected = jax.tree.map(lambda p, m: p - RATE * m, expected, moved)
        assert_close(params, expected)


def test_adamw_decays_apart_from_the_gradient():
    beta1, beta2, epsilon = 0.7, 0.9, 0.01
    fields = dict(beta1=beta1, beta2=beta2, epsilon=epsilon, weight_decay=0.3)
    history = steps(make("adamw", **fields), GRADIENTS, count=3)
    expected, first, second = PARAMS, ZEROS, ZEROS
    for count, params in enumerate(history, start=1):
        first = jax.tree.map(lambda m, g: beta1 * m + (1 - beta1) * g, first, GRADIENTS)
        second = jax.tree.map(lambda v, g: beta2 * v + (1 - beta2) * g**2, second, GRADIENTS)
        unbiased = [jax.tree.map(lambda x, n=1 - b**count: x / n, t) for t, b in ((first, beta1), (second, beta2))]
        direction = jax.tree.map(lambda m, v: m / (np.sqrt(v) + epsilon), *unbiased)
        expected = each(lambda decay, p, d: p - RATE * (d + 0.3 * decay * p), expected, direction)
        assert_close(params, expected)


def test_lars_scales_the_steps_of_layers_by_their_norms():
    (params,) = steps(make("lars", weight_decay=0.3), GRADIENTS)

    def expected(decay, p, g):
        if not decay:
            return p - RATE * g
        g = g + 0.3 * p
        return p - RATE * 0.001 * np.linalg.norm(p) / np.linalg.norm(g) * g

    assert_close(params, each(expected, PARAMS, GRADIENTS))


def test_lamb_makes_the_steps_of_layers_as_long_as_their_norms():
    (params,) = steps(make("lamb", weight_decay=0.3, epsilon=0.01), GRADIENTS)

    def expected(decay, p, g):
        direction = g / (np.abs(g) + 0.01) + 0.3 * decay * p
        return p - RATE * np.linalg.norm(p) / np.linalg.norm(direction) * direction

    assert_close(params, each(expected, PARAMS, GRADIENTS))


def test_muon_makes_the_singular_values_of_a_layer_alike():
    gradients = jax.tree.map(lambda g: g * np.arange(1, g.shape[-1] + 1), GRADIENTS)
    (params,) = steps(make("muon", weight_decay=0.0), gradients)
    updates = jax.tree.map(lambda new, old: (new - old) / RATE, params, PARAMS)
    for layer in ("conv1", "head"):
        outputs = PARAMS[layer]["kernel"].shape[-1]
        before, after = (
            np.linalg.svd(tree[layer]["kernel"].reshape(-1, outputs), compute_uv=False) for tree in (gradients, updates)
        )
        assert before.max() / before.min() > 2
        # Newton-Schulz in five steps ends between about 0.7 and 1.2 (Jordan et al. 2024).
        assert 0.6 < after.min() <= after.max() < 1.3
    # The rest is NAdam's (Dozat 2016): its first step is the sign, and the momentum's part of the next one.
    for layer, leaf in (("conv1", "bias"), ("norm1", "scale"), ("head", "bias")):
        expected = -(1 + 0.9 / 1.9) * np.sign(GRADIENTS[layer][leaf])
        np.testing.assert_allclose(updates[layer][leaf], expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "shrinkage"),
    # LAMB's step is as long as the layer, LARS's a thousandth of it, whatever the decay.
    [("sgd", 0.3), ("nesterov", 0.3 * 1.9), ("adamw", 0.3), ("muon", 0.3), ("lamb", 1.0), ("lars", 0.001)],
)
def test_only_what_the_regex_finds_decays(name, shrinkage):
    regex = "bias|^head"
    (params,) = steps(make(name, weight_decay=0.3, decay=regex), ZEROS)
    mask = matches(regex, "optimizer.decay")(PARAMS)
    assert_close(params, jax.tree.map(lambda match, p: p * (1 - RATE * shrinkage * match), mask, PARAMS))


@pytest.mark.parametrize("name", ["sgd", "lars", "muon"])
def test_what_is_frozen_stays_to_the_last_bit(name):
    params = steps(make(name, freeze="conv1|norm1/scale", weight_decay=0.3), GRADIENTS, count=2)[-1]
    frozen = matches("conv1|norm1/scale", "")(PARAMS)
    same = jax.tree.map(lambda new, old: bool((new == old).all()), params, PARAMS)
    assert same == frozen


def test_the_whole_gradient_is_clipped_before_it_decays():
    norm = optax.tree.norm(GRADIENTS)
    for clip, scale in ((1.0, 1.0 / norm), (float(2 * norm), 1.0)):
        (params,) = steps(make("sgd", momentum=0.0, weight_decay=0.3, clip_norm=clip), GRADIENTS)
        expected = each(lambda decay, p, g, s=scale: p - RATE * (s * g + 0.3 * decay * p), PARAMS, GRADIENTS)
        assert_close(params, expected)


def test_the_rate_follows_the_schedule():
    optimizer = make_optimizer(options(name="sgd", momentum=0.0, weight_decay=0.0), lambda count: 0.1 * (count + 1))
    gradients = jax.tree.map(np.ones_like, PARAMS)
    for count, params in enumerate(steps(optimizer, gradients, count=3), start=1):
        assert_close(params, jax.tree.map(lambda p, n=count: p - 0.1 * n * (n + 1) / 2, PARAMS))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "adam"}, "optimizer.name='adam' is unknown; did you mean 'adamw'"),
        ({"decay": "("}, "optimizer.decay='.' is no regular expression: "),
        ({"freeze": "*"}, "optimizer.freeze='.' is no regular expression: "),
    ],
)
def test_an_optimizer_that_is_none_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        make(**{"name": "sgd"} | fields)


@pytest.mark.parametrize(
    ("field", "value"),
    [("weight_decay", -1e-4), ("clip_norm", -1.0), ("momentum", 1.0), ("beta2", 1.5), ("final", -1.0)],
)
def test_numbers_out_of_range_are_named(field, value):
    config = options(**{field: value})
    with pytest.raises(UserError, match=rf"optimizer\.{field}={value}"):
        make_optimizer(config, make_schedule(config, 100, 10.0))
