"""Attributions by gradients: how each pixel's change would change the score."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Key

from cnn_research.analysis.attribution.targets import Target, evaluate
from cnn_research.errors import UserError
from cnn_research.layers import activation

Images = Float[Array, "batch height width channels"]
Variables = Mapping[str, Any]
Function = Callable[[Array], Array]


def gradient(model: nn.Module, variables: Variables, images: Images, target: Target) -> Images:
    """Returns the gradient of each image's score by its pixels.

    Args:
      model: the network, in which images do not see each other when it evaluates them.
      variables: its parameters, and statistics where it has any.
      images: as the network takes them.
      target: gives the scores.
    """
    return jax.grad(lambda images: evaluate(model, variables, images, target).sum())(images)


def saliency(model: nn.Module, variables: Variables, images: Images, target: Target) -> Images:
    """Returns the size of the gradient. Simonyan, Vedaldi & Zisserman 2013, arXiv:1312.6034, section 3.

    Args:
      model: the network.
      variables: its variables.
      images: as the network takes them.
      target: gives the scores.
    """
    return jnp.abs(gradient(model, variables, images, target))


def input_x_gradient(model: nn.Module, variables: Variables, images: Images, target: Target) -> Images:
    """Returns each pixel times its gradient. Shrikumar, Greenside, Shcherbina & Kundaje 2016, arXiv:1605.01713.

    Args:
      model: the network.
      variables: its variables.
      images: as the network takes them.
      target: gives the scores.
    """
    return images * gradient(model, variables, images, target)


def integrated_gradients(
    model: nn.Module,
    variables: Variables,
    images: Images,
    target: Target,
    baseline: float | Array = 0.0,
    steps: int = 32,
) -> Images:
    """Returns what each pixel adds to the score on the straight way from a baseline. Sundararajan, Taly & Yan 2017.

    arXiv:1703.01365, equation 1, its integral by Gauss and Legendre's rule. Completeness: an image's attributions add
    up to the difference of its score and the baseline's.

    Args:
      model: the network.
      variables: its variables.
      images: as the network takes them.
      target: gives the scores.
      baseline: image without content, or the value of all its pixels, as the network takes them: 0 is the data's mean.
      steps: points on the way.
    """
    points, weights = np.polynomial.legendre.leggauss(steps)
    change = images - baseline

    def add(total: Array, node: Array) -> tuple[Array, None]:
        point, weight = node
        return total + weight * gradient(model, variables, baseline + point * change, target), None

    nodes = jnp.asarray(np.stack([(1 + points) / 2, weights / 2], axis=1), images.dtype)
    total, _ = jax.lax.scan(add, jnp.zeros_like(images), nodes)
    return change * total


def smoothgrad(
    model: nn.Module,
    variables: Variables,
    images: Images,
    target: Target,
    noise: float = 0.15,
    samples: int = 16,
    rng: Key[Array, ""] | None = None,
) -> Images:
    """Returns the mean gradient of noisy copies of each image. Smilkov, Thorat, Kim, Viégas & Wattenberg 2017.

    arXiv:1706.03825, section 3.

    Args:
      model: the network.
      variables: its variables.
      images: as the network takes them.
      target: gives the scores.
      noise: standard deviation of the noise, as a share of the distance between an image's darkest and brightest pixel.
      samples: noisy copies.
      rng: draws the noise; the same for each call unless given.
    """
    deviation = noise * (images.max((1, 2, 3), keepdims=True) - images.min((1, 2, 3), keepdims=True))

    def add(total: Array, key: Array) -> tuple[Array, None]:
        noisy = images + deviation * jax.random.normal(key, images.shape, images.dtype)
        return total + gradient(model, variables, noisy, target), None

    keys = jax.random.split(jax.random.key(0) if rng is None else rng, samples)
    return jax.lax.scan(add, jnp.zeros_like(images), keys)[0] / samples


def guided_backprop(model: nn.Module, variables: Variables, images: Images, target: Target) -> Images:
    """Returns the gradient without what lowers the score at any activation on the way back. Springenberg et al. 2014.

    arXiv:1412.6806, section 3.4: there the gradient passes a ReLU where both it and the ReLU's input are positive.

    Args:
      model: the network.
      variables: its variables.
      images: as the network takes them.
      target: gives the scores.

    Raises:
      UserError: the network's activation is not a field of it.
    """
    guided = with_backward(model, lambda function, pull, back: pull(jax.nn.relu(back))[0])
    return gradient(guided, variables, images, target)


def deconvnet(model: nn.Module, variables: Variables, images: Images, target: Target) -> Images:
    """Returns a neuron's value, projected back to the pixels. Zeiler & Fergus 2014, arXiv:1311.2901, section 2.1.

    Filters are transposed and maxima go back to where the switches say, as in a gradient (see `ops.pooling.unpool`);
    but what comes back to an activation passes that once more, whatever had gone forwards: a ReLU rectifies it. (An
    activation that is not 0 at 0 counts from there.)

    Args:
      model: the network.
      variables: its variables.
      images: as the network takes them.
      target: gives the scores: that of a `neuron`, in the paper.

    Raises:
      UserError: the network's activation is not a field of it.
    """
    mirrored = with_backward(model, lambda function, pull, back: function(back) - function(jnp.zeros_like(back)))
    return gradient(mirrored, variables, images, target)


def with_backward(
    model: nn.Module, rule: Callable[[Function, Callable[[Array], tuple[Array]], Array], Array]
) -> nn.Module:
    """Returns a network that computes the same, but with another way back through its activations.

    Args:
      model: the network.
      rule: takes an activation, its pullback and what comes back to its output, and gives what goes on from its input.

    Raises:
      UserError: the network's activation is not a field of it.
    """
    if not hasattr(model, "activation"):
        raise UserError(f"{type(model).__name__} has no field `activation` whose way back could be another")
    function = activation(model.activation)

    @jax.custom_vjp
    def activated(x: Array) -> Array:
        return function(x)

    activated.defvjp(lambda x: jax.vjp(function, x), lambda pull, back: (rule(function, pull, back),))
    return model.clone(activation=activated)
