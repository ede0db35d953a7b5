import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from cnn_research.training import make_program
from cnn_research.training.postmortem import first_nonfinite


class Net(nn.Module):
    """Two layers; `fault` says where a value that is not finite comes from."""

    fault: str = ""

    @nn.compact
    def __call__(self, images, train):
        x = images.reshape(len(images), -1)
        x = nn.Dense(4, name="first")(x)
        if self.fault == "output":
            x = Blow(name="blow")(x)
        if self.fault == "gradient":  # the derivative of a root is infinite at zero
            x = Root(name="root")(Zero(name="zero")(x))
        x = nn.Dense(10, name="second")(x)
        return Blow(name="late")(x) if self.fault == "output" else x


class Blow(nn.Module):
    def __call__(self, x):
        return x / 0


class Zero(nn.Module):
    def __call__(self, x):
        return x * 0


class Root(nn.Module):
    def __call__(self, x):
        return jnp.sqrt(jnp.abs(x))


@pytest.fixture
def examine(digits_config):
    config = digits_config()
    config.data.num_examples = 100
    program = make_program(config)
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (8, 32, 32, 1)).astype(np.uint8),
        "label": rng.integers(0, 10, 8).astype(np.int32),
        "example_mask": np.ones(8, bool),
    }

    def run(fault, spoil=lambda params: params):
        program_of_net = dataclasses.replace(program, model=Net(fault))
        variables = jax.jit(program_of_net.model.init, static_argnames="train")(
            jax.random.key(0), jnp.zeros((1, 32, 32, 1)), train=False
        )
        state = program_of_net.init_state({"params": spoil(variables["params"])})
        return first_nonfinite(program_of_net, state, batch)

    return run


def test_first_output_counts_from_the_input(examine):
    assert examine("output") == {"kind": "output", "layer": "blow"}


def test_first_gradient_counts_from_the_loss(examine):
    assert examine("gradient") == {"kind": "gradient", "layer": "zero"}


def test_parameter_that_was_spoilt_before(examine):
    def spoil(params):
        return params | {"second": params["second"] | {"kernel": params["second"]["kernel"].at[0, 0].set(jnp.nan)}}

    assert examine("", spoil) == {"kind": "parameter", "layer": "second/kernel"}


def test_gradients_whose_norm_alone_overflows(examine):
    def spoil(params):
        return jax.tree.map(lambda x: x * 1e15, params)

    assert examine("", spoil) == {"kind": "gradient norm", "layer": ""}
