"""How alike layers represent the same images: linear centered kernel alignment (CKA).

Kornblith et al. 2019, "Similarity of neural network representations revisited", arXiv:1905.00414. Batch by batch with
the unbiased estimate of Song et al. 2012 as Nguyen, Raghu & Kornblith 2021 sum it, arXiv:2010.15327, section 3.1.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from matplotlib.figure import Figure

from cnn_research.analysis.figures import DPI, INK
from cnn_research.analysis.run import Run
from cnn_research.analysis.tabulate import IN_PLACE
from cnn_research.analysis.trace import trace_network
from cnn_research.errors import UserError
from cnn_research.layers import taps

Grams = Float[Array, "layers examples examples"]


class Similarity(NamedTuple):
    """CKA of each layer of a network with each layer of another.

    Attributes:
      rows: the first network's layers.
      columns: the second one's.
      values: at most 1; 1 where two layers say the same but for rotation and scale.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: Float[np.ndarray, "rows columns"]


def linear_cka(x: Float[Array, "examples features"], y: Float[Array, "examples others"]) -> Float[Array, ""]:
    """Returns the CKA of what two layers say of the same examples, all at once (equation 5 of Kornblith et al.).

    Args:
      x: what a layer gives.
      y: what another one gives.
    """
    x, y = x - x.mean(0), y - y.mean(0)
    both, first, second = (jnp.linalg.norm(a.T @ b) for a, b in ((x, y), (x, x), (y, y)))
    return both**2 / (first * second)


def gram(outputs: Float[Array, "examples *features"]) -> Float[Array, "examples examples"]:
    """Returns the products of what a layer gives for each two examples."""
    flat = outputs.reshape(len(outputs), -1).astype(jnp.float32)
    flat -= flat.mean(0)  # changes no HSIC, and keeps rounding small
    return flat @ flat.T


def unbiased_hsic(first: Grams, second: Float[Array, "others examples examples"]) -> Float[Array, "layers others"]:
    """Returns the unbiased estimate of the Hilbert-Schmidt independence criterion (equation 3 of Nguyen et al.).

    Args:
      first: products of each two of four or more examples, by layer.
      second: those of other layers.
    """
    count = first.shape[-1]
    off = 1 - jnp.eye(count)
    first, second = first * off, second * off
    traces = jnp.einsum("aij,bji->ab", first, second)
    sums = first.sum((1, 2))[:, None] * second.sum((1, 2)) / ((count - 1) * (count - 2))
    crossed = jnp.einsum("ai,bi->ab", first.sum(1), second.sum(2)) * 2 / (count - 2)
    return (traces + sums - crossed) / (count * (count - 3))


@jax.jit
def _terms(first: Grams, second: Float[Array, "others examples examples"]) -> tuple[Array, Array, Array]:
    """Returns the HSIC of each two layers, and of each layer with itself."""

    def own(grams: Grams) -> Float[Array, " layers"]:
        return jax.vmap(lambda each: unbiased_hsic(each[None], each[None])[0, 0])(grams)

    return unbiased_hsic(first, second), own(first), own(second)


def minibatch_cka(
    batches: Iterable[tuple[Grams, Float[Array, "others examples examples"]]],
) -> Float[np.ndarray, "layers others"]:
    """Returns the CKA of each two layers, from batches: numerator and denominators are summed, then divided.

    Args:
      batches: products of each two examples of a batch, by layer, of two networks; see `gram`.

    Raises:
      UserError: a batch has fewer than four examples, or there is none.
    """
    sums: list[Any] = []
    for first, second in batches:
        if first.shape[-1] < 4:
            raise UserError(f"a batch of {first.shape[-1]} examples is too small to compare layers; give 4 or more")
        new = jax.device_get(_terms(first, second))
        sums = [np.add(a, b, dtype=np.float64) for a, b in zip(sums, new, strict=True)] if sums else [*new]
    if not sums:
        raise UserError("there are no examples to compare layers by")
    both, first_sums, second_sums = sums
    with np.errstate(invalid="ignore", divide="ignore"):  # a layer that says the same of all examples has none
        return np.asarray(both / np.sqrt(np.outer(first_sums, second_sums)), np.float64)


def layer_names(run: Run) -> list[str]:
    """Returns the layers of a run's network that have a tensor of their own, and the modules that join others'."""
    calls = trace_network(run.model, run.program.image_shape).calls
    own = [call for call in calls if call.joins or (call.leaf and not isinstance(call.module, IN_PLACE))]
    return [call.name for call in own if len(call.outputs) == 1 and call.outputs[0].shape[:1] == (1,)]


def grams_of(run: Run, layers: Sequence[str]) -> Callable[[Any, Any], Grams]:
    """Returns a compiled function of (variables, uint8 images) that gives the products of examples by layer.

    Args:
      run: with its network.
      layers: names of `layer_names`.
    """

    @jax.jit
    def function(variables: Any, images: Any) -> Grams:
        inputs = run.program.preprocessing.test({"image": images})["image"]
        _, outputs = taps.record(lambda: run.model.apply(variables, inputs, train=False))
        return jnp.stack([gram(outputs[layer]) for layer in layers])

    return function


def of_runs(first: Run, second: Run, images: np.ndarray, batch_size: int = 64) -> Similarity:
    """Returns the CKA of each layer of a run's network with each layer of another's.

    Args:
      first: a run.
      second: another, or the same.
      images: at the size of both networks, uint8; what does not fill a batch is left out, if there is a full one.
      batch_size: images at a time.

    Raises:
      UserError: there are fewer than four images.
    """
    size = min(batch_size, len(images))
    names = [layer_names(run) for run in (first, second)]
    functions = [grams_of(run, layers) for run, layers in zip((first, second), names, strict=True)]
    parts = (images[begin : begin + size] for begin in range(0, len(images) - size + 1, size))
    batches = ((functions[0](first.variables, part), functions[1](second.variables, part)) for part in parts)
    return Similarity(tuple(names[0]), tuple(names[1]), minibatch_cka(batches))


def heat_map(similarity: Similarity, row_title: str, column_title: str) -> Figure:
    """Draws the CKA of layers as a map, the first layers at the lower left.

    Args:
      similarity: of two networks' layers.
      row_title: name of the first network.
      column_title: name of the second one.
    """
    height, width = (min(12.0, 1.8 + 0.16 * len(names)) for names in (similarity.rows, similarity.columns))
    figure = Figure(figsize=(width + 1.6, height + 1.0), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    picture = axes.imshow(similarity.values, origin="lower", cmap="magma", vmin=0, vmax=1, aspect="auto")
    for axis, names in ((axes.xaxis, similarity.columns), (axes.yaxis, similarity.rows)):
        step = -(-len(names) // 60)
        axis.set_ticks(range(0, len(names), step), names[::step], size=6)
    axes.tick_params(axis="x", rotation=90)
    axes.set_xlabel(column_title, color=INK)
    axes.set_ylabel(row_title, color=INK)
    axes.set_title("linear CKA", loc="left", size=10, weight="bold", color=INK)
    figure.colorbar(picture, ax=axes)
    return figure
