"""Codes: what a layer says of images, and how they lie to each other in the plane."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Shaped

from cnn_research.analysis.attribution.cams import rows_of
from cnn_research.analysis.attribution.targets import layer_output, outputs
from cnn_research.analysis.neurons.batches import in_batches
from cnn_research.errors import UserError, nearest

METHODS = ("pca", "tsne")


def last_code(model: nn.Module, input_shape: tuple[int, ...]) -> str:
    """Returns the layer before the one that gives the logits, or that one where it is alone.

    Args:
      model: the network.
      input_shape: height, width and channels of the images.
    """
    rows = rows_of(model, input_shape)
    return rows[-2:][0].name


def codes(
    model: nn.Module,
    variables: Mapping[str, Any],
    images: Shaped[np.ndarray, "examples height width channels"],
    layer: str,
    batch_size: int = 100,
    prepare: Callable[[Array], Array] = lambda images: images,
) -> Float[np.ndarray, "examples values"]:
    """Returns a layer's output for each image, as a vector.

    Args:
      model: the network.
      variables: its variables.
      images: any number.
      layer: name of the layer.
      batch_size: images at a time.
      prepare: makes of images what the network takes, on the device.

    Raises:
      UserError: the layer is not known.
    """

    @jax.jit
    def of_layer(variables: Any, images: Array) -> Array:
        output = layer_output(outputs(model, variables, prepare(images))[1], layer)
        return output.reshape(len(output), -1)

    return in_batches(lambda part: of_layer(variables, part), images, batch_size)


def embed(
    vectors: Float[np.ndarray, "examples values"], method: str = "tsne", seed: int = 0
) -> Float[np.ndarray, "examples 2"]:
    """Returns places in the plane: neighbours near each other (t-SNE, van der Maaten & Hinton 2008), or most spread.

    Args:
      vectors: three at least.
      method: tsne, or pca, the two directions of the largest variance.
      seed: of t-SNE.

    Raises:
      UserError: the method is not known.
    """
    from sklearn.decomposition import PCA  # here: importing it takes a second
    from sklearn.manifold import TSNE

    if method not in METHODS:
        raise UserError(f"embedding {method!r} is not known; {nearest(method, METHODS)}")
    if method == "pca":
        return PCA(2, random_state=seed).fit_transform(vectors)
    reduced = PCA(min(50, *vectors.shape), random_state=seed).fit_transform(vectors)
    perplexity = min(30.0, (len(vectors) - 1) / 3)
    return TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(reduced)
