"""Taps: outputs by the layers' names, and gradients at them."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from cnn_research.layers import taps


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="second")(jnp.tanh(nn.Dense(4, name="first")(x)))


class Net(nn.Module):
    """A block within a network, and a layer that is called twice."""

    @nn.compact
    def __call__(self, x):
        shared = nn.Dense(3, name="shared")
        x = Block(name="block")(x)
        return shared(jnp.tanh(shared(x)))


class Halves(nn.Module):
    """Returns two arrays."""

    @nn.compact
    def __call__(self, x):
        return jnp.split(nn.Dense(4, name="dense")(x), 2, axis=-1)


NET = Net()
X = jax.random.normal(jax.random.key(0), (2, 5))
VARIABLES = NET.init(jax.random.key(1), X)
PARAMS = jax.tree.map(np.asarray, VARIABLES["params"])


def dense(name, x):
    layer = PARAMS["block"][name] if name in PARAMS["block"] else PARAMS[name]
    return x @ layer["kernel"] + layer["bias"]


def test_outputs_have_their_layers_names_in_the_order_in_which_they_are_finished():
    result, outputs = taps.record(lambda: NET.apply(VARIABLES, X))
    assert list(outputs) == ["block/first", "block/second", "block", "shared", "shared#2", ""]
    first = dense("first", X)
    second = dense("second", np.tanh(first))
    expected = [first, second, second, dense("shared", second)]
    expected += [dense("shared", np.tanh(expected[-1]))] * 2
    for output, value in zip(outputs.values(), expected, strict=True):
        np.testing.assert_allclose(output, value, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(result, outputs[""])


def test_recording_changes_nothing():
    np.testing.assert_array_equal(taps.record(lambda: NET.apply(VARIABLES, X))[0], NET.apply(VARIABLES, X))


def test_other_results_are_passed_on_and_not_recorded():
    variables = Halves().init(jax.random.key(0), X)
    result, outputs = taps.record(lambda: Halves().apply(variables, X))
    assert list(outputs) == ["dense"]
    np.testing.assert_array_equal(jnp.concatenate(result, axis=-1), outputs["dense"])


def test_a_tap_is_added_to_the_output_of_one_call():
    taps_given = {"shared": jnp.ones((2, 3))}
    result, outputs = taps.record(lambda: NET.apply(VARIABLES, X), taps_given)
    _, untouched = taps.record(lambda: NET.apply(VARIABLES, X))
    np.testing.assert_allclose(outputs["shared"], untouched["shared"] + 1, rtol=1e-6)
    np.testing.assert_allclose(result, dense("shared", np.tanh(outputs["shared"])), rtol=1e-4, atol=1e-6)


def test_the_gradient_at_a_tap_is_the_one_at_the_output():
    _, outputs = taps.record(lambda: NET.apply(VARIABLES, X))
    weights = np.arange(1.0, 7).reshape(2, 3)

    @jax.jit
    @jax.grad
    def gradients(zeros):
        result, _ = taps.record(lambda: NET.apply(VARIABLES, X), zeros)
        return (weights * result).sum()

    found = gradients(jax.tree.map(jnp.zeros_like, outputs))
    # The chain rule by hand, from the output back.
    kernel = {name: (PARAMS["block"] | PARAMS)[name]["kernel"] for name in ("second", "shared")}
    expected = {"": weights, "shared#2": weights}
    expected["shared"] = weights @ kernel["shared"].T * (1 - np.tanh(outputs["shared"]) ** 2)
    expected["block"] = expected["block/second"] = expected["shared"] @ kernel["shared"].T
    expected["block/first"] = expected["block"] @ kernel["second"].T * (1 - np.tanh(outputs["block/first"]) ** 2)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
