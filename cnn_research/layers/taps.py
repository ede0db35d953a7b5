"""Taps: each layer's output, and the place to take gradients at it, reached from outside by the layers' names."""

from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn
from jaxtyping import Array


def record(function: Callable[[], Any], taps: dict[str, Array] | None = None) -> tuple[Any, dict[str, Array]]:
    """Runs a function that applies modules, and records the output of every one of them.

    The gradient at a layer's output is the gradient with respect to a zero that is added there.

    Args:
      function: applies a module.
      taps: what to add to layers' outputs, by name.

    Returns:
      What the function returned, and the outputs by the layers' names (`stage1/block2/conv1`; the whole network's is
      ``), in the order in which they were finished. Further calls of the same layer are named `conv1#2`, `conv1#3`.
      Outputs that are not one array are left out.
    """
    outputs: dict[str, Array] = {}

    def intercept(method: Callable[..., Any], args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        output = method(*args, **kwargs)
        if context.method_name != "__call__" or not isinstance(output, jax.Array):
            return output
        name = path = "/".join(context.module.path)
        calls = 1
        while name in outputs:
            calls += 1
            name = f"{path}#{calls}"
        if taps and name in taps:
            output = output + taps[name]
        outputs[name] = output
        return output

    with nn.intercept_methods(intercept):
        result = function()
    return result, outputs
