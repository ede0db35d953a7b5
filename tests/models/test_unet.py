"""U-Net against the numbers of its figure 1, and against a network written out by hand."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from cnn_research import models
from cnn_research.analysis import tabulate
from cnn_research.errors import UserError
from cnn_research.layers.taps import record
from cnn_research.models.unet import UNet, fitting_sizes, output_size

TINY = dict(depth=2, features=4, num_classes=3, dropout_rate=0.0)


def shapes(module, *shape):
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    return jax.eval_shape(partial(module.init, train=False), jax.random.key(0), images)


def result(module, *shape, train=False):
    """Returns the shapes of the logits and of what training leaves elsewhere."""
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    variables = shapes(module, *shape)
    rngs = {"dropout": jax.random.key(0)}
    apply = partial(module.apply, train=train, mutable=["auxiliary", "batch_stats"], rngs=rngs)
    logits, updated = jax.eval_shape(apply, variables, images)
    return logits.shape, updated


def random_variables(module, images):
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, 0.3, leaf.shape), leaf.dtype), shapes(module, *images.shape)
    )


def normal(*shape):
    return jax.random.normal(jax.random.key(7), shape)


def applied(module, variables, images, **passed):
    """Returns what the network returns, and what each layer gives; compiled at once, sooner than layer by layer."""
    run = jax.jit(lambda variables, images: record(lambda: module.apply(variables, images, **passed)))
    return run(variables, images)


def parameters(module, *shape):
    return sum(leaf.size for leaf in jax.tree.leaves(shapes(module, *shape)["params"]))


@pytest.mark.parametrize(
    ("fields", "channels", "count"),
    [
        ({}, 1, 31_030_658),
        # With a bias in the up-convolutions and the head, as everywhere.
        ({"padding": "same", "norm": "batch"}, 3, 31_037_698),
        ({"up": "bilinear"}, 1, 31_030_658),
        ({"up": "unpool"}, 1, 31_030_658),
        # The first convolution after an up-convolution then takes half as many channels.
        ({"skip": "add"}, 1, 31_030_658 - 9 * sum(features**2 for features in (64, 128, 256, 512))),
    ],
)
def test_counts(fields, channels, count):
    assert parameters(models.create("unet", **fields), 1, 572, 572, channels) == count


def test_the_sizes_of_figure_1():
    rows = {row.name: row.output_shape for row in tabulate(models.create("unet"), (572, 572, 1)).rows}
    sizes = {
        **dict(conv1_1=570, conv1_2=568, conv2_1=282, conv2_2=280, conv3_1=138, conv3_2=136, conv4_1=66, conv4_2=64),
        **dict(conv5_1=30, conv5_2=28, upconv4=56, conv4_3=54, conv4_4=52, upconv3=104, conv3_3=102, conv3_4=100),
        **dict(upconv2=200, conv2_3=198, conv2_4=196, upconv1=392, conv1_3=390, conv1_4=388, head=388),
        **dict(pool1=284, pool2=140, pool3=68, pool4=32),
    }
    assert {name: rows[name][0] for name in sizes} == sizes
    channels = {name: rows[name][2] for name in ("conv1_2", "conv5_2", "upconv4", "conv4_4", "conv1_4", "head")}
    assert channels == dict(conv1_2=64, conv5_2=1024, upconv4=512, conv4_4=512, conv1_4=64, head=2)
    assert "dropout4" in rows
    assert "dropout5" in rows


def convolved(x, layer, padding="VALID", strides=(1, 1)):
    y = lax.conv_general_dilated(x, layer["kernel"], strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return y + layer["bias"]


def by_hand(params, x, padding):
    """U-Net with two poolings, its skips cropped where the convolutions are valid."""

    def pair(x, level, first):
        for index in (first, first + 1):
            x = jnp.maximum(convolved(x, params[f"conv{level}_{index}"], padding.upper()), 0)
        return x

    def up(x, level):
        layer, (batch, height, width, _) = params[f"upconv{level}"], x.shape
        stamps = jnp.einsum("bhwc,ijcf->bhiwjf", x, layer["kernel"])
        return stamps.reshape(batch, 2 * height, 2 * width, -1) + layer["bias"]

    def pool(x):
        x = x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2]
        return x.reshape(len(x), x.shape[1] // 2, 2, x.shape[2] // 2, 2, -1).max((2, 4))

    skips = [pair(x, 1, 1)]
    skips.append(pair(pool(skips[0]), 2, 1))
    x = pair(pool(skips[1]), 3, 1)
    for level in (2, 1):
        x, skip = up(x, level), skips[level - 1]
        if padding == "valid":
            top, left = ((skip.shape[axis] - x.shape[axis]) // 2 for axis in (1, 2))
            skip = skip[:, top : top + x.shape[1], left : left + x.shape[2]]
        else:
            ends = [(0, skip.shape[axis] - x.shape[axis]) for axis in (1, 2)]
            x = jnp.pad(x, ((0, 0), *ends, (0, 0)), mode="edge")
        x = pair(jnp.concatenate([skip, x], axis=-1), level, 3)
    return convolved(x, params["head"])


@pytest.mark.parametrize(("padding", "size"), [("valid", (44, 48)), ("same", (19, 22))])
def test_against_a_network_by_hand(padding, size):
    module, images = UNet(padding=padding, **TINY), normal(2, *size, 2)
    variables = random_variables(module, images)
    logits, _ = applied(module, variables, images, train=False)
    expected = jax.jit(partial(by_hand, padding=padding))(variables["params"], images)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_a_tile_is_labelled_as_the_whole_image():
    """With valid convolutions nothing else than the tile is seen; its place is a multiple of the coarsest cells."""
    module, images = UNet(**TINY), normal(1, 64, 56, 1)
    variables = random_variables(module, images)
    whole, _ = applied(module, variables, images, train=False)
    tile, _ = applied(module, variables, images[:, 8:56, 4:48], train=False)
    margin = (64 - whole.shape[1]) // 2
    assert tile.shape[1:3] == (48 - 2 * margin, 44 - 2 * margin)
    expected = whole[:, 8 : 8 + tile.shape[1], 4 : 4 + tile.shape[2]]
    np.testing.assert_allclose(tile, expected, atol=1e-5 * np.abs(whole).max())


def test_output_size():
    assert output_size(572) == 388
    assert [size for size in range(560, 600) if output_size(size)] == [572, 588]
    assert [output_size(size, depth=1) for size in (17, 18, 20)] == [0, 2, 4]


@settings(max_examples=30, deadline=None)
@given(depth=st.integers(1, 5), size=st.integers(1, 700))
def test_the_nearest_sizes_that_fit(depth, size):
    fitting = [each for each in range(1, 1100) if output_size(each, depth)]
    below, above = [each for each in fitting if each <= size][-1:], [each for each in fitting if each >= size][:1]
    assert fitting_sizes(size, depth) == tuple(sorted({*below, *above}))


def test_exactly_the_sizes_that_fit_are_taken():
    module = UNet(**TINY)
    variables = shapes(module, 1, 44, 44, 1)
    for size in range(20, 60):
        images = jax.ShapeDtypeStruct((1, size, 44, 1), jnp.float32)
        if expected := output_size(size, depth=2):
            logits = jax.eval_shape(partial(module.apply, train=False), variables, images)
            assert logits.shape == (1, expected, output_size(44, depth=2), 3)
        else:
            with pytest.raises(UserError, match=f"instead of {size} it takes"):
                jax.eval_shape(partial(module.apply, train=False), variables, images)


def test_a_size_that_does_not_fit_is_refused_in_one_line():
    with pytest.raises(UserError, match="images of 576x572; instead of 576 it takes 572 or 588, with") as fault:
        shapes(models.create("unet"), 1, 576, 572, 1)
    assert "\n" not in str(fault.value)
    with pytest.raises(UserError, match="instead of 100 it takes 188,"):
        shapes(models.create("unet"), 1, 100, 100, 1)
    with pytest.raises(UserError, match="at least 16x16, not 15x99"):
        shapes(models.create("unet", padding="same"), 1, 15, 99, 1)


@pytest.mark.parametrize("up", ["bilinear", "transposed", "unpool"])
@pytest.mark.parametrize("size", [(16, 16), (17, 31), (33, 50)])
def test_same_convolutions_label_every_pixel(up, size):
    assert result(UNet(padding="same", up=up, width=1 / 32), 2, *size, 3)[0] == (2, *size, 2)


@pytest.mark.parametrize("up", ["bilinear", "unpool"])
def test_the_other_steps_up_have_the_papers_sizes(up):
    assert result(models.create("unet", up=up), 1, 572, 572, 1)[0] == (1, 388, 388, 2)


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_unpooling_is_by_the_switches_of_its_level(padding):
    """In the crop, too: values stand where the largest of their windows are."""
    module, images = UNet(padding=padding, up="unpool", **TINY), normal(1, 44, 44, 1)
    variables = random_variables(module, images)
    _, outputs = applied(module, variables, images, train=False)
    for level in (1, 2):
        up, maps = (np.asarray(outputs[name]) for name in (f"unpool{level}", f"conv{level}_2_activation"))
        margin = (maps.shape[1] - up.shape[1]) // 2
        maps = maps[:, margin : margin + up.shape[1], margin : margin + up.shape[2]]
        windows, values = (
            each.reshape(1, up.shape[1] // 2, 2, up.shape[2] // 2, 2, -1).transpose(0, 1, 3, 5, 2, 4).reshape(-1, 4)
            for each in (maps, up)
        )
        switches = windows.argmax(1)
        assert (np.delete(values.ravel(), 4 * np.arange(len(values)) + switches) == 0).all()
        np.testing.assert_array_equal(values.sum(1), values[np.arange(len(values)), switches])


@pytest.mark.parametrize(("padding", "size"), [("valid", 92), ("same", 51)])
def test_auxiliary_classifiers_are_for_training_and_have_the_logits_size(padding, size):
    weights = (0.2, 0.4)
    module = UNet(padding=padding, depth=3, features=2, num_classes=3, auxiliary_weights=weights)
    assert {"auxiliary_3", "auxiliary_2"} <= shapes(module, 1, size, size, 1)["params"].keys()
    shape, evaluated = result(module, 1, size, size, 1)
    assert not evaluated
    shape, updated = result(module, 1, size, size, 1, train=True)
    heads = updated["auxiliary"]
    assert {name: head["logits"].shape for name, head in heads.items()} == dict.fromkeys(
        ("auxiliary_3", "auxiliary_2"), shape
    )


def test_auxiliary_logits_lie_where_the_networks_do():
    """Each cell's logits are found in the middle of its pixels, in the pixels that the network labels."""
    module = UNet(**TINY, auxiliary_weights=(0.25,))
    images = normal(1, 44, 44, 1)
    variables = random_variables(module, images)
    (logits, updated), outputs = applied(module, variables, images, train=True, mutable=["auxiliary"])
    head = updated["auxiliary"]["auxiliary_2"]
    assert head["weight"] == 0.25
    # The two convolutions of the last level take two pixels, one of the cells, from each end.
    cells = outputs["auxiliary_2/head"][:, 1:-1, 1:-1]
    middle = jax.image.resize(cells, head["logits"].shape, "bilinear")
    inside = np.s_[:, 1:-1, 1:-1]
    np.testing.assert_allclose(head["logits"][inside], middle[inside], rtol=1e-4, atol=1e-4)
    assert logits.shape == head["logits"].shape


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"up": "unpool", "pool": "avg"}, "leaves no switches; use pool='max', or up='bilinear'"),
        ({"padding": "smae"}, "did you mean 'same'"),
        ({"skip": "cat"}, "skip='cat' is not known"),
        ({"up": "transpose"}, "did you mean 'transposed'"),
        ({"depth": 0}, "depth=0 is out of range"),
        ({"features": 0}, "features=0 is out of range"),
        ({"auxiliary_weights": (1.0,)}, "there must be 3 numbers"),
        ({"padding_mode": "reflect"}, "does nothing with padding='valid'"),
    ],
)
def test_faults_of_fields(fields, message):
    with pytest.raises(UserError, match=message):
        UNet(**fields)
