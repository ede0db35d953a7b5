"""A network becomes a table of its layers: it is traced, and nothing is allocated or computed."""

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from flax import linen as nn
from flax import traverse_util
from jax import lax

from cnn_research.analysis.receptive_field import View, Window, views
from cnn_research.analysis.table import JOIN, Row, Table
from cnn_research.analysis.trace import Call, Shaped, Traced, trace_network
from cnn_research.errors import UserError
from cnn_research.layers import Activation, ConvTranspose, DenseConv, LocalConv, Norm, Unpool, Upsample
from cnn_research.ops.geometry import explicit_padding, multiply_accumulates, pair

# Layers that take each value on its own and write over it: XLA fuses them with what computes it. The statistics of
# group and layer norm are of the whole image; receptive fields leave them out, as the literature does.
IN_PLACE = (Activation, Norm, nn.Dropout)

ENLARGING = (ConvTranspose, Unpool, Upsample)

# Layers of which no two positions share a weight.
UNSHARED = (DenseConv, LocalConv, nn.ConvLocal)


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
    return tabulate_traced(trace_network(model, (height, width, channels)), name or type(model).__name__)


def tabulate_traced(traced: Traced, name: str) -> Table:
    """Returns the table of a network that was traced, see `tabulate`.

    Args:
      traced: the network.
      name: of the network.
    """
    program, calls, variables = traced.program, traced.calls, traced.variables
    params: dict[str, dict[str, Shaped]] = {}
    for (*path, parameter), leaf in traverse_util.flatten_dict(variables.get("params", {})).items():
        params.setdefault("/".join(path), {})[parameter] = leaf
    windows = {call.name: window for call in calls if (window := _slides(call))}
    seen = views(program, len(program.jaxpr.invars) - 1, windows)
    layers = [call for call in calls if call.leaf or call.joins or call.path in params]
    rows = [_row(call, params.get(call.path, {}), *seen.get(call.name, (None, None))) for call in layers]
    ran = {call.path for call in calls}
    left_out = [call for call in traced.initial if call.path in params and call.path not in ran]
    rows += [Row(call.path, _kind(call), **_weighed(params[call.path])) for call in left_out]
    return Table(name, traced.input_shape, tuple(rows))


def _window(call: Call) -> Window | None:
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


def _slides(call: Call) -> Window | None:
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


def _row(call: Call, params: Mapping[str, Shaped], vertical: View | None, horizontal: View | None) -> Row:
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


def _macs(call: Call, params: Mapping[str, Shaped]) -> int:
    """Returns the multiply-adds of a layer: those of its kernel, if it has one."""
    if "kernel" not in params:
        return 0
    positions = call.outputs[0].shape[:-1]
    if isinstance(call.module, UNSHARED):
        positions = ()
    elif call.input and (isinstance(call.module, ENLARGING) or (_window(call) and not _slides(call))):
        positions = call.input.shape[:-1]  # a transposed convolution puts its kernel on each position of its input
    return multiply_accumulates(params["kernel"].shape, positions)


def _kind(call: Call) -> str:
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
