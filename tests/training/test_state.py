"""The training state."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from cnn_research.training.state import as_variables, create_state, init_variables


class Net(nn.Module):
    norm: bool = True

    @nn.compact
    def __call__(self, images, train):
        x = nn.Dense(3, name="head")(images.reshape(len(images), -1))
        return nn.BatchNorm(use_running_average=not train, name="norm")(x) if self.norm else x


VARIABLES = {
    "params": {"head": {"kernel": jnp.ones((4, 3))}},
    "batch_stats": {"norm": {"mean": jnp.zeros(3), "var": jnp.ones(3)}},
}
OPTIMIZER = optax.sgd(0.1, momentum=0.9)


def test_variables_have_no_empty_collection():
    params, stats = VARIABLES["params"], VARIABLES["batch_stats"]
    assert as_variables(params, stats) == {"params": params, "batch_stats": stats}
    assert as_variables(params, {}) == {"params": params}


@pytest.mark.parametrize("norm", [False, True])
def test_fresh_variables_are_the_modules_own(norm):
    rng = jax.random.key(3)
    found = init_variables(Net(norm), (2, 5, 1), rng)
    expected = Net(norm).init({"params": rng}, jnp.ones((7, 2, 5, 1)), train=False)
    assert found["params"]["head"]["kernel"].shape == (10, 3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, expected)


def test_the_first_state_has_done_nothing_yet():
    state = create_state(VARIABLES, OPTIMIZER, seed=7)
    assert state.step == 0
    assert state.rng == jax.random.key(7)
    assert state.variables == VARIABLES
    assert jax.tree.structure(state.opt_state) == jax.tree.structure(OPTIMIZER.init(VARIABLES["params"]))
    assert state.average == {}
    assert state.evaluated == VARIABLES


def test_a_network_without_statistics_has_none():
    state = create_state({"params": VARIABLES["params"]}, OPTIMIZER, seed=0)
    assert state.batch_stats == {}
    assert state.variables == {"params": VARIABLES["params"]}


def test_the_average_starts_as_a_copy_and_is_what_is_evaluated():
    state = create_state(VARIABLES, OPTIMIZER, seed=0, averaged=True)
    jax.tree.map(np.testing.assert_array_equal, state.average, VARIABLES)
    # A step gives its state's memory away: one buffer may not be there twice.
    pointers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves((state.variables, state.average))]
    assert len(set(pointers)) == len(pointers)
    other = state.replace(average=jax.tree.map(lambda x: x + 1, state.average))
    assert other.evaluated == other.average
