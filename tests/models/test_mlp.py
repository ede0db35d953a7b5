"""The multi-layer perceptron against its paper's numbers and plain matrix products."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_research import models
from cnn_research.errors import UserError
from cnn_research.layers.taps import record


def images(batch=4, height=5, width=6, channels=3):
    return jax.random.normal(jax.random.key(0), (batch, height, width, channels))


def init(module, x):
    return jax.jit(partial(module.init, train=False))(jax.random.key(1), x)


def small(**fields):
    return models.create("mlp", **{"features": (7, 4), **fields})


def test_layers_of_the_paper():
    module, x = models.create("mlp"), jnp.zeros((1, 28, 28, 1))
    params = jax.eval_shape(lambda: module.init(jax.random.key(0), x, train=False))["params"]
    assert {name: layer["kernel"].shape for name, layer in params.items()} == {
        "fc1": (784, 300),
        "fc2": (300, 100),
        "head": (100, 10),
    }
    assert all(layer["bias"].shape == layer["kernel"].shape[1:] for layer in params.values())


def test_logits_are_products_and_squashed_sums():
    module, x = small(), images()
    variables = jax.tree.map(lambda leaf: leaf + 0.01, init(module, x))
    logits, outputs = record(lambda: module.apply(variables, x, train=False))
    params = jax.tree.map(np.asarray, variables["params"])
    expected = np.asarray(x).reshape(4, -1)
    for name in ("fc1", "fc2"):
        expected = 1.7159 * np.tanh(2 / 3 * (expected @ params[name]["kernel"] + params[name]["bias"]))
        np.testing.assert_allclose(outputs[f"{name}_activation"], expected, rtol=1e-4, atol=1e-5)
    expected = expected @ params["head"]["kernel"] + params["head"]["bias"]
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_weights_start_in_the_interval_of_the_paper():
    params = init(small(features=(100,)), images())["params"]
    assert np.abs(params["fc1"]["kernel"]).max() == pytest.approx(2.4 / 90, rel=0.01)
    assert np.abs(params["head"]["kernel"]).max() == pytest.approx(2.4 / 100, rel=0.01)


def test_norms_replace_the_biases_of_hidden_layers():
    variables = jax.eval_shape(lambda: small(norm="batch").init(jax.random.key(0), images(), train=False))
    assert set(variables["params"]["fc1"]) == {"kernel"}
    assert set(variables["params"]["fc1_norm"]) == {"scale", "bias"}
    assert set(variables["params"]["head"]) == {"kernel", "bias"}
    assert set(variables["batch_stats"]) == {"fc1_norm", "fc2_norm"}


def test_width_multiplies_the_hidden_units():
    variables = jax.eval_shape(lambda: small(width=2.0).init(jax.random.key(0), images(), train=False))
    assert [layer["kernel"].shape[1] for layer in variables["params"].values()] == [14, 8, 10]


def test_no_hidden_layer_is_a_linear_classifier():
    module, x = small(features=(), num_classes=3), images()
    variables = init(module, x)
    assert set(variables["params"]) == {"head"}
    expected = np.asarray(x).reshape(4, -1) @ np.asarray(variables["params"]["head"]["kernel"])
    np.testing.assert_allclose(module.apply(variables, x, train=False), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"features": (300, 0)}, "each hidden layer must have 1 or more units"),
        ({"features": (), "activation": "relu"}, r"activation='relu' does nothing with features=\(\)"),
        ({"features": (), "dropout_rate": 0.5}, "dropout_rate=0.5 does nothing"),
        ({"bn_momentum": 0.5}, "does nothing with norm='none'"),
        ({"pool": "max"}, "mlp has no field 'pool'"),
    ],
)
def test_fields_that_do_not_go_together_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        models.create("mlp", **fields)


@pytest.mark.parametrize("fields", [{}, {"norm": "batch", "dropout_rate": 0.2, "dtype": "bfloat16"}])
def test_gradients_reach_every_parameter_and_are_finite(fields):
    module, x = small(features=(40, 40), **fields), images()
    variables = init(module, x)

    def loss(params):
        state = {**variables, "params": params}
        logits, _ = module.apply(state, x, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(2)})
        assert logits.dtype == jnp.float32
        return -jax.nn.log_softmax(logits)[:, 1].mean()

    for path, gradient in jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(loss))(variables["params"])):
        assert np.isfinite(gradient).all(), path
        assert np.any(gradient), path


@pytest.mark.parametrize("fields", [{"norm": "batch"}, {"norm": "group"}, {"dropout_rate": 0.5}])
def test_evaluation_is_independent_of_the_order_of_the_batch(fields):
    module, x = small(**fields), images()
    variables = init(module, x)
    apply = jax.jit(partial(module.apply, train=False))
    order = np.array([2, 0, 3, 1])
    np.testing.assert_allclose(apply(variables, x[order]), apply(variables, x)[order], rtol=1e-5, atol=1e-6)
