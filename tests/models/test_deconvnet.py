"""DeconvNet against the paper's table 2, and its way back against its way there."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_research import models
from cnn_research.analysis import tabulate
from cnn_research.errors import UserError
from cnn_research.interop import torch as interop
from cnn_research.layers.taps import record
from cnn_research.models.deconvnet import DeconvNet
from cnn_research.models.vgg import VGG

NARROW = dict(stages=3, width=1 / 16, hidden=(512, 512), num_classes=3)  # for images of 64x64
TINY = dict(configuration="A", stages=2, width=1 / 16, hidden=(64,), hidden_kernel=2, num_classes=3)


def shapes(module, *shape):
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    return jax.eval_shape(partial(module.init, train=False), jax.random.key(0), images)


def logits_shape(module, *shape):
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    return jax.eval_shape(partial(module.apply, train=False), shapes(module, *shape), images).shape


@pytest.mark.parametrize("unpool", ["bilinear", "nearest", "switches"])
def test_count(unpool):
    params = shapes(models.create("deconvnet", unpool=unpool), 1, 224, 224, 3)["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 251_805_653


def test_the_sizes_of_table_2():
    rows = {row.name: row.output_shape for row in tabulate(models.create("deconvnet"), (224, 224, 3)).rows}
    table = {
        **dict(conv1_2=(224, 224, 64), pool1=(112, 112, 64), conv2_2=(112, 112, 128), pool2=(56, 56, 128)),
        **dict(conv3_3=(56, 56, 256), pool3=(28, 28, 256), conv4_3=(28, 28, 512), pool4=(14, 14, 512)),
        **dict(conv5_3=(14, 14, 512), pool5=(7, 7, 512), fc6=(1, 1, 4096), fc7=(1, 1, 4096)),
        **dict(fc6_deconv=(7, 7, 512), unpool5=(14, 14, 512), deconv5_1=(14, 14, 512), deconv5_3=(14, 14, 512)),
        **dict(unpool4=(28, 28, 512), deconv4_1=(28, 28, 512), deconv4_2=(28, 28, 512), deconv4_3=(28, 28, 256)),
        **dict(unpool3=(56, 56, 256), deconv3_1=(56, 56, 256), deconv3_2=(56, 56, 256), deconv3_3=(56, 56, 128)),
        **dict(unpool2=(112, 112, 128), deconv2_1=(112, 112, 128), deconv2_2=(112, 112, 64)),
        **dict(unpool1=(224, 224, 64), deconv1_1=(224, 224, 64), deconv1_2=(224, 224, 64), head=(224, 224, 21)),
    }
    assert {name: rows[name] for name in table} == table
    assert not {"deconv5_4", "deconv2_3", "deconv1_3"} & rows.keys()


def test_the_first_half_is_vgg():
    vgg = shapes(VGG(norm="batch"), 1, 224, 224, 3)["params"]
    params = shapes(models.create("deconvnet"), 1, 224, 224, 3)["params"]
    assert {name: layer for name, layer in vgg.items() if name != "head"}.items() <= params.items()


@pytest.mark.parametrize("unpool", ["bilinear", "nearest", "switches"])
def test_the_way_back(unpool):
    """Each map is as large as the one before its pooling; with switches it has values where the largest were."""
    module = DeconvNet(**TINY, unpool=unpool)
    images = jax.random.normal(jax.random.key(0), (1, 11, 14, 2))

    @jax.jit
    def run(key, images):
        variables = module.init(key, images, train=False)
        return record(lambda: module.apply(variables, images, train=False))

    logits, layers = run(jax.random.key(1), images)
    assert logits.shape == (1, 11, 14, 3)
    for stage, last in ((1, "conv1_1"), (2, "conv2_1")):
        y, maps = np.asarray(layers[f"unpool{stage}"]), np.asarray(layers[f"{last}_activation"])
        small = np.asarray(layers["fc6_deconv_activation" if stage == 2 else "deconv2_1_activation"])
        assert y.shape == maps.shape
        for batch, row, column, channel in np.ndindex(small.shape):
            window = np.s_[batch, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2, channel]
            value = small[batch, row, column, channel]
            if unpool == "switches":
                expected = np.zeros(4)
                expected[maps[window].argmax()] = value
                np.testing.assert_array_equal(y[window].ravel(), expected)
            elif unpool == "nearest":
                np.testing.assert_array_equal(y[window], value)


@pytest.mark.parametrize("unpool", ["bilinear", "nearest", "switches"])
@pytest.mark.parametrize("size", [(64, 64), (57, 71)])
def test_a_narrow_one_labels_every_pixel_of_small_images(unpool, size):
    assert logits_shape(DeconvNet(**NARROW, unpool=unpool), 2, *size, 1) == (2, *size, 3)


def test_without_hidden_layers():
    module = DeconvNet(stages=3, hidden=(), width=1 / 16)
    assert logits_shape(module, 1, 8, 31, 3) == (1, 8, 31, 21)
    assert not any(name.startswith("fc") for name in shapes(module, 1, 8, 31, 3)["params"])


def test_sizes_that_are_too_small():
    with pytest.raises(UserError, match="takes images of at least 224x224, not 224x200") as fault:
        shapes(models.create("deconvnet"), 1, 224, 200, 3)
    assert "\n" not in str(fault.value)


def test_a_vggs_weights_come_from_torchvision():
    fields = dict(num_classes=3, width=1 / 32, hidden=(320, 256), norm="batch")
    rng = np.random.default_rng(0)
    vgg = jax.tree.map(
        lambda leaf: rng.standard_normal(leaf.shape).astype(leaf.dtype), shapes(VGG(**fields), 1, 224, 224, 3)
    )
    module = DeconvNet(**fields)
    converted = interop.convert(module, shapes(module, 1, 224, 224, 3), interop.dump("vgg16", vgg, **fields))
    for path, value in converted.items():
        if not path.startswith("classifier.6."):
            collection, layer, leaf = path.split("/")
            np.testing.assert_array_equal(value, vgg[collection][layer][leaf])
    assert {path.split("/")[1] for path in converted if "/" in path} == vgg["params"].keys() - {"head"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pool": "avg"}, "leaves no switches; use pool='max', or unpool='nearest'"),
        ({"unpool": "switch"}, "did you mean 'switches'"),
        ({"stages": 6}, "stages=6 is out of range; it must be from 1 to 5"),
        ({"configuration": "A-LRN"}, "configuration='A-LRN' is not known"),
        ({"hidden": (4, 0)}, "each layer must have 1 or more units"),
        ({"hidden_kernel": 0}, "hidden_kernel=0 is out of range"),
        ({"hidden": (), "hidden_kernel": 3}, "hidden_kernel=3 does nothing"),
    ],
)
def test_faults_of_fields(fields, message):
    with pytest.raises(UserError, match=message):
        DeconvNet(**fields)
