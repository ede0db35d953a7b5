"""Names, shapes and orders of PyTorch's state dicts, without PyTorch; tests/interop/test_torchvision.py has it."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import save_file

from cnn_research import models
from cnn_research.errors import UserError
from cnn_research.interop import torch as interop

# The layers of torchvision 0.28's networks: a weight's shape and whether there is a bias, or a norm's channels.
TORCHVISION = json.loads((Path(__file__).parent / "data" / "torchvision.json").read_text())
HEADS = {"auxiliary_weights": (0.3, 0.3)}
OURS = {
    "alexnet": ("alexnet_owt", {}),
    **{f"vgg{depth}": (f"vgg{depth}", {}) for depth in (11, 13, 16, 19)},
    **{f"vgg{depth}_bn": (f"vgg{depth}", {"norm": "batch"}) for depth in (11, 13, 16, 19)},
    "googlenet": ("googlenet_bn", HEADS),
    **{f"resnet{depth}": (f"resnet{depth}", {}) for depth in (18, 34, 50, 101, 152)},
}

# Networks of few channels.
TINY = {
    "alexnet": ("alexnet_owt", {"width": 1 / 64}),
    "vgg": ("vgg11", {"width": 1 / 64}),
    "vgg_bn": ("vgg13", {"width": 1 / 64, "norm": "batch"}),
    "vgg_without_hidden_layers": ("vgg11", {"width": 1 / 64, "hidden": (), "norm": "frozen"}),
    "googlenet": ("googlenet_bn", {"width": 1 / 32, **HEADS}),
    "resnet18": ("resnet18", {"width": 1 / 16, "num_classes": 7}),
    "resnet50": ("resnet50", {"width": 1 / 16, "norm": "frozen"}),
    "resnet_group": ("resnet50", {"width": 1 / 16, "stage_sizes": (1, 1), "norm": "group"}),
    "resnet20_cifar": ("resnet20_cifar", {}),
}


def flat(tree):
    return traverse_util.flatten_dict(tree, sep="/")


def random_variables(name, **fields):
    model, rng = models.create(name, **fields), np.random.default_rng(0)
    shapes = jax.eval_shape(
        functools.partial(model.init, train=False), jax.random.key(0), jnp.zeros((1, *models.input_shape(name)))
    )
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(leaf.dtype), shapes)


@functools.cache
def tiny(network):
    """Returns name, fields, random variables and state dict of a network of few channels."""
    name, fields = TINY[network]
    variables = random_variables(name, **fields)
    return name, fields, variables, interop.dump(name, variables, **fields)


def shapes_of(network):
    """Returns the shapes of a state dict of torchvision's, by key."""
    shapes = {}
    for layer, text in TORCHVISION[network].items():
        if text.startswith("norm "):
            channels = (int(text.removeprefix("norm ")),)
            leaves = ("weight", "bias", "running_mean", "running_var")
            shapes |= {f"{layer}.{leaf}": channels for leaf in leaves} | {f"{layer}.num_batches_tracked": ()}
        else:
            shape = tuple(map(int, text.removesuffix(" bias").split("x")))
            shapes[f"{layer}.weight"] = shape
            if text.endswith(" bias"):
                shapes[f"{layer}.bias"] = shape[:1]
    return shapes


def fault(name, state, **fields):
    with pytest.raises(UserError) as caught:
        interop.load(name, state, **fields)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(actual[key], value, err_msg=key)


@pytest.fixture(scope="module")
def resnet():
    """The state dict of a small ResNet-18 with 1000 classes."""
    return interop.dump("resnet18", random_variables("resnet18", width=1 / 16), width=1 / 16)


# Names and shapes.


@pytest.mark.parametrize("network", OURS)
def test_every_tensor_of_torchvisions_has_its_place(network):
    name, fields = OURS[network]
    state = {key: np.broadcast_to(np.float16(0), shape) for key, shape in shapes_of(network).items()}
    variables = interop.load(name, state, param_dtype="float16", **fields)
    values = sum(leaf.size for leaf in jax.tree.leaves(variables))
    assert values == sum(value.size for key, value in state.items() if value.ndim)


@pytest.mark.parametrize("network", ["googlenet", "resnet18", "resnet50"])
def test_a_dump_has_torchvisions_keys_and_shapes(network):
    name, fields = OURS[network]
    state = interop.dump(name, random_variables(name, **fields), **fields)
    assert {key: value.shape for key, value in state.items()} == shapes_of(network)
    assert all(value.flags.c_contiguous and value.flags.writeable for value in state.values())
    counters = {key for key, value in state.items() if value.dtype == np.int64}
    assert counters == {key for key in state if key.endswith("num_batches_tracked")}
    assert {value.dtype for key, value in state.items() if key not in counters} == {np.dtype("float32")}


@pytest.mark.parametrize("network", ["alexnet", "vgg11", "vgg13", "vgg16", "vgg19", "vgg11_bn", "vgg16_bn"])
def test_a_dump_of_a_narrow_network_has_torchvisions_keys(network):
    name, fields = OURS[network]
    fields = {"width": 1 / 64, **fields}
    state = interop.dump(name, random_variables(name, **fields), **fields)
    expected = shapes_of(network)
    assert state.keys() == expected.keys()
    assert {key: value.ndim for key, value in state.items()} == {key: len(shape) for key, shape in expected.items()}


# Layers of equal shapes, which a wrong name would not show.
PLACES = {
    "vgg": {
        "features.0": "conv1_1",
        "features.11": "conv4_1",
        "features.13": "conv4_2",
        "features.16": "conv5_1",
        "features.18": "conv5_2",
        "classifier.3": "fc7",
        "classifier.6": "head",
    },
    "vgg_bn": {
        "features.0": "conv1_1",
        "features.1": "conv1_1_norm",
        "features.3": "conv1_2",
        "features.7": "conv2_1",
        "features.28": "conv5_1",
        "features.31": "conv5_2",
        "features.32": "conv5_2_norm",
    },
    "alexnet": {
        "features.0": "conv1",
        "features.3": "conv2",
        "features.6": "conv3",
        "features.8": "conv4",
        "features.10": "conv5",
        "classifier.4": "fc7",
        "classifier.6": "head",
    },
    "googlenet": {
        "conv1.conv": "conv1",
        "conv2.bn": "conv2_reduce_norm",
        "conv3.conv": "conv2",
        "inception3a.branch1.conv": "inception_3a/conv1x1",
        "inception4b.branch2.0.conv": "inception_4b/conv3x3_reduce",
        "inception4b.branch2.1.bn": "inception_4b/conv3x3_norm",
        "inception4c.branch3.0.bn": "inception_4c/conv5x5_reduce_norm",
        "inception4d.branch3.1.conv": "inception_4d/conv5x5",
        "inception5b.branch4.1.conv": "inception_5b/pool_proj",
        "aux1.conv.conv": "auxiliary_1/conv",
        "aux1.fc2": "auxiliary_1/head",
        "aux2.conv.bn": "auxiliary_2/conv_norm",
        "fc": "head",
    },
    "resnet18": {
        "conv1": "conv1",
        "layer1.0.conv1": "stage1/block1/conv1",
        "layer1.1.conv2": "stage1/block2/conv2",
        "layer2.0.downsample.0": "stage2/block1/shortcut_conv",
        "layer2.0.downsample.1": "stage2/block1/shortcut_bn",
        "layer4.1.bn2": "stage4/block2/bn2",
        "fc": "head",
    },
    "resnet50": {
        "bn1": "bn1",
        "layer1.0.downsample.1": "stage1/block1/shortcut_bn",
        "layer3.5.conv2": "stage3/block6/conv2",
        "layer4.2.bn3": "stage4/block3/bn3",
    },
}


@pytest.mark.parametrize("network", PLACES)
def test_values_go_where_they_belong(network):
    _, fields, variables, state = tiny(network)
    leaves = flat(variables)
    trained = "batch_stats" if fields.get("norm") == "frozen" else "params"
    for layer, path in PLACES[network].items():
        if f"{layer}.running_mean" in state:
            ours = {
                "weight": f"{trained}/{path}/scale",
                "bias": f"{trained}/{path}/bias",
                "running_mean": f"batch_stats/{path}/mean",
                "running_var": f"batch_stats/{path}/var",
            }
            for leaf, place in ours.items():
                np.testing.assert_array_equal(state[f"{layer}.{leaf}"], leaves[place])
            continue
        kernel, weight = leaves[f"params/{path}/kernel"], state[f"{layer}.weight"]
        for index in np.ndindex(weight.shape[:2]):
            np.testing.assert_array_equal(weight[index], kernel[..., *reversed(index)])
        assert (f"{layer}.bias" in state) == (f"params/{path}/bias" in leaves)
        if f"{layer}.bias" in state:
            np.testing.assert_array_equal(state[f"{layer}.bias"], leaves[f"params/{path}/bias"])


@pytest.mark.parametrize(
    ("network", "layer", "path", "maps", "side"),
    [
        ("vgg", "classifier.0", "fc6", 8, 7),
        ("vgg_without_hidden_layers", "classifier.0", "head", 8, 7),
        ("alexnet", "classifier.1", "fc6", 4, 6),
        ("googlenet", "aux1.fc1", "auxiliary_1/fc", 4, 4),
        ("googlenet", "aux2.fc1", "auxiliary_2/fc", 4, 4),
    ],
)
def test_flattened_maps_change_their_order(network, layer, path, maps, side):
    _, _, variables, state = tiny(network)
    kernel, weight = flat(variables)[f"params/{path}/kernel"], state[f"{layer}.weight"]
    assert kernel.shape[0] == weight.shape[1] == maps * side**2
    for channel, row, column in np.ndindex(maps, side, side):
        theirs, ours = (channel * side + row) * side + column, (row * side + column) * maps + channel
        np.testing.assert_array_equal(weight[:, theirs], kernel[ours])


@pytest.mark.parametrize("network", TINY)
def test_load_gives_back_what_dump_was_given(network):
    name, fields, variables, state = tiny(network)
    assert_same(flat(interop.load(name, state, **fields)), flat(variables))


# What else is accepted.


def test_a_file_gives_what_its_state_dict_does(resnet, tmp_path):
    save_file(resnet, tmp_path / "resnet18.safetensors")
    for source in (tmp_path / "resnet18.safetensors", str(tmp_path / "resnet18.safetensors")):
        loaded = interop.load("resnet18", source, width=1 / 16)
        assert_same(flat(loaded), flat(interop.load("resnet18", resnet, width=1 / 16)))


def test_numbers_take_the_networks_type(resnet):
    half = {key: value.astype(np.float16) for key, value in resnet.items()}
    loaded = interop.load("resnet18", half, width=1 / 16)
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {np.dtype("float32")}
    loaded = interop.load("resnet18", half, width=1 / 16, param_dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded["params"])} == {jnp.dtype("bfloat16")}
    state = interop.dump("resnet18", loaded, width=1 / 16, param_dtype="bfloat16")
    assert {value.dtype for value in state.values()} == {np.dtype("float32"), np.dtype("int64")}


class Tensor:
    """What PyTorch's tensors have of NumPy's ways: no array comes of one with a gradient, on a GPU or in bfloat16."""

    def __init__(self, value, dtype="torch.float32", where="gpu, with a gradient"):
        self.value, self.dtype, self.where = value, dtype, where

    def detach(self):
        return Tensor(self.value, self.dtype, "gpu")

    def cpu(self):
        assert self.where == "gpu"
        return Tensor(self.value, self.dtype, "cpu")

    def float(self):
        return Tensor(self.value, "torch.float32", self.where)

    def numpy(self):
        assert (self.dtype, self.where) == ("torch.float32", "cpu")
        return self.value


@pytest.mark.parametrize("dtype", ["torch.float32", "torch.bfloat16"])
def test_pytorchs_tensors(resnet, dtype):
    tensors = {key: Tensor(value, dtype) for key, value in resnet.items()}
    loaded = interop.load("resnet18", tensors, width=1 / 16)
    assert_same(flat(loaded), flat(interop.load("resnet18", resnet, width=1 / 16)))


def test_old_files_have_no_counters_and_data_parallel_ones_a_prefix(resnet):
    other = {f"module.{key}": value for key, value in resnet.items() if "tracked" not in key}
    loaded = interop.load("resnet18", other, width=1 / 16)
    assert_same(flat(loaded), flat(interop.load("resnet18", resnet, width=1 / 16)))


def test_timms_vgg_has_convolutions_for_dense_layers():
    name, fields, variables, state = tiny("vgg_bn")
    state = dict(state)
    for layer, other, size in (("classifier.0", "pre_logits.fc1", 7), ("classifier.3", "pre_logits.fc2", 1)):
        weight = state.pop(f"{layer}.weight")
        state[f"{other}.weight"] = weight.reshape(len(weight), -1, size, size)
        state[f"{other}.bias"] = state.pop(f"{layer}.bias")
    for leaf in ("weight", "bias"):
        state[f"head.fc.{leaf}"] = state.pop(f"classifier.6.{leaf}")
    assert_same(flat(interop.load(name, state, **fields)), flat(variables))


def test_auxiliary_classifiers_are_left_out_where_a_network_has_none():
    name, fields, variables, state = tiny("googlenet")
    loaded = interop.load(name, state, width=1 / 32)
    expected = {path: value for path, value in flat(variables).items() if "auxiliary" not in path}
    assert_same(flat(loaded), expected)
    alone = {key: value for key, value in state.items() if "aux" not in key}
    assert_same(flat(interop.load(name, alone, width=1 / 32)), expected)
    assert "missing params/auxiliary_1/conv/kernel 1x1x16x4" in fault(name, alone, **fields)


def test_a_field_that_leaves_the_layout_needs_no_other_weights():
    name, fields, variables, state = tiny("resnet_group")
    loaded = interop.load(name, state, stride_in="1x1", activation="gelu", **fields)
    assert_same(flat(loaded), flat(variables))


# Faults.


def test_what_does_not_fit_is_named_with_its_shape(resnet):
    state = dict(resnet, extra=np.zeros(()))
    del state["layer1.0.conv2.weight"]
    state["layer5.0.conv1.weight"] = np.zeros((4, 4, 3, 3))
    assert fault("resnet18", state, width=1 / 16, num_classes=10) == (
        "the weights do not fit resnet18: missing params/stage1/block1/conv2/kernel 3x3x4x4; "
        "unexpected extra scalar; unexpected layer5.0.conv1.weight 4x4x3x3; "
        "params/head/bias is 1000 there, 10 here; params/head/kernel is 32x1000 there, 32x10 here"
    )


def test_many_faults_are_counted(resnet):
    message = fault("resnet18", {"layer1.weight": np.zeros(3)}, width=1 / 16)
    assert message.count("missing") == 6
    assert message.endswith(f"; and {20 + 20 * 4 + 2 + 1 - 6} more")  # of convolutions, norms, the head and layer1


def test_other_sizes_do_not_fit():
    name, fields, _, state = tiny("vgg")
    other = dict(state, **{"classifier.0.weight": state["classifier.0.weight"][:, : 8 * 6 * 6]})
    assert "params/fc6/kernel is 288x64 there, 392x64 here" in fault(name, other, **fields)
    other = dict(state, **{"classifier.0.weight": state["classifier.0.weight"][:, : 8 * 6 * 7]})
    message = fault(name, other, **fields)
    assert "missing params/fc6/kernel 392x64; unexpected classifier.0.weight 64x336" in message
    for shape in ((), (392,), (0, 8, 7, 7), (3, 3, 3)):
        assert "fc6/kernel" in fault(name, dict(state, **{"classifier.0.weight": np.zeros(shape)}), **fields)
        assert "conv1_1/kernel" in fault(name, dict(state, **{"features.0.weight": np.zeros(shape)}), **fields)


def test_a_dump_takes_only_the_networks_variables():
    _, _, variables, _ = tiny("resnet18")
    with pytest.raises(UserError, match="the weights do not fit resnet18: params/head/bias is 7 there, 1000 here"):
        interop.dump("resnet18", variables, width=1 / 16)
    with pytest.raises(UserError, match="missing batch_stats/bn1/mean 4"):
        interop.dump("resnet18", {"params": variables["params"]}, width=1 / 16, num_classes=7)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("vgg11", {}, "the weights are those of a network with batch norm; use norm='batch', not norm='none'"),
        ("resnet18", {"norm": "group"}, "use norm='batch', not norm='group'"),
        ("resnet18", {"norm": "none"}, "norm='none' of ResNet has no counterpart in torchvision; use 'batch' or "),
        ("googlenet", {}, "norm='none' of GoogLeNet has no counterpart in torchvision; use 'batch' or 'frozen'"),
        ("vgg16", {"norm": "layer"}, "norm='layer' of VGG has no counterpart"),
        ("alexnet_owt", {"norm": "batch"}, "norm='batch' of AlexNet has no counterpart in torchvision; use 'none'"),
        ("resnet18", {"skip": "full_preactivation"}, "the layer head_bn has no counterpart in torchvision's network"),
        ("resnet18", {"shortcut": "shortcut_gating"}, "shortcut_gate has no counterpart"),
        ("lenet5", {}, "LeNet has no counterpart in torchvision; those that have are alexnet, alexnet_owt, "),
        ("resnet17", {}, "model 'resnet17' is not known"),
        ("resnet18", {"depth": 3}, "resnet18 has no field 'depth'"),
    ],
)
def test_networks_that_the_weights_are_not_for(resnet, name, fields, message):
    assert message in fault(name, resnet, **fields)


def test_batch_norm_without_statistics_is_refused():
    name, fields, _, state = tiny("vgg")
    message = "the weights are those of a network without batch norm; use norm='none', not norm='batch'"
    assert fault(name, state, norm="batch", **fields) == message


def test_our_own_layout_is_named():
    assert "are in our own layout" in fault("resnet18", tiny("resnet18")[2])


def test_an_absent_file_is_named(tmp_path):
    for name in ("resnet18.pth", "resnet18.safetensors"):
        assert fault("resnet18", tmp_path / name) == f"there is no file {tmp_path / name}"
