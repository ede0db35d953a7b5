"""Class activation maps against the analytic ones of a network that ends with global average pooling."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from cnn_research import models
from cnn_research.analysis.attribution import attribute, cams
from cnn_research.analysis.table import Row
from cnn_research.layers import Conv, Pool


class Net(nn.Module):
    """A convolution, global average pooling and a head: grad-CAM's gradients are the head's weights."""

    @nn.compact
    def __call__(self, images, train):
        x = nn.relu(Conv(6, 3, strides=2, padding="same", name="conv")(images))
        x = Conv(5, 1, name="last")(x)
        x = Pool("avg", window=(x.shape[1], x.shape[2]), strides=1, name="head_pool")(x).reshape(len(x), -1)
        return nn.Dense(3, name="head")(x)


NET = Net()
IMAGES = jax.random.normal(jax.random.key(0), (2, 8, 12, 2))
LABELS = np.array([2, 0])
VARIABLES = NET.init(jax.random.key(1), IMAGES, False)
LAST = np.asarray(
    NET.apply(VARIABLES, IMAGES, False, capture_intermediates=True)[1]["intermediates"]["last"]["__call__"][0]
)
WEIGHTS = np.asarray(VARIABLES["params"]["head"]["kernel"])[:, LABELS].T  # [image, channel]


def test_cam_is_the_sum_of_maps_by_the_heads_weights():
    maps = np.asarray(cams.cam(NET, VARIABLES, IMAGES, jnp.asarray(LABELS)))
    np.testing.assert_allclose(maps, np.einsum("bhwc,bc->bhw", LAST, WEIGHTS), rtol=1e-4, atol=1e-6)
    # Its mean is the logit but for the bias, 0 here.
    logits = NET.apply(VARIABLES, IMAGES, False)
    np.testing.assert_allclose(maps.mean((1, 2)), np.asarray(logits)[[0, 1], LABELS], rtol=1e-3, atol=1e-6)


def test_cam_of_maps_that_are_the_logits_is_the_classs_map():
    model = models.create("nin_cifar", num_classes=4, width=0.05)
    images = jax.random.normal(jax.random.key(0), (1, 16, 16, 3))
    variables = jax.jit(partial(model.init, train=False))(jax.random.key(0), images)
    maps = cams.cam(model, variables, images, 1)
    np.testing.assert_allclose(maps.mean((1, 2)), model.apply(variables, images, train=False)[:, 1], rtol=1e-4)


def test_grad_cam_is_the_analytic_cam():
    maps = cams.grad_cam(NET, VARIABLES, IMAGES, lambda logits, _: logits[jnp.arange(2), LABELS])
    analytic = np.einsum("bhwc,bc->bhw", LAST, WEIGHTS)
    np.testing.assert_allclose(maps, np.maximum(analytic, 0) / (4 * 6), rtol=1e-4, atol=1e-6)


def test_grad_cam_pp_is_its_equations():
    """Equations 19 and 10 place by place, in float64; the gradients are the head's weights over the pixels."""
    maps = cams.grad_cam_pp(NET, VARIABLES, IMAGES, lambda logits, _: logits[jnp.arange(2), LABELS])
    for image in range(2):
        total = np.zeros((4, 6))
        for channel in range(5):
            activations, slope = LAST[image, ..., channel].astype(float), WEIGHTS[image, channel] / 24
            weight = 0.0
            for _ in np.ndindex(4, 6):
                weight += slope**2 / (2 * slope**2 + activations.sum() * slope**3) * max(slope, 0)
            total += weight * activations
        np.testing.assert_allclose(maps[image], np.maximum(total, 0), rtol=1e-3, atol=1e-6)


def test_gradients_are_at_the_layer_that_is_asked_for():
    maps, gradients = cams.maps_and_gradients(NET, VARIABLES, IMAGES, lambda logits, _: logits[:, 1], "conv")

    def rest(conv):
        params = VARIABLES["params"]
        last = nn.relu(conv) @ params["last"]["kernel"][0, 0] + params["last"]["bias"]
        return (last.mean((1, 2)) @ params["head"]["kernel"])[:, 1].sum()

    np.testing.assert_allclose(gradients, jax.grad(rest)(maps), rtol=1e-5, atol=1e-8)
    assert maps.min() < 0


def test_a_value_lies_where_its_receptive_field_has_its_middle():
    """LeNet's S4: 5x5 values that see 16x16 pixels each, 4 pixels apart, the first of them from pixel 0 on."""
    row = cams.row_of(cams.layers_of(models.create("lenet5"), (32, 32, 1)), "S4_activation")
    maps = np.random.default_rng(0).random((2, 5, 5)).astype(np.float32)
    image = np.asarray(cams.spread(jnp.asarray(maps), row, 32, 32))
    middles = 7.5 + 4 * np.arange(5)
    for index in range(2):
        columns = np.stack([np.interp(np.arange(32), middles, line) for line in maps[index]])
        expected = np.stack([np.interp(np.arange(32), middles, line) for line in columns.T], axis=1)
        np.testing.assert_allclose(image[index], expected, rtol=1e-5)


def test_maps_without_places_are_spread_evenly():
    maps = jnp.array([[[0.0, 1.0]]])
    line = np.asarray(cams.spread(maps, Row("layer", "Dense"), 1, 8))[0, 0]
    np.testing.assert_allclose(line, [0, 0, 0.125, 0.375, 0.625, 0.875, 1, 1], rtol=1e-6)


@pytest.mark.parametrize(("layer", "row"), [("stage2", "stage2/block1/activation2"), ("conv1", "conv1")])
def test_a_block_lies_where_its_last_layer_does(layer, row):
    table = cams.layers_of(models.create("resnet20_cifar", stage_sizes=(1, 1, 1)), (16, 16, 3))
    assert cams.row_of(table, layer).name == row


@pytest.mark.parametrize(("layer", "even"), [("conv3_4_activation", True), ("conv3_2_activation", False)])
def test_maps_that_were_made_finer_again_lie_evenly(layer, even):
    row = cams.place_of(models.create("unet", padding="same", width=0.1), (32, 32, 1), layer)
    assert (row is None) == even


def test_a_map_is_laid_over_the_image():
    maps = attribute("grad_cam", NET, VARIABLES, IMAGES, 1, layer="last")
    coarse = cams.grad_cam(NET, VARIABLES, IMAGES, lambda logits, _: logits[:, 1], "last")
    np.testing.assert_allclose(maps[:, ::2, ::2, 0], coarse, rtol=1e-5, atol=1e-7)  # strides of 2 from pixel 0 on
