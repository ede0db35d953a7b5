"""A network becomes a table of its layers: it is traced, and nothing is allocated or computed."""

import dataclasses
import inspect
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from functools import partial
from typing import Any

import jax
from flax import linen as nn
from flax import traverse_util
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import ClosedJaxpr

from cnn_research.analysis.receptive_field import INPUT, View, Window, views
from cnn_research.analysis.table import JOIN, Row, Table, times
from cnn_research.errors import UserError
from cnn_research.layers import Activation, ConvTranspose, DenseConv, LocalConv, Norm, Unpool, Upsample
from cnn_research.ops.geometry import explicit_padding, multiply_accumulates, pair

# Layers that take each value on its own and write over it: XLA fuses them with what computes it. The statistics of
# group and layer norm are of the whole image; receptive fields leave them out, as the literature does.
IN_PLACE = (Activation, Norm, nn.Dropout)

ENLARGING = (ConvTranspose, Unpool, Upsample)

# Layers of which no two positions share a weight.
UNSHARED = (DenseConv, LocalConv, nn.ConvLocal)

Shaped = jax.ShapeDtypeStruct


def tabulate(model: nn.Module, input_shape: Sequence[int], name: str = "") -> Table:
    """Returns what each layer of a network takes, gives, weighs, costs and sees when it evaluates one image.

    Multiply-adds are counted as papers count them: those of convolutions and fully connected layers, with the taps that
    fall on padding. They are no FLOPs, of which each is two, and not what XLA's cost analysis counts, which has the
    element-wise work too and leaves those taps out.

    Args:
      model: the network, called with images and, where it has that argument, `train=False`.
      input_shape: (height, width, channels) of the images.
      name: of the network; its class unless given.

    Raises:
      UserError: the shape is none, or a layer cannot take what reaches it.
    """
    if len(input_shape) != 3 or min(input_shape) < 1:
        raise UserError(f"input_shape={tuple(input_shape)} is no (height, width, channels); one is (224, 224, 3)")
    height, width, channels = input_shape
    images = Shaped((1, height, width, channels), "float32")
    trains = "train" in inspect.signature(type(model).__call__).parameters
    arguments: dict[str, Any] = {"train": False} if trains else {}
    _, variables, initial = _trace(partial(model.init, **arguments), jax.eval_shape(jax.random.key, 0), images)
    program, _, calls = _trace(partial(model.apply, **arguments), variables, images)

    params: dict[str, dict[str, Shaped]] = {}
    for (*path, parameter), leaf in traverse_util.flatten_dict(variables.get("params", {})).items():
        params.setdefault("/".join(path), {})[parameter] = leaf
    windows = {call.name: window for call in calls if (window := _slides(call))}
    seen = views(program, len(program.jaxpr.invars) - 1, windows)
    layers = [call for call in calls if call.leaf or call.joins or call.path in params]
    rows = [_row(call, params.get(call.path, {}), *seen.get(call.name, (None, None))) for call in layers]
    ran = {call.path for call in calls}
    left_out = [call for call in initial if call.path in params and call.path not in ran]
    rows += [Row(call.path, _kind(call), **_weighed(params[call.path])) for call in left_out]
    return Table(name or type(model).__name__, (height, width, channels), tuple(rows))


@dataclasses.dataclass
class _Call:
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


def _trace(function: Callable[..., Any], *arguments: Any) -> tuple[ClosedJaxpr, Any, list[_Call]]:
    """Traces a function that runs modules.

    Returns:
      The program, with names for what layers take and give; the shapes of what it returns; the calls of modules, in the
      order in which they end.
    """
    calls: list[_Call] = []
    running: list[_Call] = []
    counts: Counter[str] = Counter()
    returned: dict[int, jax.Array] = {}  # by their ids, which no others get as long as they are here

    def intercept(method: Callable[..., Any], args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        if context.method_name != "__call__":
            return method(*args, **kwargs)
        path = "/".join(context.module.path)
        counts[path] += 1
        name = path if counts[path] == 1 else f"{path}#{counts[path]}"
        call = _Call(context.module, path, name, None)
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


def _window(call: _Call) -> Window | None:
    """Returns what a layer's fields say that it slides over its input; None if they say nothing."""
    layer = call.module
    kernel = getattr(layer, "kernel_size", getattr(layer, "window", None))
    # A dense layer's kernel size says only how large the maps are that it gives.
    if kernel is None or not call.leaf or call.input is None or call.input.ndim != 4 or isinstance(layer, DenseConv):
        return None
    kernel, strides = pair(kernel), pair(getattr(layer, "strides", 1) or 1)
    dilation = pair(getattr(layer, "dilation", getattr(layer, "kernel_dilation", 1)) or 1)
    padding = getattr(layer, "padding", 0)
    if padding in ("SAME", "VALID"):  # Flax's own layers mean TensorFlow's by that
        extents = [distance * (size - 1) + 1 for size, distance in zip(kernel, dilation, strict=True)]
        padding = tuple(lax.padtype_to_pads(call.input.shape[1:3], extents, strides, padding))
    return Window(kernel, strides, explicit_padding(padding, kernel, dilation), dilation)


def _slides(call: _Call) -> Window | None:
    """Returns the window by which a layer makes its output, as its fields say and the sizes bear out."""
    if isinstance(call.module, IN_PLACE):
        return Window()
    if isinstance(call.module, ENLARGING):
        return _transposed_window(call.module)
    window = _window(call)
    if window is None or call.input is None or not call.outputs:
        return None
    # A transposed convolution says the same and does the reverse.
    return window if window.output_sizes(call.input.shape[1:3]) == call.outputs[0].shape[1:3] else None


def _transposed_window(layer: ConvTranspose | Unpool | Upsample) -> Window:
    """Returns the window of a layer that makes maps larger: that of a transposed convolution.

    Interpolation is one with blocks that overlap by half, other layers without weights one with blocks side by side.
    What switches see is not asked: they come from where the values do that they spread.
    """
    if isinstance(layer, ConvTranspose):
        kernel, strides = pair(layer.kernel_size), pair(layer.strides)
        padding = explicit_padding(layer.padding, kernel)
    else:
        strides = pair(layer.factor)
        overlap = layer.factor if layer.kind == "bilinear" else 0
        kernel = pair(layer.factor + overlap)
        padding = explicit_padding(overlap - overlap // 2, kernel)
    (top, _), (left, _) = padding
    before = ((kernel[0] - 1 - top, 0), (kernel[1] - 1 - left, 0))
    return Window(kernel, (1, 1), before, (1, 1), base=strides)


def _row(call: _Call, params: Mapping[str, Shaped], vertical: View | None, horizontal: View | None) -> Row:
    """Returns a call as a row of the table.

    Args:
      call: of a layer, or of a module that puts together what others gave.
      params: the layer's own parameters, by name.
      vertical: what its output sees.
      horizontal: the same along the other axis.
    """
    fields: dict[str, Any] = _weighed(params) if call.name == call.path else {}
    if window := _window(call):
        fields |= dict(kernel=window.kernel, stride=window.strides, padding=window.padding, dilation=window.dilation)
        fields["groups"] = getattr(call.module, "groups", 1)
    if vertical and horizontal:
        fields["receptive_field"] = (math.ceil(vertical.size), math.ceil(horizontal.size))
        fields["first_pixel"] = (math.floor(vertical.start), math.floor(horizontal.start))
        if len(vertical.jumps) == 4 and vertical.jumps[1] and horizontal.jumps[2]:
            fields["jump"] = (_number(vertical.jumps[1]), _number(horizontal.jumps[2]))
    if call.leaf and not isinstance(call.module, IN_PLACE):
        fields["activation_bytes"] = sum(math.prod(each.shape) * each.dtype.itemsize for each in call.outputs)
    return Row(
        call.name or type(call.module).__name__,
        _kind(call),
        input_shape=_example(call.input),
        output_shape=_example(call.outputs[0]) if call.outputs else None,
        macs=_macs(call, params),
        **fields,
    )


def _macs(call: _Call, params: Mapping[str, Shaped]) -> int:
    """Returns the multiply-adds of a layer: those of its kernel, if it has one."""
    if "kernel" not in params:
        return 0
    positions = call.outputs[0].shape[:-1]
    if isinstance(call.module, UNSHARED):
        positions = ()
    elif call.input and (isinstance(call.module, ENLARGING) or (_window(call) and not _slides(call))):
        positions = call.input.shape[:-1]  # a transposed convolution puts its kernel on each position of its input
    return multiply_accumulates(params["kernel"].shape, positions)


def _kind(call: _Call) -> str:
    return f"{type(call.module).__name__} {getattr(call.module, 'kind', '')}".strip() if call.leaf else JOIN


def _weighed(params: Mapping[str, Shaped]) -> dict[str, Any]:
    """Returns the fields of a row that say how many weights and biases a layer has."""
    biases = sum(leaf.size for name, leaf in params.items() if name == "bias")
    return {"weights": sum(leaf.size for leaf in params.values()) - biases, "biases": biases}


def _example(array: Shaped | None) -> tuple[int, ...] | None:
    """Returns the shape of one example: without the batch's axis, which has one."""
    if array is None:
        return None
    return array.shape[1:] if array.shape[:1] == (1,) else array.shape


def _number(fraction: Fraction) -> int | float:
    return int(fraction) if fraction.denominator == 1 else float(fraction)
