"""Taps: each layer's output, and the place to take gradients at it, reached from outside by the layers' names."""

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

import jax
from flax import linen as nn
from jaxtyping import Array

from cnn_research.errors import UserError

# What `intermediates`, where it runs, has found: outputs by the layers' paths.
_found: ContextVar[dict[str, Array] | None] = ContextVar("_found", default=None)


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

    def intercept(method: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
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
            found = _found.get()
            if found and name in found:
                found[name] = output
        outputs[name] = output
        return output

    with nn.intercept_methods(intercept):
        result = function()
    return result, outputs


class _EnoughError(Exception):
    """All layers that were asked for have run."""


def intermediates(module: nn.Module, layers: Sequence[str], *args: Any, **kwargs: Any) -> list[Array]:
    """Runs a network no further than it takes to have the outputs of some of its layers: as the body of another one.

    Of the layers after them none runs, and so none has parameters. What `record` adds to an output is in it.

    Args:
      module: the network, within a method of another module.
      layers: their names, `pool3` or `stage1/block2`; of one that is called more than once the first output counts. The
        whole network's is ``.
      *args: of the network.
      **kwargs: of the network.

    Returns:
      Their outputs, in this order.

    Raises:
      UserError: the network has no such layers.
    """
    found: dict[str, Array] = {}
    wanted = ["/".join((*module.path, *filter(None, [layer]))) for layer in layers]

    def intercept(method: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        # Not sooner: what the interceptors around this one make of the last output comes after it.
        if found.keys() >= set(wanted):
            raise _EnoughError
        output = method(*args, **kwargs)
        path = "/".join(context.module.path)
        if context.method_name == "__call__" and path in wanted:
            found.setdefault(path, output)
        return output

    token = _found.set(found)
    try:
        with nn.intercept_methods(intercept):
            module(*args, **kwargs)
    except _EnoughError:
        pass
    finally:
        _found.reset(token)
    if missing := [layer for layer, path in zip(layers, wanted, strict=True) if path not in found]:
        raise UserError(f"{type(module).__name__} has no layers {missing}")
    return [found[path] for path in wanted]
