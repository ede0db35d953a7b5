"""Weights from and to PyTorch: the state dicts of torchvision's networks, and of timm's where they are the same.

PyTorch itself is not needed. Its kernels are [out, in, height, width], its matrices [out, in]. It flattens maps as
[channels, height, width], we as [height, width, channels]: the first fully connected layer's rows change their order.

What no state dict tells: which pixels the weights are for. Torchvision's published GoogLeNet wants `data.mean=(0.5,)`
and `data.std=(0.5,)`, the others ImageNet's.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import flax
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import linen as nn

from cnn_research import models
from cnn_research.errors import UserError
from cnn_research.interop import pth, safetensors
from cnn_research.interop.fit import differences
from cnn_research.models.alexnet import AlexNet
from cnn_research.models.classifiers import as_body
from cnn_research.models.deconvnet import DeconvNet
from cnn_research.models.faster_rcnn import RCNN
from cnn_research.models.fcn import FCN
from cnn_research.models.inception import AUXILIARY, STAGES, GoogLeNet
from cnn_research.models.resnet import ResNet
from cnn_research.models.vgg import CONFIGURATIONS, VGG, convolutions

# The last word of a path here, and of a key there.
LEAVES = {"kernel": "weight", "bias": "bias", "scale": "weight", "mean": "running_mean", "var": "running_var"}

COUNTER = "num_batches_tracked"  # what PyTorch's batch norms count; it has no effect and no counterpart here

NORMS = ("batch", "frozen")  # those with the statistics of a batch


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where torchvision's network of a family keeps what ours keeps.

    Attributes:
      layers: the name there of each layer here, by path. Layers that a network does not have may be among them.
      norms: the values of `norm` that have a counterpart.
      flattened: dense layers that take maps, and the layer that gives those.
      optional: names there of what a file may have and a network not.
      renamed: timm's names for layers, where they differ from torchvision's.
      own: how the names here of layers begin that have no counterpart there: the network has a classifier of
        torchvision's as its body alone.
    """

    layers: dict[str, str]
    norms: tuple[str, ...]
    flattened: dict[str, str] = dataclasses.field(default_factory=dict)
    optional: tuple[str, ...] = ()
    renamed: dict[str, str] = dataclasses.field(default_factory=dict)
    own: tuple[str, ...] = ()


def _alexnet(model: AlexNet) -> Layout:
    layers = {"conv1": 0, "conv2": 3, "conv3": 6, "conv4": 8, "conv5": 10}
    names = {layer: f"features.{position}" for layer, position in layers.items()}
    # A dropout, a layer and its activation each.
    names |= {f"fc{6 + index}": f"classifier.{3 * index + 1}" for index in range(len(model.hidden))}
    names["head"] = f"classifier.{3 * len(model.hidden)}"
    return Layout(names, ("none",), {"fc6" if model.hidden else "head": "conv5"})


def _vgg(model: VGG) -> Layout:
    names: dict[str, str] = {}
    layer, position = "", 0
    for stage, channels in enumerate(CONFIGURATIONS[model.configuration], start=1):
        for index in range(1, 1 + len(convolutions(channels, model.kernel))):
            layer = f"conv{stage}_{index}"
            names |= {layer: f"features.{position}", f"{layer}_norm": f"features.{position + 1}"}
            position += 2 if model.norm == "none" else 3  # the layer, its norm and its activation
        position += 1  # the pooling
    # A layer, its activation and a dropout each.
    names |= {f"fc{6 + index}": f"classifier.{3 * index}" for index in range(len(model.hidden))}
    names["head"] = f"classifier.{3 * len(model.hidden)}"
    return Layout(
        names,
        norms=("none", *NORMS),
        flattened={"fc6" if model.hidden else "head": layer},
        renamed={"pre_logits.fc1": "classifier.0", "pre_logits.fc2": "classifier.3", "head.fc": "classifier.6"},
    )


def _googlenet(model: GoogLeNet) -> Layout:
    branches = {
        "conv1x1": "branch1",
        "conv3x3_reduce": "branch2.0",
        "conv3x3": "branch2.1",
        "conv5x5_reduce": "branch3.0",
        "conv5x5": "branch3.1",
        "pool_proj": "branch4.1",
    }
    convolutions = {"conv1": "conv1", "conv2_reduce": "conv2", "conv2": "conv3"}
    for module in (f"{stage}{letter}" for stage, letters in STAGES.items() for letter in letters):
        convolutions |= {f"inception_{module}/{ours}": f"inception{module}.{name}" for ours, name in branches.items()}
    heads = {f"auxiliary_{index}": f"aux{index}" for index in range(1, 1 + len(AUXILIARY))}
    convolutions |= {f"{ours}/conv": f"{name}.conv" for ours, name in heads.items()}
    names = {"head": "fc"}
    for ours, name in convolutions.items():
        names |= {ours: f"{name}.conv", f"{ours}_norm": f"{name}.bn"}
    for ours, name in heads.items():
        names |= {f"{ours}/fc": f"{name}.fc1", f"{ours}/head": f"{name}.fc2"}
    optional = () if model.auxiliary_weights else tuple(f"{name}." for name in heads.values())
    return Layout(names, NORMS, {f"{ours}/fc": f"{ours}/conv" for ours in heads}, optional)


def _resnet(model: ResNet) -> Layout:
    names = {"conv1": "conv1", "bn1": "bn1", "head": "fc"}
    layers = {f"{kind}{index}": f"{kind}{index}" for kind in ("conv", "bn") for index in range(1, 4)}
    layers |= {"shortcut_conv": "downsample.0", "shortcut_bn": "downsample.1"}
    for stage, size in enumerate(model.stage_sizes, start=1):
        for block in range(size):
            ours, theirs = f"stage{stage}/block{block + 1}", f"layer{stage}.{block}"
            names |= {f"{ours}/{layer}": f"{theirs}.{name}" for layer, name in layers.items()}
    return Layout(names, (*NORMS, "group", "layer"))


def _fcn(model: FCN) -> Layout:
    body = model.classifier()
    if isinstance(body, AlexNet | VGG):
        body = body.clone(hidden=model.hidden)
    return _body(_layout(body), ("fc", "score", "upscore"))


def _deconvnet(model: DeconvNet) -> Layout:
    body = VGG(configuration=model.configuration, hidden=model.hidden, norm=model.norm)
    return _body(_layout(body), ("deconv", "fc", "head"))


def _rcnn(model: RCNN) -> Layout:
    body = as_body(model)
    if isinstance(body, AlexNet | VGG):
        body = body.clone(hidden=model.hidden)
    return _body(_layout(body), ("box", "fc", "fpn", "head", "mask_head", "rpn"))


def _body(layout: Layout, own: tuple[str, ...]) -> Layout:
    """Returns the layout of a network that has a classifier's layers but for its head, and layers of its own."""
    layers = dict(layout.layers)
    head = layers.pop("head")
    return dataclasses.replace(layout, layers=layers, optional=(*layout.optional, f"{head}."), own=own)


LAYOUTS: dict[type[nn.Module], Callable[[Any], Layout]] = {
    AlexNet: _alexnet,
    VGG: _vgg,
    GoogLeNet: _googlenet,
    ResNet: _resnet,
    FCN: _fcn,
    DeconvNet: _deconvnet,
    RCNN: _rcnn,
}


def load(name: str, source: epath.PathLike | Mapping[str, Any], **fields: Any) -> dict[str, Any]:
    """Returns a network's variables from a state dict of torchvision's or timm's network.

    A state dict with auxiliary classifiers fits a network without them, too: only training runs them.

    Args:
      name: a name from `models.names()`.
      source: a `.pth` or `.safetensors` file, or a state dict: PyTorch's tensors or NumPy's arrays by key.
      **fields: fields of the network that differ from its defaults, such as `norm="batch"` for VGG's `_bn` weights.

    Raises:
      UserError: torchvision has no such network, the file cannot be read, or its weights are not this network's.
    """
    model, template = _network(name, fields)
    if not isinstance(source, Mapping):
        source = safetensors.load(source) if str(source).endswith(".safetensors") else pth.load(source)
    ours, theirs = flax.traverse_util.flatten_dict(template, sep="/"), convert(model, template, source)
    _check(name, ours, theirs)
    return flax.traverse_util.unflatten_dict(
        {path: theirs[path].astype(leaf.dtype, copy=False) for path, leaf in ours.items()}, sep="/"
    )


def dump(name: str, variables: Mapping[str, Any], **fields: Any) -> dict[str, np.ndarray]:
    """Returns a network's variables as a state dict that torchvision's network takes with `load_state_dict`.

    Args:
      name: a name from `models.names()`.
      variables: `params` and, where there are norms, `batch_stats`.
      **fields: fields of the network that differ from its defaults.

    Returns:
      Arrays by key; `torch.from_numpy` makes tensors of them.

    Raises:
      UserError: torchvision has no such network, or the variables are not this network's.
    """
    model, template = _network(name, fields)
    ours, layout = flax.traverse_util.flatten_dict(jax.device_get(variables), sep="/"), _layout(model)
    if layout.own:
        raise UserError(f"{name} has no counterpart in torchvision; only its body's weights can be read from there")
    _check(name, flax.traverse_util.flatten_dict(template, sep="/"), ours)
    state = {}
    for path, key in _keys(layout, ours).items():
        value = np.asarray(ours[path])
        if value.dtype == jnp.bfloat16:  # NumPy has no such type of its own, so that PyTorch takes none from it
            value = value.astype(np.float32)
        state[key] = np.array(_to_torch(value, _maps(layout, path, ours)), order="C")
        if key.endswith(".running_var"):
            state[key.replace("running_var", COUNTER)] = np.zeros((), np.int64)
    return state


def convert(model: nn.Module, template: Mapping[str, Any], state: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns a state dict's tensors under our paths and in our order.

    Args:
      model: the network.
      template: its variables, or their shapes and dtypes.
      state: PyTorch's tensors or NumPy's arrays by key.

    Returns:
      Arrays by path. Whether they fit is not asked: what has no counterpart in the network keeps its key.

    Raises:
      UserError: torchvision has no such network, or only one of the two has the statistics of batch norm.
    """
    if "params" in state:
        raise UserError("the weights are in our own layout, not in PyTorch's; interop.safetensors reads them")
    layout, ours = _layout(model), flax.traverse_util.flatten_dict(template, sep="/")
    paths = {key: path for path, key in _keys(layout, ours).items()}
    tensors = {_key(layout, key): value for key, value in state.items()}
    norm, batched = cast(Any, model).norm, any(key.endswith(".running_var") for key in tensors)
    if batched and norm not in NORMS and "batch" in layout.norms:
        raise UserError(f"the weights are those of a network with batch norm; use norm='batch', not norm={norm!r}")
    if not batched and norm in NORMS and "none" in layout.norms:
        raise UserError(f"the weights are those of a network without batch norm; use norm='none', not norm={norm!r}")
    converted = {}
    for key, value in tensors.items():
        if key.endswith(f".{COUNTER}") or key.startswith(layout.optional):
            continue
        array, path = _array(value), paths.get(key)
        if path and array.ndim == 4 and len(ours[path].shape) == 2:  # timm's dense layers are convolutions
            array = array.reshape(len(array), math.prod(array.shape[1:]))
        maps = _maps(layout, path, ours) if path else 0
        if path and (not maps or (array.ndim == 2 and array.shape[1] == maps * _side(array.shape[1], maps) ** 2)):
            converted[path] = _from_torch(array, maps)
        else:
            converted[key] = array
    return converted


def _network(name: str, fields: dict[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
    """Returns a network, and the shapes and dtypes of its variables for images of its own size."""
    model = models.create(name, **fields)
    _layout(model)
    images = jnp.zeros((1, *models.input_shape(name)))
    return model, jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)


def _layout(model: nn.Module) -> Layout:
    """Returns the layout of a network; a network without one is refused."""
    if type(model) not in LAYOUTS:
        known = ", ".join(name for name in models.names("classification") if models.MODELS[name].func in LAYOUTS)
        raise UserError(f"{type(model).__name__} has no counterpart in torchvision; those that have are {known}")
    layout, norm = LAYOUTS[type(model)](model), cast(Any, model).norm
    if norm not in layout.norms:
        known = " or ".join(map(repr, layout.norms))
        raise UserError(f"norm={norm!r} of {type(model).__name__} has no counterpart in torchvision; use {known}")
    return layout


def _keys(layout: Layout, ours: Mapping[str, Any]) -> dict[str, str]:
    """Returns the key of each of our paths; a network with a layer that has none is refused."""
    keys = {}
    for path in ours:
        _, *layers, leaf = path.split("/")
        layer = "/".join(layers)
        if layer not in layout.layers:
            if layout.own and layer.startswith(layout.own):
                continue
            raise UserError(f"the layer {layer} has no counterpart in torchvision's network; choose fields without it")
        keys[path] = f"{layout.layers[layer]}.{LEAVES[leaf]}"
    return keys


def _key(layout: Layout, key: str) -> str:
    """Returns a key as torchvision's network of the family has it."""
    key = key.removeprefix("module.")  # of DataParallel
    layer, _, leaf = key.rpartition(".")
    return f"{layout.renamed[layer]}.{leaf}" if layer in layout.renamed else key


def _array(value: Any) -> np.ndarray:
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = (value.float() if "bfloat16" in str(value.dtype) else value).numpy()
    return np.asarray(value)


def _maps(layout: Layout, path: str, ours: Mapping[str, Any]) -> int:
    """Returns the number of maps that a layer's kernel flattens; 0 where it flattens none."""
    collection, _, rest = path.partition("/")
    layer, _, leaf = rest.rpartition("/")
    if leaf != "kernel" or layer not in layout.flattened:
        return 0
    return ours[f"{collection}/{layout.flattened[layer]}/kernel"].shape[-1]


def _side(inputs: int, maps: int) -> int:
    """Returns height and width of maps by the number of their values; torchvision's are square."""
    return math.isqrt(inputs // maps)


def _from_torch(array: np.ndarray, maps: int) -> np.ndarray:
    if maps:
        units, inputs = array.shape
        side = _side(inputs, maps)
        return array.reshape(units, maps, side, side).transpose(2, 3, 1, 0).reshape(inputs, units)
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def _to_torch(array: np.ndarray, maps: int) -> np.ndarray:
    if maps:
        inputs, units = array.shape
        side = _side(inputs, maps)
        return array.reshape(side, side, maps, units).transpose(3, 2, 0, 1).reshape(units, inputs)
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T


def _check(name: str, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    faults = differences(ours, theirs)
    if faults:
        raise UserError(f"the weights do not fit {name}: {faults}")
