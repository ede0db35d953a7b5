"""A network is run on shapes alone: its program, with names for what layers take and give, and the calls of them."""

import dataclasses
import inspect
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import ClosedJaxpr

from cnn_research.analysis.receptive_field import INPUT
from cnn_research.analysis.table import times
from cnn_research.errors import UserError

Shaped = jax.ShapeDtypeStruct


@dataclasses.dataclass
class Call:
    """A call of a module, as it was traced.

    Attributes:
      module: that was called.
      path: of the module.
      name: the path, and from the second call on the number of the call.
      input: its first argument, where that is an array.
      outputs: the arrays in what it returned.
      leaf: whether it called no other module.
      joins: whether it returned something that no module within it had returned.
    """

    module: nn.Module
    path: str
    name: str
    input: Shaped | None
    outputs: list[Shaped] = dataclasses.field(default_factory=list)
    leaf: bool = True
    joins: bool = False


@dataclasses.dataclass(frozen=True)
class Traced:
    """A network that was traced as it evaluates one image.

    Attributes:
      input_shape: (height, width, channels) of the image.
      program: with names for what layers take and give; the image is its last argument.
      calls: of modules, in the order in which they end.
      initial: those of initialization, which runs what training alone needs, too.
      variables: their shapes and dtypes.
    """

    input_shape: tuple[int, int, int]
    program: ClosedJaxpr
    calls: list[Call]
    initial: list[Call]
    variables: dict[str, Any]


def trace_network(model: nn.Module, input_shape: tuple[int, int, int]) -> Traced:
    """Traces a network.

    Args:
      model: the network, called with images and, where it has that argument, `train=False`.
      input_shape: (height, width, channels) of the images.
    """
    images = Shaped((1, *input_shape), "float32")
    trains = "train" in inspect.signature(type(model).__call__).parameters
    arguments: dict[str, Any] = {"train": False} if trains else {}
    _, variables, initial = _trace(partial(model.init, **arguments), jax.eval_shape(jax.random.key, 0), images)
    program, _, calls = _trace(partial(model.apply, **arguments), variables, images)
    return Traced(input_shape, program, calls, initial, variables)


def _trace(function: Callable[..., Any], *arguments: Any) -> tuple[ClosedJaxpr, Any, list[Call]]:
    """Traces a function that runs modules.

    Returns:
      The program, with names for what layers take and give; the shapes of what it returns; the calls of modules, in the
      order in which they end.
    """
    calls: list[Call] = []
    running: list[Call] = []
    counts: Counter[str] = Counter()
    returned: dict[int, jax.Array] = {}  # by their ids, which no others get as long as they are here

    def intercept(method: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        if context.method_name != "__call__":
            return method(*args, **kwargs)
        path = "/".join(context.module.path)
        counts[path] += 1
        name = path if counts[path] == 1 else f"{path}#{counts[path]}"
        call = Call(context.module, path, name, None)
        if args and isinstance(args[0], jax.Array):
            call.input = _abstract(args[0])
            args = (checkpoint_name(args[0], INPUT + name), *args[1:])
        if running:
            running[-1].leaf = False
        running.append(call)
        try:
            output = method(*args, **kwargs)
        except UserError as error:
            if call is running[-1] and path and call.input:  # else a module within it, or the network, has said it all
                raise UserError(f"{name} gets {times(call.input.shape[1:])}: {error}") from error
            raise
        running.pop()
        call.joins = bool(path) and not call.leaf and any(id(array) not in returned for array in _arrays(output))
        if call.leaf or call.joins:
            output = jax.tree.map(lambda leaf: checkpoint_name(leaf, name) if _is_array(leaf) else leaf, output)
        returned.update((id(array), array) for array in _arrays(output))
        call.outputs = [_abstract(array) for array in _arrays(output)]
        calls.append(call)
        return output

    with nn.intercept_methods(intercept):
        program, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
    return program, shapes, calls


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array)


def _arrays(tree: Any) -> list[jax.Array]:
    return [leaf for leaf in jax.tree.leaves(tree) if _is_array(leaf)]


def _abstract(array: jax.Array) -> Shaped:
    return Shaped(array.shape, array.dtype)
