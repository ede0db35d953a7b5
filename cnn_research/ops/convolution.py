"""Convolution as networks use the word, cross-correlation summed over channels, and its transpose."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

from cnn_research.errors import UserError
from cnn_research.ops import convolution_forms as forms
from cnn_research.ops import transposed_forms
from cnn_research.ops.convolution_forms import Window
from cnn_research.ops.geometry import Padding, explicit_padding, output_size, pair, transposed_output_size
from cnn_research.ops.padding import pad


def convolve(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "kernel_height kernel_width channels_per_group features"],
    strides: int | Sequence[int] = 1,
    padding: Padding = 0,
    padding_mode: str = "zeros",
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Float[Array, "batch out_height out_width features"]:
    """Convolves images with a bank of kernels.

    Args:
      x: images.
      kernel: one kernel for each output channel.
      strides: step, one number or (vertical, horizontal).
      padding: `same` (symmetric and independent of the stride), `valid`, one width for every border, or
        ((top, bottom), (left, right)).
      padding_mode: zeros, edge, reflect, symmetric or circular.
      dilation: distance of the kernel's taps, one number or (vertical, horizontal).
      groups: the channels and the features are cut into so many groups, each convolved on its own.

    Raises:
      UserError: the kernel does not fit into the padded images, or the groups do not fit the channels.
    """
    strides, dilation = pair(strides), pair(dilation)
    widths = explicit_padding(padding, kernel.shape[:2], dilation)
    for size, extent, stride, width, distance in zip(
        x.shape[1:3], kernel.shape[:2], strides, widths, dilation, strict=True
    ):
        output_size(size, extent, stride, width, distance)
    _check_groups(x, kernel, groups)
    if padding_mode != "zeros":
        x, widths = pad(x, ((0, 0), *widths, (0, 0)), padding_mode), ((0, 0), (0, 0))
    return _once_traced(x, kernel, Window(strides, widths, dilation, groups))


def convolve_transposed(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "kernel_height kernel_width channels_per_group features"],
    strides: int | Sequence[int] = 1,
    padding: Padding = 0,
    output_padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Float[Array, "batch out_height out_width features"]:
    """Stamps a kernel, times a pixel's value, for each pixel of images, `strides` apart; overlapping stamps add up.

    The transpose of `convolve`, "deconvolution" (Zeiler et al. 2010; Long et al. 2015, section 3.3): along one axis
    y[s·i + d·u − p] += x[i] · kernel[u]. Read the other way, it is a convolution of images between whose pixels stand
    s − 1 zeros, by the kernel turned by 180°, with a padding of d·(K − 1) − p. As matrices:

    >>> import jax.numpy as jnp
    >>> kernel = jnp.array([1.0, 2.0, 3.0]).reshape(1, 3, 1, 1)
    >>> basis = lambda size: jnp.eye(size).reshape(size, 1, size, 1)
    >>> print(convolve(basis(7), kernel, strides=(1, 2))[:, 0, :, 0].T)
    [[1. 2. 3. 0. 0. 0. 0.]
     [0. 0. 1. 2. 3. 0. 0.]
     [0. 0. 0. 0. 1. 2. 3.]]
    >>> print(convolve_transposed(basis(3), kernel, strides=(1, 2))[:, 0, :, 0].T)
    [[1. 0. 0.]
     [2. 0. 0.]
     [3. 1. 0.]
     [0. 2. 0.]
     [0. 3. 1.]
     [0. 0. 2.]
     [0. 0. 3.]]

    Args:
      x: images.
      kernel: one kernel for each output channel. (PyTorch keeps it as [channels, features per group, height, width].)
      strides: distance of the stamps, one number or (vertical, horizontal).
      padding: what is cut off at the borders, which is the padding of the convolution that this transposes: `same`,
        `valid`, one width for every border, or ((top, bottom), (left, right)).
      output_padding: rows and columns more at the end, one number or (vertical, horizontal), since a convolution with
        a stride gives the same size for several.
      dilation: distance of the kernel's taps, one number or (vertical, horizontal).
      groups: the channels and the features are cut into so many groups, each convolved on its own.

    Raises:
      UserError: nothing is left of the output, the output's padding reaches beyond what a convolution would drop, or
        the groups do not fit the channels.
    """
    strides, output_padding, dilation = pair(strides), pair(output_padding), pair(dilation)
    widths = explicit_padding(padding, kernel.shape[:2], dilation)
    for size, extent, stride, width, more, distance in zip(
        x.shape[1:3], kernel.shape[:2], strides, widths, output_padding, dilation, strict=True
    ):
        transposed_output_size(size, extent, stride, width, more, distance)
    _check_groups(x, kernel, groups)
    return _convolve_transposed(x, kernel, Window(strides, widths, dilation, groups, output_padding))


def _check_groups(x: Array, kernel: Array, groups: int) -> None:
    channels, features = x.shape[-1], kernel.shape[-1]
    if groups < 1 or channels % groups or features % groups:
        raise UserError(f"groups={groups} must divide both the {channels} channels and the {features} features")
    if kernel.shape[2] * groups != channels:
        raise UserError(f"the kernel takes {kernel.shape[2] * groups} channels; the images have {channels}")


# Each form is differentiated by the product rule. On a CPU the two halves of the rule take other forms than the
# function itself: backwards it is their transposes that run.


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _convolve(x: Array, kernel: Array, window: Window) -> Array:
    on_cpu = forms.on_cpu(x.shape, kernel.shape, window)
    if on_cpu is forms.plain:
        return forms.plain(x, kernel, window)
    return lax.platform_dependent(
        x,
        kernel,
        cpu=lambda x, kernel: on_cpu(x, kernel, window),
        default=lambda x, kernel: forms.plain(x, kernel, window),
    )


def _convolve_by_kernel(x: Array, kernel: Array, window: Window) -> Array:
    """Convolves so that the transpose by the kernel, its gradient, is fast."""

    def on_cpu(x: Array, kernel: Array) -> Array:
        if window.groups == 1 and forms.output_grows(kernel.shape, window):
            return forms.of_patches_by_kernel(x, kernel, window)
        if window.groups > 1 and kernel.shape[2] == 1 and math.prod(kernel.shape[:2]) <= forms.MOST_TAPS:
            return forms.depthwise_by_kernel(x, kernel, window)
        if window.groups > 1 and window.strides == (1, 1):
            return forms.grouped(x, kernel, window)
        form = forms.on_cpu(x.shape, kernel.shape, window)
        if form is forms.of_few_channels:
            return forms.grouped(forms.stored(x), kernel, window)
        if form is forms.pointwise:
            return forms.pointwise_by_kernel(forms.stored(x), kernel, window)
        return _convolve(forms.stored(x), kernel, window)

    return lax.platform_dependent(x, kernel, cpu=on_cpu, default=lambda x, kernel: _convolve(x, kernel, window))


def _convolve_by_images(x: Array, kernel: Array, window: Window) -> Array:
    """Convolves so that the transpose by the images, their gradient, is fast inside of loops too."""
    faster = {forms.plain: forms.turned, forms.of_few_channels: forms.of_few_channels_by_images}
    if (form := forms.on_cpu(x.shape, kernel.shape, window)) not in faster:
        return _convolve(x, kernel, window)
    on_cpu, default = partial(faster[form], window=window), partial(forms.plain, window=window)
    return lax.platform_dependent(x, kernel, cpu=on_cpu, default=default)


@partial(_convolve.defjvp, symbolic_zeros=True)
def _convolve_jvp(window: Window, primals: Any, tangents: Any) -> tuple[Array, Array]:
    (x, kernel), (x_tangent, kernel_tangent) = primals, tangents
    parts = []  # one at least, or JAX would not differentiate
    if not isinstance(x_tangent, SymbolicZero):
        parts.append(_convolve_by_images(x_tangent, kernel, window))
    if not isinstance(kernel_tangent, SymbolicZero):
        parts.append(_convolve_by_kernel(x, kernel_tangent, window))
    return _convolve(x, kernel, window), sum(parts[1:], parts[0])


# A deep network has hundreds of convolutions of a few shapes; traced once each, they take half the time. JAX inlines
# them: behind a call XLA for CPUs takes its plain loops for the gradient by the kernel, and a step 16 times as long.
_once_traced = jax.jit(_convolve, static_argnums=2, inline=True)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _convolve_transposed(x: Array, kernel: Array, window: Window) -> Array:
    if transposed_forms.stamps_apart(kernel.shape, window):
        return transposed_forms.among_zeros(x, kernel, window)
    return _transposed(x, kernel, window, _convolve)


def _transposed(x: Array, kernel: Array, window: Window, convolve: forms.Form) -> Array:
    """Stamps in the form of the backend; in that for a CPU, by a convolution that is given."""
    if window.dilation != (1, 1):
        return transposed_forms.among_zeros(x, kernel, window)
    return lax.platform_dependent(
        x,
        kernel,
        cpu=partial(transposed_forms.by_phases, window=window, convolve=convolve),
        default=partial(transposed_forms.among_zeros, window=window),
    )


@partial(_convolve_transposed.defjvp, symbolic_zeros=True)
def _convolve_transposed_jvp(window: Window, primals: Any, tangents: Any) -> tuple[Array, Array]:
    (x, kernel), (x_tangent, kernel_tangent) = primals, tangents
    parts = []  # one at least, or JAX would not differentiate
    if not isinstance(x_tangent, SymbolicZero):
        parts.append(transposed_forms.among_zeros(x_tangent, kernel, window))  # whose transpose is a plain convolution
    if not isinstance(kernel_tangent, SymbolicZero):
        parts.append(_transposed(x, kernel_tangent, window, _convolve_by_kernel))
    return _convolve_transposed(x, kernel, window), sum(parts[1:], parts[0])
