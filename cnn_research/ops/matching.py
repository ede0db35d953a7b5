"""Which box of the truth an anchor or a proposal is trained towards, and a fixed number of them drawn at random."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key


class Matches(NamedTuple):
    """What each candidate is trained towards; one that is neither positive nor negative is not trained.

    Attributes:
      truth: index of the box of the truth that it overlaps most, the first of equals; 0 where there is none.
      positive: whether it is that box.
      negative: whether it is background.
    """

    truth: Int[Array, " candidates"]
    positive: Bool[Array, " candidates"]
    negative: Bool[Array, " candidates"]


def match(
    overlaps: Float[Array, "candidates truths"],
    valid: Bool[Array, " truths"],
    foreground: float,
    background: tuple[float, float],
    best_of_each: bool = False,
) -> Matches:
    """Matches candidates with the truth by their IoU.

    A region proposal network has foreground 0.7, background (0, 0.3) and `best_of_each` (Ren et al. 2015,
    arXiv:1506.01497, section 3.1.2); Fast R-CNN has 0.5 and (0.1, 0.5) (Girshick 2015, arXiv:1504.08083, section 2.3).

    Args:
      overlaps: IoU of each candidate with each box of the truth.
      valid: which of the truth are boxes and not padding. Where none is, every overlap is 0.
      foreground: IoU from which on a candidate is positive.
      background: IoU from which on, and below which, it is negative.
      best_of_each: whether the candidates that overlap a box of the truth most, all of equals, are positive whatever
        their IoU, if it is above 0. They are trained towards the box that they overlap most themselves, as in the
        paper's code.
    """
    # Without a barrier XLA may compute overlaps twice, with different roundings, and the largest would equal none.
    overlaps = lax.optimization_barrier(jnp.where(valid, overlaps, 0))
    largest = overlaps.max(axis=1, initial=0)
    positive = largest >= foreground
    negative = (largest >= background[0]) & (largest < background[1])
    if best_of_each:
        best = overlaps.max(axis=0, initial=0)
        positive |= ((overlaps == best) & (best > 0)).any(axis=1)
    truth = jnp.argmax(overlaps, axis=1) if overlaps.shape[1] else jnp.zeros(len(overlaps), jnp.int32)
    return Matches(truth, positive, negative & ~positive)


def sample(
    rng: Key[Array, ""], matches: Matches, count: int, positive_fraction: float
) -> tuple[Int[Array, " count"], Bool[Array, " count"]]:
    """Draws a mini-batch of candidates without replacement, each as likely as any other of its kind.

    Of positives there are `positive_fraction` at most, and where there are fewer, negatives take their places: 256 and
    a half for a region proposal network, 128 and a quarter for Fast R-CNN.

    Args:
      rng: the only source of chance.
      matches: which candidates there are.
      count: how many are drawn.
      positive_fraction: of them.

    Returns:
      Indices of the drawn, positives first, then 0 where there are not enough; and where they are drawn.
    """

    def draw(rng: Key[Array, ""], marks: Bool[Array, " candidates"], most: int) -> tuple[Array, Array]:
        priority = jnp.where(marks, jax.random.uniform(rng, marks.shape), -1)
        drawn, indices = lax.top_k(priority, min(most, len(marks)))
        return indices, drawn >= 0

    of_positive, of_negative = jax.random.split(rng)
    positives, are_positive = draw(of_positive, matches.positive, round(count * positive_fraction))
    negatives, are_negative = draw(of_negative, matches.negative, count)
    are_negative &= jnp.arange(len(negatives)) < count - are_positive.sum()
    indices, drawn = jnp.concatenate([positives, negatives]), jnp.concatenate([are_positive, are_negative])
    order = jnp.argsort(~drawn, stable=True)[:count]
    indices, drawn = (jnp.pad(x[order], (0, count - len(order))) for x in (indices, drawn))
    return jnp.where(drawn, indices, 0), drawn
