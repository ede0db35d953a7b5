"""Our networks with torchvision's weights against torchvision's networks, which `make test-slow` installs."""

import json
import math
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_research import models
from cnn_research.errors import UserError
from cnn_research.interop import pth
from cnn_research.interop import torch as interop

pytestmark = pytest.mark.slow
torch = pytest.importorskip("torch")

# Height and width of the images, small but for VGG's, whose first fully connected layer takes 7x7 maps.
CASES = {
    "alexnet": ("alexnet_owt", {}, (128, 96)),
    **{f"vgg{depth}": (f"vgg{depth}", {}, (224, 224)) for depth in (11, 13, 16, 19)},
    **{f"vgg{depth}_bn": (f"vgg{depth}", {"norm": "batch"}, (224, 224)) for depth in (11, 13, 16, 19)},
    "googlenet": ("googlenet_bn", {}, (96, 64)),
    "googlenet_auxiliary": ("googlenet_bn", {"auxiliary_weights": (0.3, 0.3)}, (96, 64)),
    **{f"resnet{depth}": (f"resnet{depth}", {}, (96, 64)) for depth in (18, 34, 50, 101, 152)},
}
# For gradients the smallest of VGG's will do: the others have more of the same layers.
TRAINED = [name for name in CASES if not name.startswith("vgg") or name.startswith("vgg11")]
LABELS = np.array([1, 7])


def build(torchvision, name, dtype, auxiliary, hidden=()):
    """Returns torchvision's network with random weights and statistics, none of them 0 or 1, that hand images on."""
    dropout = {} if name.startswith("resnet") else {"dropout": 0.0}
    if name.startswith("googlenet"):
        dropout |= {"dropout_aux": 0.0, "aux_logits": auxiliary, "init_weights": False}
    network = getattr(torchvision.models, name.removesuffix("_auxiliary"))(num_classes=10, **dropout)
    if hidden:
        for index, inputs, units in zip((0, 3, 6), (25088, *hidden), (*hidden, 10), strict=True):
            network.classifier[index] = torch.nn.Linear(inputs, units)
    generator = torch.Generator().manual_seed(1)
    for key, value in network.state_dict().items():
        if value.ndim > 1:
            value.normal_(std=math.sqrt(2 / value[0].numel()), generator=generator)
        elif value.ndim == 1:
            low, high = (0.5, 1.5) if key.endswith(("weight", "var")) else (-0.3, 0.3)
            value.uniform_(low, high, generator=generator)
    return network.to(getattr(torch, dtype))


def load(name, network, **fields):
    return jax.tree.map(jnp.asarray, interop.load(name, network.state_dict(), **fields))


def images(size, dtype):
    return np.random.default_rng(2).standard_normal((len(LABELS), *size, 3)).astype(dtype)


def to_torch(batch):
    return torch.from_numpy(batch.transpose(0, 3, 1, 2).copy())


def difference(actual, expected):
    """Returns the largest difference relative to the largest number."""
    return np.abs(np.asarray(actual) - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("name", CASES)
def test_logits_in_evaluation(torchvision, name):
    ours, fields, size = CASES[name]
    network = build(torchvision, name, "float32", auxiliary=True).eval()
    # The state dict has auxiliary heads here, whether or not our network has.
    variables = load(ours, network, num_classes=10, **fields)
    batch = images(size, "float32")
    logits = models.create(ours, num_classes=10, **fields).apply(variables, jnp.asarray(batch), train=False)
    with torch.no_grad():
        expected = network(to_torch(batch)).numpy()
    relative = difference(logits, expected)
    print(f"{name}: logits differ by {relative:.1e}")
    assert np.ptp(expected, axis=0).max() > 1e-2 * np.abs(expected).max()  # the images do make a difference
    assert relative < 1e-4


@pytest.mark.parametrize("name", TRAINED)
def test_gradients_and_statistics_in_training(torchvision, name):
    """In float64, where rounding adds up to little even in the deepest networks."""
    ours, fields, size = CASES[name]
    auxiliary = "auxiliary_weights" in fields
    if name.startswith("vgg"):  # of whose gradients 4096 units would take gigabytes
        fields = {"hidden": (64, 32), **fields}
    network = build(torchvision, name, "float64", auxiliary, fields.get("hidden", ())).train()
    fields = {"num_classes": 10, "dropout_rate": 0.0, "dtype": "float64", "param_dtype": "float64", **fields}
    if auxiliary:
        fields["auxiliary_dropout_rate"] = 0.0
    batch = images(size, "float64")
    with jax.enable_x64(True):
        variables = load(ours, network, **fields)
        model = models.create(ours, **fields)

        def loss(params):
            logits, state = model.apply(
                {**variables, "params": params}, jnp.asarray(batch), train=True, mutable=["batch_stats", "auxiliary"]
            )
            heads = [(1.0, logits)]
            heads += [(head["weight"], head["logits"]) for head in state.pop("auxiliary", {}).values()]
            rows = jnp.arange(len(LABELS))
            losses = [-weight * jax.nn.log_softmax(logits)[rows, LABELS].mean() for weight, logits in heads]
            return sum(losses), state

        (value, state), gradients = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        actual = interop.dump(ours, {"params": gradients, **state}, **fields)

    given = network(to_torch(batch))
    heads = [(1.0, given.logits), (0.3, given.aux_logits1), (0.3, given.aux_logits2)] if auxiliary else [(1.0, given)]
    criterion = torch.nn.functional.cross_entropy
    expected = sum(weight * criterion(logits, torch.from_numpy(LABELS)) for weight, logits in heads)
    expected.backward()
    assert float(value) == pytest.approx(expected.item(), rel=1e-9)

    parameters = {key: value.grad.numpy() for key, value in network.named_parameters()}
    # The gradient of a bias before batch norm is 0: rounding alone is left, to be measured by the others.
    floor = 1e-6 * max(np.abs(gradient).max() for gradient in parameters.values())
    relative = max(
        np.abs(actual[key] - gradient).max() / max(np.abs(gradient).max(), floor)
        for key, gradient in parameters.items()
    )
    print(f"{name}: gradients differ by {relative:.1e}")
    assert relative < 1e-6
    means = {key: value for key, value in network.state_dict().items() if key.endswith("running_mean")}
    assert max((difference(actual[key], value.numpy()) for key, value in means.items()), default=0) < 1e-9


@pytest.mark.parametrize("name", CASES)
def test_torchvision_takes_a_dump_strictly(torchvision, name):
    ours, fields, _ = CASES[name]
    auxiliary = {"aux_logits": "auxiliary_weights" in fields, "init_weights": False} if "googlenet" in name else {}
    with torch.device("meta"):  # of the memory of VGG's numbers ours are enough
        network = getattr(torchvision.models, name.removesuffix("_auxiliary"))(num_classes=10, **auxiliary)
    model = models.create(ours, num_classes=10, **fields)
    shapes = jax.eval_shape(
        partial(model.init, train=False), jax.random.key(0), jnp.zeros((1, *models.input_shape(ours)))
    )
    variables = jax.tree.map(lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape), shapes)
    state = {
        key: torch.from_numpy(value) for key, value in interop.dump(ours, variables, num_classes=10, **fields).items()
    }
    assert {key: value.dtype for key, value in state.items()} == {
        key: value.dtype for key, value in network.state_dict().items()
    }
    network.load_state_dict(state, strict=True, assign=True)


@pytest.mark.parametrize("name", [name for name in CASES if not name.endswith("auxiliary")])
def test_the_list_of_torchvisions_layers_is_still_right(torchvision, name):
    with torch.device("meta"):
        network = getattr(torchvision.models, name)(**({"init_weights": False} if name == "googlenet" else {}))
    layers = json.loads((Path(__file__).parent / "data" / "torchvision.json").read_text())[name]
    described = {}
    for layer, module in network.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            described[layer] = f"norm {module.num_features}"
        elif hasattr(module, "weight"):
            described[layer] = "x".join(map(str, module.weight.shape)) + (" bias" if module.bias is not None else "")
    assert described == layers


@pytest.mark.parametrize("zipped", [True, False])
def test_files_that_pytorch_writes(tmp_path, zipped):
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).half()
    network.register_parameter("shared", network[0].weight)
    network.register_buffer("view", network[0].weight.detach()[:, 1:, ::2].transpose(2, 3))
    path = tmp_path / "weights.pth"
    torch.save(network.state_dict(), path, _use_new_zipfile_serialization=zipped)
    loaded, expected = pth.load(path), network.state_dict()
    assert loaded.keys() == expected.keys()
    for key, value in expected.items():
        assert str(value.dtype) == f"torch.{loaded[key].dtype}"
        np.testing.assert_array_equal(loaded[key], value.numpy())
    torch.save(network, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"asks for torch\.nn\.modules\.container\.Sequential"):
        pth.load(path)
