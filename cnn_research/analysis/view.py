"""A run, and what of it and of its data is to be shown."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer, UInt8

from cnn_research.analysis.neurons import layers, patches
from cnn_research.analysis.run import Run
from cnn_research.data.augmentation import normalize

CHANNELS = 10  # of a layer, where a picture shows some
PATCHES = 9  # of a channel, as in Zeiler & Fergus 2014, figure 2


@dataclasses.dataclass(frozen=True)
class View:
    """A run, and what of it and of its data to show.

    Attributes:
      run: with its network.
      images: to explain, at the network's size.
      labels: their true classes, where they are known; () in a segmentation.
      data: images of the data set, to look for patches, colours and mistakes in.
      data_labels: their true classes; () in a segmentation.
      layer: the one to show; several that suit the method unless given.
      target: the class to explain; the one that the network sees unless given.
    """

    run: Run
    images: UInt8[np.ndarray, "examples height width channels"]
    labels: tuple[int | None, ...]
    data: UInt8[np.ndarray, "data height width channels"]
    data_labels: tuple[int, ...] = ()
    layer: str = ""
    target: int | None = None

    @functools.cached_property
    def inputs(self) -> Float[Array, "examples height width channels"]:
        """The images as the network takes them."""
        return self.prepare(jnp.asarray(self.images))

    def prepare(self, images: UInt8[Array, "batch _ _ channels"]) -> Float[Array, "batch height width channels"]:
        """Returns images as the network takes them."""
        return self.run.program.preprocessing.test({"image": images})["image"]

    def normalize(self, pixels: Float[Array, "batch height width channels"]) -> Array:
        """Returns images in 0..1 as the network takes them."""
        preprocessing = self.run.program.preprocessing
        return normalize(pixels, preprocessing.mean, preprocessing.std)

    def pixels(self, inputs: Any) -> Float[np.ndarray, "batch height width channels"]:
        """Returns what the network takes as images in 0..1."""
        preprocessing = self.run.program.preprocessing
        return np.clip(np.asarray(inputs) * np.array(preprocessing.std) + np.array(preprocessing.mean), 0, 1)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of what the network takes."""
        height, width, channels = self.inputs.shape[1:]
        return height, width, channels

    @functools.cached_property
    def targets(self) -> Integer[Array, " examples"]:
        """The class of each image that is explained: in a segmentation the one of most pixels but the first class."""
        if self.target is not None:
            return jnp.full(len(self.images), self.target)
        logits = jax.jit(functools.partial(self.run.model.apply, train=False))(self.run.variables, self.inputs)
        if logits.ndim == 2:
            return logits.argmax(-1)
        seen = logits.argmax(-1).reshape(len(logits), -1)
        counts = (seen[..., None] == jnp.arange(logits.shape[-1])).sum(1)
        return 1 + counts[:, 1:].argmax(-1)

    def named(self, label: int | None) -> str:
        """Returns the name of a class, not too long."""
        return "" if label is None else self.run.class_names[label][:16]

    def words(self, index: int) -> str:
        """Returns what is explained of an image, and what it truly is."""
        true = self.labels[index] if self.labels else None
        meant = self.named(int(self.targets[index]))
        return meant if true is None or true == int(self.targets[index]) else f"{meant} (true: {self.named(true)})"

    def map_layers(self) -> list[str]:
        """The layer that was asked for, or one for each scale."""
        return [self.layer] if self.layer else layers.map_layers(self.run.model, self.shape)

    @functools.cached_property
    def strongest(self) -> list[tuple[str, patches.Strongest, list[int]]]:
        """For each of `map_layers` what excites its channels most, and the channels with the largest values."""
        return [*map(self._strongest, self.map_layers())]

    def _strongest(self, layer: str) -> tuple[str, patches.Strongest, list[int]]:
        run = self.run
        found = patches.strongest(run.model, run.variables, self.data, layer, PATCHES, prepare=self.prepare)
        alive = np.flatnonzero(found.values[:, 0] > 0)
        return layer, found, sorted(alive[np.argsort(-found.values[alive, 0], kind="stable")][:CHANNELS].tolist())
