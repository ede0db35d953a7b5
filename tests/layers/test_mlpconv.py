"""The mlpconv layer against a perceptron that is given one window at a time."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from cnn_research.layers import Conv, MlpConv, Norm

IMAGES = jnp.asarray(np.random.default_rng(0).standard_normal((2, 6, 7, 3), np.float32))


def random_variables(module):
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(partial(module.init, train=False), jax.random.key(0), IMAGES)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.5, leaf.shape), leaf.dtype), shapes)


def test_is_a_perceptron_of_each_window():
    module = MlpConv((4, 5, 2), kernel_size=3, strides=2, padding="valid")
    variables = random_variables(module)
    y = module.apply(variables, IMAGES, train=False)
    assert y.shape == (2, 2, 3, 2)
    layers = [jax.tree.map(np.asarray, variables["params"][name]) for name in ("conv", "cccp1", "cccp2")]
    for row, column in np.ndindex(2, 3):
        window = np.asarray(IMAGES)[:, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3].reshape(2, -1)
        for layer in layers:
            window = np.maximum(window @ layer["kernel"].reshape(window.shape[1], -1) + layer["bias"], 0)
        np.testing.assert_allclose(y[:, row, column], window, rtol=1e-4, atol=1e-5)


def test_one_number_is_a_convolution_and_its_activation():
    module = MlpConv((4,), kernel_size=5, activation="tanh")
    variables = random_variables(module)
    assert set(variables["params"]) == {"conv"}
    expected = jnp.tanh(Conv(4, 5, padding="same").apply({"params": variables["params"]["conv"]}, IMAGES))
    np.testing.assert_allclose(module.apply(variables, IMAGES, train=False), expected, rtol=1e-5, atol=1e-6)


def test_the_last_activation_can_be_left_out():
    variables = random_variables(MlpConv((4, 3), kernel_size=3))
    active, linear = (
        MlpConv((4, 3), kernel_size=3, activate_last=last).apply(variables, IMAGES, train=False)
        for last in (True, False)
    )
    assert linear.min() < 0
    np.testing.assert_array_equal(active, jnp.maximum(linear, 0))


def test_makers_reach_every_convolution_and_train_every_norm():
    conv = partial(Conv, use_bias=False)
    module = MlpConv((4, 3), kernel_size=3, activation="identity", conv=conv, norm=partial(Norm, "batch"))
    variables = random_variables(module)
    assert {name: set(params) for name, params in variables["params"].items()} == {
        "conv": {"kernel"},
        "conv_norm": {"scale", "bias"},
        "cccp1": {"kernel"},
        "cccp1_norm": {"scale", "bias"},
    }
    y, updated = module.apply(variables, IMAGES, train=True, mutable=["batch_stats"])
    last = variables["params"]["cccp1_norm"]
    np.testing.assert_allclose(y.mean((0, 1, 2)), last["bias"], atol=1e-4)
    np.testing.assert_allclose(y.std((0, 1, 2)), abs(last["scale"]), rtol=1e-3)
    for name in ("conv_norm", "cccp1_norm"):
        before, after = (tree["batch_stats"][name]["mean"] for tree in (variables, updated))
        assert not np.allclose(before, after)
