"""Receptive fields against what becomes of the image when a row or a column of it is changed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from cnn_research.analysis.receptive_field import INPUT, Window, views
from cnn_research.ops.pooling import avg_pool

SHAPE = (1, 12, 8, 2)  # of the image
KERNEL = np.ones((3, 2, 2, 4), np.float32)


def convolve(x, kernel=KERNEL, **fields):
    fields = {"window_strides": (1, 1), "padding": "VALID"} | fields
    return lax.conv_general_dilated(x, kernel, dimension_numbers=("NHWC", "HWIO", "NHWC"), **fields)


def space_to_depth(x):
    """2x2 pixels become channels: (1, 12, 8, 2) becomes (1, 6, 4, 8)."""
    return x.reshape(1, 6, 2, 4, 2, 2).transpose(0, 1, 3, 2, 4, 5).reshape(1, 6, 4, 8)


@jax.custom_vjp
def custom(x):
    return convolve(x, window_strides=(2, 1))


custom.defvjp(lambda x: (custom(x), None), lambda _, gradient: (gradient,))


def halves(x):
    top, bottom = jnp.split(x, 2, axis=1)
    return jnp.concatenate([top, bottom], axis=1) + jnp.concatenate([bottom, top], axis=1)


# Linear functions of an image with no negative weights.
EXACT = {
    "convolution": lambda x: convolve(x, window_strides=(2, 3), padding=((1, 2), (0, 1)), rhs_dilation=(2, 1)),
    "depthwise": lambda x: convolve(x, KERNEL[:, :, :1, :2], feature_group_count=2),
    "channels first": lambda x: lax.conv_general_dilated(
        x.transpose(0, 3, 2, 1), KERNEL.transpose(3, 2, 1, 0), (3, 2), "VALID"
    ),
    "two": lambda x: convolve(convolve(x, window_strides=(2, 1)), np.ones((2, 3, 4, 1), np.float32)),
    "pooling": lambda x: avg_pool(x, (3, 2), (2, 1), ((0, 1), (1, 0))),
    # Summed over channels, as not every channel sees all that some channel of the map sees.
    "branches": lambda x: jnp.concatenate([convolve(x, padding="SAME"), avg_pool(x, 5, 1, 2), x], axis=-1).sum(-1),
    "shortcut A": lambda x: (
        jnp.pad(x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (0, 2))).sum(-1)
        + convolve(x, window_strides=(2, 2), padding=((1, 1), (0, 0))).sum(-1)
    ),
    "crop": lambda x: lax.pad(x, 0.0, ((0, 0, 0), (-2, -1, 0), (0, 0, 0), (0, 0, 0))) + x[:, :9],
    "shifted sum": lambda x: x[:, 1:] + x[:, :-1],
    "flip": lambda x: convolve(x[:, ::-1], window_strides=(2, 1)) + 0,
    "transposed image": lambda x: x.swapaxes(1, 2)[:, ::3],
    "global": lambda x: x.mean((1, 2)),
    "rows": lambda x: x.sum(2),
    "squeeze and excite": lambda x: x + x.sum((1, 2), keepdims=True) * jnp.ones((1, 12, 8, 1)),
    "flatten and dense": lambda x: x.reshape(1, -1) @ np.ones((192, 3), np.float32),
    "1x1 convolution": lambda x: jnp.einsum("bhwc,cf->bfhw", x, np.ones((2, 5), np.float32)),
    "space to depth": lambda x: space_to_depth(x).sum(-1),
    "convolution as another": lambda x: convolve(space_to_depth(x), np.ones((2, 1, 8, 3), np.float32)),
    "windows": lambda x: jnp.einsum(
        "bhwtc,hwtcf->bhwf",
        jnp.stack([x[:, t : t + 9 : 2, :7] for t in range(3)], 3),
        np.ones((5, 7, 3, 2, 3), np.float32),
    ),
    "halves": lambda x: jnp.concatenate(jnp.split(x, 2, axis=1), axis=1),
    "call": lambda x: jax.jit(lambda y: jax.checkpoint(convolve)(2 * y))(x),
    "custom gradient": custom,
    "condition": lambda x: (
        lax.cond(jnp.ones(()) > 0, lambda y: 1.0 * y, lambda y: avg_pool(y, 3, 1, 1), x)
        + convolve(x, np.ones((3, 3, 2, 2), np.float32), padding="SAME")
    ),
    "constant": lambda x: jnp.ones((1, 3, 3, 1)),
}

# What is told of these may be too much, never too little.
BOUNDED = {
    "halves swapped": halves,
    "transposed convolution": lambda x: lax.conv_transpose(x, np.ones((4, 3, 2, 1), np.float32), (2, 3), "SAME"),
    "resize": lambda x: jnp.repeat(x, 2, axis=1),
    "cumulative sum": lambda x: x.cumsum(1),
    "permutation": lambda x: x[:, np.array([3, 1, 2, 0, 5])],
    "loop": lambda x: lax.fori_loop(0, 2, lambda _, y: avg_pool(y, 3, 1, 1), x),
    "scan": lambda x: lax.scan(lambda carry, row: (carry + row, carry), jnp.zeros((1, 8, 2)), x.swapaxes(0, 1))[1],
    "scatter": lambda x: jnp.zeros(SHAPE).at[:, np.arange(12)[::-1]].set(x),
    "padding": lambda x: jnp.pad(x, ((0, 0), (2, 1), (0, 0), (0, 0)), mode="reflect"),
}


def told(function):
    program = jax.make_jaxpr(lambda _, x: checkpoint_name(function(x), "out"))(0.0, jnp.zeros(SHAPE))
    return views(program, 1)["out"]


def changed(function):
    """Returns for each value of the output which rows and which columns of the image it is made from."""
    _, height, width, _ = SHAPE
    images = np.zeros((height + width, *SHAPE), np.float32)
    images[np.arange(height), :, np.arange(height)] = 1
    images[np.arange(height, height + width), :, :, np.arange(width)] = 1
    outputs = np.asarray(jax.jit(jax.vmap(function))(images))
    depends = np.moveaxis(outputs > np.asarray(function(jnp.zeros(SHAPE))), 0, -1)
    return depends[..., :height], depends[..., height:]


@pytest.mark.parametrize("name", [*EXACT, *BOUNDED])
def test_views_follow_the_image_through_every_operation(name):
    function = (EXACT | BOUNDED)[name]
    for axis, (view, rows) in enumerate(zip(told(function), changed(function), strict=True), start=1):
        whole = 0
        if view is None:
            assert not rows.any()
            continue
        assert len(view.jumps) == rows.ndim - 1
        for place in np.ndindex(rows.shape[:-1]):
            first = view.start + sum(jump * index for jump, index in zip(view.jumps, place, strict=True))
            last = first + view.size - 1
            seen = np.flatnonzero(rows[place])
            if name in BOUNDED:
                assert all(first - 1 < row < last + 1 for row in seen), place
            elif first < 0 or last >= SHAPE[axis]:  # taps that are further apart than a pixel may all miss what is left
                assert all(first <= row <= last for row in seen), place
            else:
                whole += 1
                assert (seen[0], seen[-1]) == (first, last), place
        assert whole or name in BOUNDED


def test_one_axis_at_a_time():
    vertical, horizontal = told(lambda x: convolve(x, window_strides=(2, 1), padding=((1, 0), (0, 0))))
    assert (vertical.start, vertical.size, vertical.jumps) == (-1, 3, (0, 2, 0, 0))
    assert (horizontal.start, horizontal.size, horizontal.jumps) == (0, 2, (0, 0, 1, 0))


def test_a_transposed_convolution_makes_steps_of_less_than_a_pixel():
    vertical, _ = told(lambda x: lax.conv_transpose(x, np.ones((4, 4, 2, 1), np.float32), (2, 2), "SAME"))
    assert vertical.jumps[1] == 0.5
    assert vertical.size == 2  # of four taps every second one falls on a zero


def test_a_window_goes_before_how_the_layer_computes():
    def layer(x):
        x = checkpoint_name(x, INPUT + "layer")
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
        return checkpoint_name(convolve(x, np.ones((3, 3, 2, 2), np.float32), window_strides=(2, 2)), "layer")

    program = jax.make_jaxpr(layer)(jnp.zeros(SHAPE))
    window = Window((3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1))
    assert window.output_sizes((12, 8)) == (6, 4)
    vertical, _ = views(program, 0, {"layer": window})["layer"]
    assert (vertical.start, vertical.size, vertical.jumps) == (-1, 3, (0, 2, 0, 0))
    assert views(program, 0)["layer"][0].size > 3  # where a mirror's pixels come from is all over the image
    assert views(program, 0, {"layer": Window()})["layer"][0].size == 1


def test_only_names_of_outputs_are_told():
    program = jax.make_jaxpr(lambda x: checkpoint_name(2 * checkpoint_name(x, INPUT + "a"), "a"))(jnp.zeros(SHAPE))
    assert list(views(program, 0)) == ["a"]
