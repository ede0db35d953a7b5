"""Alternating training of region networks. Ren et al. 2015, arXiv:1506.01497, section 3.2: its four steps as stages.

  1. The layers that propose regions learn, and a body.
  2. The detector's layers learn, and a second body, from the first one's beginning, on what the first body and its
     layers propose: two networks, in training and in tests.
  3. The layers that propose learn on, on the detector's body, which stays as it is from here on.
  4. The detector's layers learn on, on what these propose: one network.

The other body is the twin of `tasks.Stage`: in the first stage the beginning, and then what the first stage has made of
it. A body that does not learn uses its running statistics, as in tests. The authors' published code has 80,000 steps in
stages 1 and 3 and 40,000 in 2 and 4, each with a learning rate that falls after three quarters of them; its layers that
propose begin stage 3 anew.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float

from cnn_research.errors import UserError
from cnn_research.tasks.task import Batch, Stage, Variables

TRAINING = ("alternating", "joint")

Regions = Float[Array, "batch regions 4"]


def stages(model: nn.Module, shares: Sequence[float], loss: Callable[..., Any]) -> tuple[Stage, ...]:
    """Returns the four stages.

    Args:
      model: an `RCNN`.
      shares: of the run's steps, as numbers beside each other.
      loss: as `Task.loss`, but the first argument is the parts of the network that learn.

    Raises:
      UserError: the network proposes no regions.
    """
    network: Any = model
    if not network.anchor_sizes:
        raise UserError(
            "loss.training='alternating' needs a network that proposes regions; give model.anchor_sizes, or 'joint'"
        )

    def stage(name: str, share: float, *parts: str, **fields: bool) -> Stage:
        return Stage(name, share, lambda layer: network.part(layer) in parts, partial(loss, parts), **fields)

    first, second, third, fourth = shares
    return (
        stage("proposals", first, "body", "rpn"),
        stage("a detector with a body of its own", second, "body", "detector", swaps=True, sees_twins=True),
        stage("proposals on the detector's body", third, "rpn"),
        stage("the detector on the shared body", fourth, "detector"),
    )


def proposed_by_twin(model: nn.Module, variables: Variables, batch: Batch, train: bool) -> Regions | None:
    """Returns the regions that are proposed on the maps of the body's twin; None where the variables have no twin.

    Args:
      model: an `RCNN`.
      variables: the network's, and `twin`.
      batch: `image`.
      train: how many regions are proposed.
    """
    if "twin" not in variables:
        return None
    twin = variables["twin"]
    own = {name: tree | twin.get(name, {}) for name, tree in variables.items() if name != "twin"}

    def propose(network: Any, images: Array) -> Regions:
        maps = network.features(images, train=False)
        return network.proposed(network.anchored(maps), images.shape[1:3], train)

    proposed: Any = model.apply(own, batch["image"], method=propose)
    return proposed
