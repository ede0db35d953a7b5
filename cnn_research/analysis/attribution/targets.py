"""Targets: the number of which an attribution says where in the image it comes from.

A target is a function of what a network returns and of its layers' outputs by name, and gives one score an image. Any
function is one: the score of one box of a detector is `lambda result, layers: result["scores"][:, box, label]`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Bool, Float, Integer

from cnn_research.errors import UserError, nearest
from cnn_research.layers import taps

Target = Callable[[Any, Mapping[str, Array]], Float[Array, " batch"]]
Labels = int | Integer[Array, " batch"]


def class_score(labels: Labels, pixels: Bool[Array, "batch height width"] | None = None) -> Target:
    """Returns the target that is the logit of a class.

    Where pixels have classes it is the mean logit over some of them (Vinogradova, Dibrov & Myers 2020,
    arXiv:2002.11434).

    Args:
      labels: the class, one for all images or one for each.
      pixels: which count, in a segmentation; unless given those whose likeliest class it is.
    """

    def score(logits: Array, layers: Mapping[str, Array]) -> Float[Array, " batch"]:
        classes = logits.shape[-1]
        if isinstance(labels, int) and not 0 <= labels < classes:
            raise UserError(f"class {labels} is out of range; the network has {classes}")
        wanted = jnp.broadcast_to(jnp.asarray(labels), logits.shape[:1])
        if logits.ndim == 2:
            return jnp.take_along_axis(logits, wanted[:, None], axis=1)[:, 0]
        wanted = wanted[:, None, None]
        counted = lax.stop_gradient(logits).argmax(-1) == wanted if pixels is None else pixels
        of_class = jnp.take_along_axis(logits, wanted[..., None], axis=-1)[..., 0]
        return jnp.where(counted, of_class, 0).sum((1, 2)) / jnp.maximum(counted.sum((1, 2)), 1)

    return score


def neuron(layer: str, channel: int | Integer[Array, " batch"], position: tuple[int, int] | None = None) -> Target:
    """Returns the target that is a value within the network.

    Args:
      layer: name of the layer.
      channel: its channel or unit, one for all images or one for each.
      position: (row, column) in the layer's maps; that of the largest value unless given.
    """

    def score(result: Any, layers: Mapping[str, Array]) -> Float[Array, " batch"]:
        values = layer_output(layers, layer)
        index = jnp.broadcast_to(jnp.asarray(channel), values.shape[:1])
        of_channel = jnp.take_along_axis(values, index.reshape(-1, *(1,) * (values.ndim - 1)), axis=-1)[..., 0]
        if of_channel.ndim == 1:
            return of_channel
        if position is not None:
            return of_channel[:, position[0], position[1]]
        return of_channel.reshape(len(of_channel), -1).max(1)

    return score


def as_target(target: Target | Labels) -> Target:
    """Returns a target: functions are their own, labels mean their class's logit."""
    return target if callable(target) else class_score(target)


def layer_output(layers: Mapping[str, Any], layer: str) -> Any:
    """Returns the output of a layer, or its shape where the network was only traced.

    Args:
      layers: outputs by name, as `taps.record` gives them.
      layer: its name.

    Raises:
      UserError: the network has no such layer.
    """
    if layer not in layers:
        raise UserError(f"the network has no layer {layer!r}; {nearest(layer, layers)}")
    return layers[layer]


def outputs(
    model: nn.Module,
    variables: Mapping[str, Any],
    images: Float[Array, "batch height width channels"],
    added: dict[str, Array] | None = None,
) -> tuple[Any, dict[str, Array]]:
    """Returns what a network says of images, and the outputs of its layers by name.

    Args:
      model: the network.
      variables: its parameters, and statistics where it has any.
      images: as the network takes them.
      added: what to add to layers' outputs, by name; the gradient at a layer is that at a zero which is added to it.
    """
    return taps.record(lambda: model.apply(variables, images, train=False), added)


def evaluate(
    model: nn.Module,
    variables: Mapping[str, Any],
    images: Float[Array, "batch height width channels"],
    target: Target,
) -> Float[Array, " batch"]:
    """Returns the target's score of each image.

    Args:
      model: the network.
      variables: its variables.
      images: as the network takes them.
      target: gives the scores.
    """
    return target(*outputs(model, variables, images))
