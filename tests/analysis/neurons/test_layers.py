"""Which layers are looked at, and kernels as pictures."""

import jax.numpy as jnp
import numpy as np
import pytest

from cnn_research.analysis.neurons import layers
from cnn_research.errors import UserError
from cnn_research.models import create


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("lenet5", (32, 32, 1), ["C1_activation", "S2_activation", "C3_activation", "S4_activation"]),
        ("resnet20_cifar", (32, 32, 3), [f"stage{stage}/block3/activation2" for stage in (1, 2, 3)]),
    ],
)
def test_a_layer_for_each_scale(name, shape, expected):
    assert layers.map_layers(create(name), shape) == expected


def test_a_perceptron_has_no_maps():
    with pytest.raises(UserError, match="no layer of MLP gives maps"):
        layers.map_layers(create("mlp"), (8, 8, 1))


def test_kernels_as_pictures():
    rng = np.random.default_rng(0)
    kernels = {
        "conv": rng.normal(size=(3, 2, 4, 5)),
        "partial": rng.normal(size=(3, 3, 7)),
        "dense": rng.normal(size=(6 * 5 * 2, 8)),
        "head": rng.normal(size=(9, 8)),
    }
    params = {name: {"kernel": jnp.asarray(kernel)} for name, kernel in kernels.items()}
    variables = {"params": {"stage1": {"conv": params.pop("conv")}, **params}}
    pictures = layers.filters(variables, "stage1/conv", (6, 5, 2))
    assert pictures.shape == (5, 4, 3, 2)
    np.testing.assert_allclose(pictures[4, 1], kernels["conv"][:, :, 1, 4], rtol=1e-6)
    pictures = layers.filters(variables, "partial", (6, 5, 2))
    np.testing.assert_allclose(pictures[6, 0], kernels["partial"][:, :, 6], rtol=1e-6)
    pictures = layers.filters(variables, "dense", (6, 5, 2))
    np.testing.assert_allclose(pictures[3, 1], kernels["dense"][:, 3].reshape(6, 5, 2)[..., 1], rtol=1e-6)
    with pytest.raises(UserError, match=r"the kernel of head has the shape \(9, 8\) and is no picture"):
        layers.filters(variables, "head", (6, 5, 2))
    with pytest.raises(UserError, match="layer 'denser' has no kernel; did you mean 'dense'"):
        layers.filters(variables, "denser", (6, 5, 2))


def test_layers_with_kernels_in_the_order_in_which_they_run():
    model = create("lenet5_modern")
    names = ["C1", "C3", "C5", "F6", "output"]
    variables = {"params": {name: {"kernel": 0} for name in reversed(names)} | {"C1_norm": {"scale": 0}}}
    assert layers.kernel_layers(variables, model, (32, 32, 1)) == names
