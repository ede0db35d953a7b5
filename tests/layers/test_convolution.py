"""`Conv` and `ConvTranspose` against Flax's, `PartialConv` against a dense one with holes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from cnn_research.layers import Conv, ConvTranspose, PartialConv


@pytest.mark.parametrize(
    ("ours", "flaxs"),
    [
        ({"padding": "valid"}, {"padding": "VALID"}),
        ({"padding": 1, "strides": 2, "groups": 2}, {"padding": 1, "strides": 2, "feature_group_count": 2}),
        ({"padding": ((1, 2), (0, 1)), "dilation": 2}, {"padding": ((1, 2), (0, 1)), "kernel_dilation": 2}),
        ({"padding": "same", "padding_mode": "circular"}, {"padding": "CIRCULAR"}),
        ({"padding": "same", "padding_mode": "reflect", "use_bias": False}, {"padding": "REFLECT", "use_bias": False}),
    ],
)
def test_equals_flaxs_with_the_same_parameters(ours, flaxs):
    x = jax.random.normal(jax.random.key(0), (2, 7, 8, 4))
    reference = nn.Conv(6, (3, 3), bias_init=nn.initializers.normal(), **flaxs)
    expected, variables = reference.init_with_output(jax.random.key(1), x)
    module = Conv(6, 3, **ours)
    shapes = jax.eval_shape(module.init, jax.random.key(1), x)
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, variables)
    np.testing.assert_allclose(module.apply(variables, x), expected, rtol=1e-4, atol=1e-5)


def test_transposed_equals_flaxs_with_the_same_parameters():
    x = jax.random.normal(jax.random.key(0), (2, 4, 5, 4))
    reference = nn.ConvTranspose(6, (3, 2), strides=(2, 2), padding="VALID", bias_init=nn.initializers.normal())
    expected, variables = reference.init_with_output(jax.random.key(1), x)
    module = ConvTranspose(6, (3, 2), strides=2)
    shapes = jax.eval_shape(module.init, jax.random.key(1), x)
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, variables)
    # Flax stamps the kernel turned by 180°.
    variables["params"]["kernel"] = variables["params"]["kernel"][::-1, ::-1]
    np.testing.assert_allclose(module.apply(variables, x), expected, rtol=1e-4, atol=1e-5)
    cut = ConvTranspose(6, (3, 2), 2, padding=((1, 0), (0, 1)), output_padding=1, groups=1, use_bias=False)
    bare = {"params": {"kernel": variables["params"]["kernel"]}}
    whole = expected - variables["params"]["bias"]
    y = cut.apply(bare, x)
    np.testing.assert_allclose(y[:, :-1, :], whole[:, 1:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer", [Conv, ConvTranspose])
def test_dtypes_of_computation_and_parameters(layer):
    y, variables = layer(2, 3, dtype="bfloat16").init_with_output(jax.random.key(0), jnp.ones((1, 4, 4, 1)))
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    variables = layer(2, 3, param_dtype="bfloat16").init(jax.random.key(0), jnp.ones((1, 4, 4, 1)))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("bfloat16")}


INPUTS = ((0, 1), (2,), (0, 1, 2))


def test_partial_convolution_stores_its_connections_alone():
    x = jax.random.normal(jax.random.key(0), (1, 6, 6, 3))
    module = PartialConv(INPUTS, 5, bias_init=nn.initializers.normal())
    y, variables = module.init_with_output(jax.random.key(1), x)
    kernel, bias = variables["params"]["kernel"], variables["params"]["bias"]
    assert kernel.shape == (5, 5, 6)

    dense = np.zeros((5, 5, 3, 3), np.float32)
    pairs = [(map_, feature) for feature, maps in enumerate(INPUTS) for map_ in maps]
    for connection, pair in enumerate(pairs):
        dense[:, :, *pair] = kernel[..., connection]
    expected = Conv(3, 5).apply({"params": {"kernel": jnp.asarray(dense), "bias": bias}}, x)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


def test_partial_convolution_starts_each_map_by_its_own_inputs():
    def fan_in(key, shape, dtype):
        return jnp.full(shape, np.prod(shape[:-1]), dtype)

    module = PartialConv(INPUTS, 5, kernel_init=fan_in)
    kernel = module.init(jax.random.key(0), jnp.ones((1, 5, 5, 3)))["params"]["kernel"]
    assert kernel[0, 0].tolist() == [50, 50, 25, 75, 75, 75]
