"""Gradients, and other ways back, against closed forms and the switches of `ops.pooling`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from cnn_research.analysis.attribution import attribute, neuron
from cnn_research.analysis.attribution.gradients import with_backward
from cnn_research.layers import Activation, Conv, Pool
from cnn_research.ops.convolution import convolve_transposed
from cnn_research.ops.pooling import max_pool_with_switches, unpool


class Net(nn.Module):
    """Two convolutions, a pooling between them, and a head."""

    activation: str = "relu"
    pool: str = "max"

    @nn.compact
    def __call__(self, images, train):
        x = Activation(self.activation, name="activation1")(Conv(4, 3, padding="same", name="conv1")(images))
        x = Pool(self.pool, 2, 2, name="pool1")(x)
        x = Activation(self.activation, name="activation2")(Conv(5, 3, padding="same", name="conv2")(x))
        return nn.Dense(3, name="head")(x.reshape(len(x), -1))


NET = Net()
IMAGES = jax.random.normal(jax.random.key(0), (2, 8, 8, 2))
VARIABLES = NET.init(jax.random.key(1), IMAGES, False)
POSITIVE = jax.tree.map(jnp.abs, VARIABLES)


def test_deconvnet_is_what_the_paper_draws():
    """Zeiler & Fergus, figure 1: rectify, filter with the transposed kernel, unpool by the switches; and again."""
    channel, params = 3, VARIABLES["params"]

    @jax.jit
    def both():
        conv1 = Conv(4, 3, padding="same").apply({"params": params["conv1"]}, IMAGES)
        pooled, switches = max_pool_with_switches(jax.nn.relu(conv1), 2, 2)
        conv2 = Conv(5, 3, padding="same").apply({"params": params["conv2"]}, pooled)
        of_channel = conv2[..., channel]
        strongest = (of_channel == of_channel.max((1, 2), keepdims=True)).astype(float)
        back = jnp.zeros_like(conv2).at[..., channel].set(strongest)
        back = convolve_transposed(jax.nn.relu(back), turned(params["conv2"]["kernel"]), 1, 1)
        back = jax.nn.relu(unpool(back, switches, IMAGES.shape[1:3], window=2))
        back = convolve_transposed(back, turned(params["conv1"]["kernel"]), 1, 1)
        return back, attribute("deconvnet", NET, VARIABLES, IMAGES, neuron("activation2", channel))

    expected, maps = both()
    assert abs(expected).max() > 0
    np.testing.assert_allclose(maps, expected, rtol=1e-5, atol=1e-7)


def turned(kernel):
    """The kernel of the transposed convolution: inputs and outputs change places."""
    return jnp.swapaxes(kernel, 2, 3)


def test_guided_backprop_passes_what_is_positive_on_both_ways():
    """Springenberg et al., figure 1, step by step; deconvnet does not ask for the way forwards."""
    params = VARIABLES["params"]
    conv1, pull_conv1 = jax.vjp(lambda x: Conv(4, 3, padding="same").apply({"params": params["conv1"]}, x), IMAGES)
    pooled, switches = max_pool_with_switches(jax.nn.relu(conv1), 2, 2)
    conv2, pull_conv2 = jax.vjp(lambda x: Conv(5, 3, padding="same").apply({"params": params["conv2"]}, x), pooled)
    back = jnp.broadcast_to(params["head"]["kernel"][:, 2].reshape(1, 4, 4, 5), conv2.shape)
    back = jnp.where((conv2 > 0) & (back > 0), back, 0)
    back = unpool(pull_conv2(back)[0], switches, IMAGES.shape[1:3], window=2)
    expected = pull_conv1(jnp.where((conv1 > 0) & (back > 0), back, 0))[0]
    guided = attribute("guided_backprop", NET, VARIABLES, IMAGES, 2)
    np.testing.assert_allclose(guided, expected, rtol=1e-4, atol=1e-6)
    assert abs(guided - attribute("deconvnet", NET, VARIABLES, IMAGES, 2)).max() > 1e-3


def test_guided_backprop_deconvnet_and_the_gradient_agree_where_all_is_positive():
    images = jnp.abs(IMAGES)
    maps = {
        method: attribute(method, NET, POSITIVE, images, 0) for method in ("saliency", "guided_backprop", "deconvnet")
    }
    assert maps["saliency"].max() > 0
    np.testing.assert_array_equal(maps["guided_backprop"], maps["deconvnet"])
    np.testing.assert_array_equal(maps["guided_backprop"], maps["saliency"])


def test_other_ways_back_compute_the_same_forwards():
    logits = NET.apply(VARIABLES, IMAGES, False)
    for rule in (lambda function, pull, back: back, lambda function, pull, back: pull(back)[0]):
        other = with_backward(NET, rule)
        np.testing.assert_array_equal(other.apply(VARIABLES, IMAGES, False), logits)
    same = jax.grad(lambda images: other.apply(VARIABLES, images, False)[:, 1].sum())(IMAGES)
    np.testing.assert_allclose(abs(same), attribute("saliency", NET, VARIABLES, IMAGES, 1), rtol=1e-6)


@pytest.mark.parametrize("baseline", [0.0, -1.5])
def test_integrated_gradients_add_up_to_the_difference(baseline):
    """Completeness, Sundararajan et al., proposition 1; of the smooth network to many digits."""
    net = Net("softplus", pool="avg")
    maps = attribute("integrated_gradients", net, VARIABLES, IMAGES, 1, baseline=baseline, steps=64)
    apart = net.apply(VARIABLES, IMAGES, False) - net.apply(VARIABLES, jnp.full_like(IMAGES, baseline), False)
    np.testing.assert_allclose(maps.sum((1, 2, 3)), apart[:, 1], rtol=1e-3)


def test_where_the_network_is_linear_the_gradient_is_its_weights():
    class Linear(nn.Module):
        @nn.compact
        def __call__(self, images, train):
            return nn.Dense(3, name="head")(images.reshape(len(images), -1))

    net = Linear()
    variables = net.init(jax.random.key(0), IMAGES, False)
    weights = np.asarray(variables["params"]["head"]["kernel"])[:, [2, 0]].T.reshape(IMAGES.shape)
    labels = jnp.array([2, 0])
    for method, expected in {
        "saliency": abs(weights),
        "input_x_gradient": IMAGES * weights,
        "integrated_gradients": IMAGES * weights,
        "smoothgrad": weights,
    }.items():
        maps = attribute(method, net, variables, IMAGES, labels)
        np.testing.assert_allclose(maps, expected, rtol=1e-4, atol=1e-6, err_msg=method)


def test_smoothgrad_is_the_mean_over_noise_of_the_images_own_scale():
    """Against its definition, sample by sample; an image ten times as bright gets ten times the noise."""
    key, images = jax.random.key(5), jnp.stack([IMAGES[0], 10 * IMAGES[1]])
    maps = attribute("smoothgrad", NET, VARIABLES, images, 1, noise=0.2, samples=3, rng=key)
    spans = np.asarray([np.ptp(image) for image in images]).reshape(2, 1, 1, 1)
    noisy = [images + 0.2 * spans * jax.random.normal(each, images.shape) for each in jax.random.split(key, 3)]
    gradients = [jax.grad(lambda x: NET.apply(VARIABLES, x, False)[:, 1].sum())(each) for each in noisy]
    np.testing.assert_allclose(maps, sum(gradients) / 3, rtol=1e-3, atol=1e-6)
    still = attribute("smoothgrad", NET, VARIABLES, IMAGES, 1, noise=0.0, samples=2)
    np.testing.assert_allclose(abs(still), attribute("saliency", NET, VARIABLES, IMAGES, 1), rtol=1e-4, atol=1e-6)
