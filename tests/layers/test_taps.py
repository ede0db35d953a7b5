"""Taps: outputs by the layers' names, and gradients at them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from cnn_research.errors import UserError
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


class Classifier(nn.Module):
    """A network whose last layer decides on the size of its input."""

    @nn.compact
    def __call__(self, x):
        x = Block(name="block")(x)
        x = nn.relu(nn.Dense(3, name="last")(x))
        return nn.Dense(2, name="head")(Scale(name="scale")(x).reshape(1, -1))


class Scale(nn.Module):
    """A layer without parameters."""

    def __call__(self, x):
        return 2 * x


class Sum(nn.Module):
    """A network on the layers of another one, whose parameters stand beside its own."""

    @nn.compact
    def __call__(self, x):
        body = Classifier()
        nn.share_scope(self, body)
        first, last = taps.intermediates(body, ["block/first", "scale"], x)
        return nn.Dense(1, name="score")(last) + first.sum()


def test_a_network_runs_as_far_as_its_layers_are_asked_for():
    variables = Sum().init(jax.random.key(0), X)
    assert variables["params"].keys() == {"block", "last", "score"}
    result, outputs = taps.record(lambda: Sum().apply(variables, X))
    assert "head" not in outputs
    np.testing.assert_allclose(result, outputs["score"] + outputs["block/first"].sum(), rtol=1e-5)
    params = variables["params"] | {"head": {"kernel": np.ones((6, 2), np.float32), "bias": np.zeros(2, np.float32)}}
    _, whole = taps.record(lambda: Classifier().apply({"params": params}, X))
    for name in ("block/first", "scale"):
        np.testing.assert_array_equal(outputs[name], whole[name])


def test_what_is_added_to_a_layer_of_the_body_is_seen_after_it():
    """Also in the last one, which the network flattens."""
    variables = Sum().init(jax.random.key(0), X)
    for name, shape in (("block/first", (2, 4)), ("scale", (2, 3))):
        tapped, outputs = taps.record(lambda: Sum().apply(variables, X), {name: jnp.ones(shape)})
        expected = outputs["score"] + outputs["block/first"].sum()
        np.testing.assert_allclose(tapped, expected, rtol=1e-5)
        kernel, bias = (np.asarray(variables["params"]["score"][each]) for each in ("kernel", "bias"))
        np.testing.assert_allclose(outputs["score"], outputs["scale"] @ kernel + bias, rtol=1e-4)
        assert not np.allclose(tapped, Sum().apply(variables, X))


@pytest.mark.parametrize("layers", [["block", "lst"], ["body"]])
def test_layers_that_a_network_does_not_have(layers):
    class Wrong(nn.Module):
        @nn.compact
        def __call__(self, x):
            return taps.intermediates(Classifier(name="body"), layers, x)

    with pytest.raises(UserError, match="Classifier has no layers"):
        Wrong().init(jax.random.key(0), X)
