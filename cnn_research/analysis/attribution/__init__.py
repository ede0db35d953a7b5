"""Attribution: which pixels of an image a score of a network comes from."""

from collections.abc import Callable, Mapping
from typing import Any

from flax import linen as nn
from jaxtyping import Array, Float

from cnn_research.analysis.attribution import cams, gradients, occlusion
from cnn_research.analysis.attribution.cams import default_layer
from cnn_research.analysis.attribution.targets import Labels, Target, as_target, class_score, neuron
from cnn_research.errors import UserError, nearest

# Maps of the images' own size and channels.
PIXELS: dict[str, Callable[..., Array]] = {
    "deconvnet": gradients.deconvnet,
    "guided_backprop": gradients.guided_backprop,
    "input_x_gradient": gradients.input_x_gradient,
    "integrated_gradients": gradients.integrated_gradients,
    "saliency": gradients.saliency,
    "smoothgrad": gradients.smoothgrad,
}
# Maps of a layer's size.
CAMS: dict[str, Callable[..., Array]] = {
    "cam": cams.cam,
    "grad_cam": cams.grad_cam,
    "grad_cam_pp": cams.grad_cam_pp,
}
METHODS = (*PIXELS, *CAMS, "occlusion")

__all__ = ["METHODS", "Labels", "Target", "attribute", "class_score", "default_layer", "neuron"]


def attribute(
    method: str,
    model: nn.Module,
    variables: Mapping[str, Any],
    images: Float[Array, "batch height width channels"],
    target: Target | Labels,
    layer: str | None = None,
    **options: Any,
) -> Float[Array, "batch height width map_channels"]:
    """Says where in images a score comes from: a pure function, to be compiled with its first two arguments fixed.

    `jax.jit(partial(attribute, "grad_cam", model))(variables, images, labels)`

    Args:
      method: one of `METHODS`.
      model: the network.
      variables: its parameters, and statistics where it has any.
      images: as the network takes them.
      target: the class whose logit is meant, one for all images or one for each; or any function that `targets`
        describes, such as a `neuron`, a class of some pixels (`class_score`), or a box of a detector.
      layer: for class activation maps: whose maps; see `default_layer` for which unless given.
      **options: of the method, see its function.

    Returns:
      A value for each pixel and channel; class activation maps, laid over the image by their receptive fields, and
      occlusion have one channel.

    Raises:
      UserError: the method or the layer is not known, or the network has not what the method needs.
    """
    if method not in METHODS:
        raise UserError(f"attribution {method!r} is not known; {nearest(method, METHODS)}")
    if layer is not None and method not in CAMS:
        raise UserError(f"{method} is of pixels and takes no layer; a neuron within the network can be its target")
    if method in PIXELS:
        return PIXELS[method](model, variables, images, as_target(target), **options)
    if method == "occlusion":
        return occlusion.occlusion(model, variables, images, as_target(target), **options)[..., None]
    shape = images.shape[1:]
    find_layer = cams.before_global_pool if method == "cam" else default_layer
    layer = layer or find_layer(model, shape)
    meant = target if method == "cam" else as_target(target)
    maps = CAMS[method](model, variables, images, meant, layer, **options)
    return cams.spread(maps, cams.place_of(model, shape, layer), *shape[:2])[..., None]
