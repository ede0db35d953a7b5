"""Every method that Captum has too, on the same weights."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_research import models
from cnn_research.analysis.attribution import attribute, cams, class_score
from cnn_research.interop import torch as interop

pytestmark = pytest.mark.slow
LABELS = [3, 7]


@pytest.fixture(scope="module")
def networks(torchvision):
    """A ResNet-18 as ours, as torchvision's, and images for both."""
    torch = pytest.importorskip("torch")
    model = models.create("resnet18", num_classes=10)
    images = jax.random.normal(jax.random.key(0), (2, 64, 64, 3))
    variables = jax.jit(partial(model.init, train=False))(jax.random.key(1), images)
    theirs = torchvision.models.resnet18(num_classes=10).eval()
    state = interop.dump("resnet18", variables, num_classes=10)
    theirs.load_state_dict({name: torch.tensor(np.asarray(value)) for name, value in state.items()}, strict=False)
    for module in theirs.modules():
        if hasattr(module, "inplace"):  # what Captum hooks must not be written over
            module.inplace = False
    pixels = torch.tensor(np.asarray(images).transpose(0, 3, 1, 2)).requires_grad_()
    return model, variables, images, theirs, pixels


@pytest.mark.parametrize(
    ("method", "theirs", "given", "options"),
    [
        ("saliency", "Saliency", {}, {}),
        ("input_x_gradient", "InputXGradient", {}, {}),
        ("integrated_gradients", "IntegratedGradients", {"n_steps": 6}, {"steps": 6}),
        ("guided_backprop", "GuidedBackprop", {}, {}),
        ("deconvnet", "Deconvolution", {}, {}),
        (
            "occlusion",
            "Occlusion",
            {"sliding_window_shapes": (3, 32, 32), "strides": (3, 16, 16)},
            {"window": 32, "strides": 16},
        ),
    ],
)
def test_pixels(networks, method, theirs, given, options):
    attr = pytest.importorskip("captum.attr")
    model, variables, images, network, pixels = networks
    expected = getattr(attr, theirs)(network).attribute(pixels, target=LABELS, **given)
    expected = expected.detach().numpy().transpose(0, 2, 3, 1)
    maps = jax.jit(partial(attribute, method, model, **options))(variables, images, jnp.array(LABELS))
    expected = expected[..., : maps.shape[-1]]
    np.testing.assert_allclose(maps, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("layer", ["stage4", "stage2"])
def test_grad_cam(networks, layer):
    attr = pytest.importorskip("captum.attr")
    model, variables, images, network, pixels = networks
    there = getattr(network, layer.replace("stage", "layer"))
    expected = attr.LayerGradCam(network, there).attribute(pixels, LABELS, relu_attributions=True)
    maps = cams.grad_cam(model, variables, images, class_score(jnp.array(LABELS)), layer)
    scale = np.abs(expected.detach().numpy()).max()
    np.testing.assert_allclose(maps, expected[:, 0].detach().numpy(), rtol=1e-3, atol=1e-4 * scale)
