"""The one interface: every method on one network, by the layers' names, and what it refuses."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from cnn_research import models
from cnn_research.analysis.attribution import METHODS, attribute, class_score, default_layer, neuron
from cnn_research.errors import UserError

RESNET = models.create("resnet20_cifar", stage_sizes=(1, 1, 1), width=0.5, norm="none")
IMAGES = jax.random.normal(jax.random.key(0), (3, 16, 16, 3))
LABELS = jnp.array([1, 7, 4])
VARIABLES = jax.jit(partial(RESNET.init, train=False))(jax.random.key(1), IMAGES)
OTHERS = jax.jit(partial(RESNET.init, train=False))(jax.random.key(2), IMAGES)
COARSE = ("cam", "grad_cam", "grad_cam_pp", "occlusion")


@jax.jit
def everything(variables, images):
    return {method: attribute(method, RESNET, variables, images, LABELS[: len(images)]) for method in METHODS}


def test_every_method_depends_on_the_weights():
    """The sanity check of Adebayo et al. 2018, arXiv:1810.03292: maps of random weights are others."""
    maps, others = everything(VARIABLES, IMAGES), everything(OTHERS, IMAGES)
    for method in METHODS:
        channels = 1 if method in COARSE else 3
        assert maps[method].shape == (3, 16, 16, channels), method
        assert maps[method].std() > 0, method
        correlation = np.corrcoef(maps[method].ravel(), others[method].ravel())[0, 1]
        assert abs(correlation) < 0.7, (method, correlation)


def test_images_do_not_see_each_other():
    maps, alone = everything(VARIABLES, IMAGES), everything(VARIABLES, IMAGES[:1])
    for method in set(METHODS) - {"smoothgrad"}:  # whose noise depends on the batch
        np.testing.assert_allclose(maps[method][:1], alone[method], rtol=1e-3, atol=1e-5, err_msg=method)


@pytest.mark.parametrize(
    ("method", "layer", "target", "message"),
    [
        ("grad_cams", None, 0, "attribution 'grad_cams' is not known; did you mean 'grad_cam'"),
        ("saliency", "stage1", 0, "saliency is of pixels and takes no layer"),
        ("saliency", None, 10, "class 10 is out of range; the network has 10"),
        ("grad_cam", "stage4", 0, "the network has no layer 'stage4'; did you mean 'stage"),
        ("grad_cam", "head", 0, "layer head gives one vector an image and no maps"),
        ("cam", "stage2", 0, "cam is of the layer before the pooling, stage3/block1/activation2, not of stage2"),
        ("cam", None, neuron("stage1", 0), "cam explains the score of a class"),
        ("saliency", None, neuron("stage9", 0), "the network has no layer 'stage9'"),
    ],
)
def test_what_is_wrong_is_said(method, layer, target, message):
    with pytest.raises(UserError, match=message):
        jax.eval_shape(partial(attribute, method, RESNET, layer=layer, target=target), VARIABLES, IMAGES)


def test_networks_without_what_a_method_needs():
    images = jnp.zeros((1, 8, 8, 1))

    def trace(method, name, **fields):
        model = models.create(name, **fields)
        variables = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)
        return jax.eval_shape(partial(attribute, method, model, target=0), variables, images)

    with pytest.raises(UserError, match="no layer of MLP gives maps"):
        trace("grad_cam", "mlp")
    with pytest.raises(UserError, match="cam needs a network that ends with global average pooling"):
        trace("cam", "mlp")
    with pytest.raises(UserError, match="cam needs a network that ends with global average pooling"):
        trace("cam", "resnet20_cifar", global_pool="max")

    class Plain(nn.Module):
        @nn.compact
        def __call__(self, images, train):
            return nn.Dense(2)(images.reshape(len(images), -1))

    model = Plain()
    with pytest.raises(UserError, match="Plain has no field `activation`"):
        attribute("deconvnet", model, model.init(jax.random.key(0), images, False), images, 0)


@pytest.mark.parametrize(
    ("name", "fields", "size", "layer"),
    [
        ("lenet5", {}, 32, "S4_activation"),
        ("vgg11", {}, 64, "pool5"),
        ("googlenet_cifar", {}, 32, "inception_5b"),
        ("nin_cifar", {}, 32, "mlpconv3/cccp2_activation"),
        ("unet", {"padding": "same"}, 32, "conv3_4_activation"),
        ("fcn8s", {"body": "resnet20_cifar", "hidden": (8,), "norm": "batch"}, 32, "fc6_activation"),
    ],
)
def test_class_activation_maps_are_of_the_last_coarse_layer(name, fields, size, layer):
    channels = models.input_shape(name)[2]
    assert default_layer(models.create(name, **fields), (size, size, channels)) == layer


def test_pixels_of_a_class_are_a_target():
    """Of a segmentation: the mean logit of the pixels of a class, and its gradient from what they see alone."""

    class Segmenter(nn.Module):
        @nn.compact
        def __call__(self, images, train):
            return nn.Conv(2, (3, 3), name="head")(images)

    model, images = Segmenter(), jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
    variables = model.init(jax.random.key(1), images, False)
    logits = np.asarray(model.apply(variables, images, False))
    labels = np.array([1, 0])
    scores = class_score(jnp.asarray(labels))(jnp.asarray(logits), {})
    for score, label, of_image in zip(scores, labels, logits, strict=True):
        chosen = of_image[of_image.argmax(-1) == label]
        assert score == pytest.approx(chosen[:, label].mean(), rel=1e-5)
    pixels = np.zeros((2, 8, 8), bool)
    pixels[:, 2, 5] = True
    maps = attribute("saliency", model, variables, images, class_score(1, jnp.asarray(pixels)))
    kernel = variables["params"]["head"]["kernel"][..., 1]
    np.testing.assert_allclose(maps[0, 1:4, 4:7], abs(kernel), rtol=1e-6)
    assert (maps[0] > 0).sum() == 9
    assert not class_score(1)(jnp.asarray(logits - 100 * np.eye(2)[1]), {}).any()  # no pixel is of the class


def test_the_score_of_a_box_is_a_target():
    """Of a detector, which returns several arrays: any function of them."""

    class Detector(nn.Module):
        @nn.compact
        def __call__(self, images, train):
            features = nn.relu(nn.Conv(4, (3, 3), strides=4, name="features")(images))
            boxes, scores = nn.Dense(4, name="boxes")(features), nn.Dense(3, name="scores")(features)
            return {"boxes": boxes.reshape(len(images), -1, 4), "scores": scores.reshape(len(images), -1, 3)}

    model, images = Detector(), jax.random.normal(jax.random.key(0), (2, 16, 16, 1))
    variables = model.init(jax.random.key(1), images, False)

    def box(result, layers):
        return result["scores"][:, 6, 2]  # the cell of row 1 and column 2, which sees the pixels about (5, 9)

    pixels = attribute("saliency", model, variables, images, box)
    rows, columns = np.nonzero(np.asarray(pixels[..., 0]).any(0))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (4, 6, 8, 10)
    maps = attribute("occlusion", model, variables, images, box, window=2, strides=2)
    assert np.asarray(maps[..., 0]).any(0)[4:8, 8:12].any()
    assert not np.asarray(maps[..., 0])[:, :4].any()
    assert attribute("grad_cam_pp", model, variables, images, box, layer="features").shape == (2, 16, 16, 1)


def test_a_neuron_is_a_target():
    values = jnp.arange(2 * 3 * 3 * 2.0).reshape(2, 3, 3, 2)
    layers = {"maps": values, "units": values[:, 0, 0]}
    np.testing.assert_array_equal(neuron("maps", 1)(None, layers), [17, 35])
    np.testing.assert_array_equal(neuron("maps", jnp.array([0, 1]), (1, 2))(None, layers), [10, 29])
    np.testing.assert_array_equal(neuron("units", 1)(None, layers), [1, 19])
