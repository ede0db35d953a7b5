"""The forms that a convolution can take: XLA's own, and those that its CPU compiler runs faster.

They give the same numbers but for rounding; which of them runs is decided in `ops.convolution`. Ratios are those of
times, measured in turns on two cores (AVX-512, jaxlib 0.10.2) by `python -m experiments.benchmark --suite=conv`.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata
from jaxtyping import Array, Float

from cnn_research.ops.geometry import Pair, output_size


@dataclasses.dataclass(frozen=True)
class Window:
    """How a kernel slides over images.

    Attributes:
      strides: steps, vertical and horizontal.
      widths: padding with zeros, ((top, bottom), (left, right)).
      dilation: distances of the taps.
      groups: groups of channels that are convolved on their own.
      output_padding: rows and columns more at the end, of a transposed convolution.
    """

    strides: Pair = (1, 1)
    widths: tuple[Pair, Pair] = ((0, 0), (0, 0))
    dilation: Pair = (1, 1)
    groups: int = 1
    output_padding: Pair = (0, 0)

    @property
    def valid(self) -> "Window":
        """The same without padding."""
        return dataclasses.replace(self, widths=((0, 0), (0, 0)))


# Takes images, a kernel and a window.
Form = Callable[[Array, Array, Window], Array]


# Up to so many taps, and so many channels in a group, a CPU adds up products value by value.
MOST_TAPS = 9
MOST_CHANNELS = 4


def on_cpu(x_shape: Sequence[int], kernel_shape: Sequence[int], window: Window) -> Form:
    """Returns the form for a CPU.

    Args:
      x_shape: of the images, [batch, height, width, channels].
      kernel_shape: height, width, channels per group, features.
      window: how it slides.
    """
    if window.groups > 1:
        if kernel_shape[2] == 1:
            return depthwise
        few = math.prod(kernel_shape[:2]) <= MOST_TAPS and kernel_shape[2] <= MOST_CHANNELS
        return of_few_channels if few else grouped
    if window.valid == window and tuple(kernel_shape[:2]) == (1, 1):
        return pointwise
    if window.valid == window and tuple(kernel_shape[:2]) == tuple(x_shape[1:3]):
        return whole
    axes = zip(x_shape[1:3], kernel_shape[:2], window.strides, window.widths, window.dilation, strict=True)
    return of_patches if any(_is_covered(*axis) for axis in axes) else plain


def _is_covered(size: int, kernel: int, stride: int, padding: Pair, dilation: int) -> bool:
    """Tells whether a kernel is larger than the images or than the output, over which it slides in the gradient."""
    return min(size, output_size(size, kernel, stride, padding, dilation)) < dilation * (kernel - 1) + 1


def output_grows(kernel_shape: Sequence[int], window: Window) -> bool:
    """Tells whether a window without strides takes more positions than the images have pixels along an axis.

    Args:
      kernel_shape: height, width, channels per group, features.
      window: how it slides.
    """
    return any(
        sum(width) > step * (extent - 1)
        for width, step, extent in zip(window.widths, window.dilation, kernel_shape[:2], strict=True)
    )


def plain(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "kernel_height kernel_width channels_per_group features"],
    window: Window,
) -> Float[Array, "batch out_height out_width features"]:
    """Convolves as XLA does."""
    return lax.conv_general_dilated(
        x,
        kernel,
        window.strides,
        window.widths,
        rhs_dilation=window.dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=window.groups,
    )


def pointwise(
    x: Float[Array, "batch height width channels"], kernel: Float[Array, "1 1 channels features"], window: Window
) -> Float[Array, "batch out_height out_width features"]:
    """Multiplies by the kernel of one pixel as by a matrix: 3 times as fast, the kernel's gradient 4 times."""
    vertical, horizontal = window.strides
    return lax.dot_general(x[:, ::vertical, ::horizontal], kernel[0, 0], (((3,), (0,)), ((), ())))


def pointwise_by_kernel(
    x: Float[Array, "batch height width channels"], kernel: Float[Array, "1 1 channels features"], window: Window
) -> Float[Array, "batch out_height out_width features"]:
    """Multiplies by the kernel of one pixel so that the transpose by the kernel, its gradient, is fast."""
    vertical, horizontal = window.strides
    return _product(x[:, ::vertical, ::horizontal], kernel[0, 0])


def _product(
    x: Float[Array, "batch height width inputs"], matrix: Float[Array, "inputs features"]
) -> Float[Array, "batch height width features"]:
    """Multiplies so that the gradient of the matrix, a sum over all pixels, is fast.

    XLA's CPU compiler is slow where it sums over several axes, and where it sums over very many pixels for a small
    matrix. From one axis, and in parts of 4,096 pixels and more, each with a copy of the matrix, the gradient is 2 to 6
    times as fast.
    """
    batch, pixels = len(x), math.prod(x.shape[:3])
    divisors = [each for each in range(1, batch + 1) if batch % each == 0 and pixels >= 4096 * each]
    parts = divisors[-1] if pixels >= 8 * 4096 else 1
    copies = jnp.broadcast_to(matrix, (parts, *matrix.shape))
    products = lax.dot_general(x.reshape(parts, pixels // parts, x.shape[-1]), copies, (((2,), (1,)), ((0,), (0,))))
    return products.reshape(*x.shape[:3], matrix.shape[-1])


def whole(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "height width channels features"],
    _: Window,
) -> Float[Array, "batch 1 1 features"]:
    """Multiplies by a kernel of the images' size, which has one position."""
    return lax.dot_general(x, kernel, (((1, 2, 3), (0, 1, 2)), ((), ())))[:, None, None]


def depthwise(
    x: Float[Array, "batch height width groups"],
    kernel: Float[Array, "kernel_height kernel_width 1 features"],
    window: Window,
) -> Float[Array, "batch out_height out_width features"]:
    """Adds up the taps' products value by value, where each channel is a group; in float32 at least."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    images = jnp.repeat(x.astype(wide), kernel.shape[-1] // window.groups, -1)
    taps = kernel.astype(wide).reshape(-1, kernel.shape[-1])
    products = [seen * tap for seen, tap in zip(_seen(images, kernel.shape[:2], window), taps, strict=True)]
    return sum(products[1:], products[0]).astype(x.dtype)


def depthwise_by_kernel(
    x: Float[Array, "batch height width groups"],
    kernel: Float[Array, "kernel_height kernel_width 1 features"],
    window: Window,
) -> Float[Array, "batch out_height out_width features"]:
    """Convolves each channel so that the transpose by the kernel, its gradient, is fast; in float32 at least.

    That is a sum of products over all pixels for each tap, which XLA's CPU compiler vectorizes where it is a chain of
    additions of columns, each [height, channels]. So the kernel is spread over as many rows, and multiplies one column
    after the other. For 3x3 kernels, 128 channels, [16, 28, 28], the gradient is 6 times as fast as that of `grouped`.
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    size = kernel.shape[:2]
    height, width = map(output_size, x.shape[1:3], size, window.strides, window.widths, window.dilation)
    columns = -(-width // 32)  # side by side, so that no chain is longer than 32: the time to compile grows with it
    taps = kernel.astype(wide).reshape(-1, 1, 1, kernel.shape[-1])
    taps = jnp.broadcast_to(taps, (len(taps), height, columns, kernel.shape[-1]))

    def convolve(x: Array, taps: Sequence[Array]) -> Array:
        images = jnp.repeat(x.astype(wide), kernel.shape[-1] // window.groups, -1)
        y = jnp.zeros((), wide)
        for seen, tap in zip(_seen(images, size, window), taps, strict=True):
            parts = (seen[:, :, start : start + columns] for start in range(0, width, columns))
            y += jnp.concatenate([part * tap[:, : part.shape[2]] for part in parts], 2)
        return y.astype(x.dtype)

    return _image_by_image(convolve, x, tuple(taps))


def _image_by_image(
    convolve: Callable[[Array, Any], Array], x: Float[Array, "batch height width channels"], kernel: Any
) -> Float[Array, "batch out_height out_width features"]:
    """Convolves one image after the other, so that what is made of it stays in the cache.

    It is made again for the gradient of the kernel, or JAX would store it for all images.
    """
    alone = jax.checkpoint(lambda image, kernel: convolve(image[None], kernel)[0], prevent_cse=False)
    return lax.map(lambda image: alone(image, kernel), x)


def of_few_channels(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "kernel_height kernel_width channels_per_group features"],
    window: Window,
) -> Float[Array, "batch out_height out_width features"]:
    """Adds up the products of taps and channels value by value, an image at a time; in float32 at least.

    For 3x3 kernels of 4 channels, 32 groups, [16, 28, 28], 1.8 times as fast as `grouped`.
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    channels, features = kernel.shape[2:]

    def convolve(x: Array, taps: Array) -> Array:
        padded = jnp.pad(x.astype(wide), ((0, 0), *window.widths, (0, 0)))
        padded = padded.reshape(*padded.shape[:3], window.groups, channels)
        products = []
        for channel in range(channels):
            spread = stored(jnp.repeat(padded[..., channel], features // window.groups, -1))
            seen = _seen(spread, kernel.shape[:2], window.valid)
            products += [each * tap for each, tap in zip(seen, taps[channel], strict=True)]
        return sum(products[1:], products[0]).astype(x.dtype)

    return _image_by_image(convolve, x, kernel.astype(wide).reshape(-1, channels, features).swapaxes(0, 1))


def of_few_channels_by_images(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "kernel_height kernel_width channels_per_group features"],
    window: Window,
) -> Float[Array, "batch out_height out_width features"]:
    """Convolves so that the transpose by the images, their gradient, is such a sum too, where it is a convolution.

    It is written as the transpose of that one, by the kernel turned by 180° with inputs and outputs exchanged.
    """
    height, width, channels, features = kernel.shape
    axes = zip((height, width), window.widths, window.dilation, strict=True)
    rows, columns = (
        (step * (extent - 1) - before, step * (extent - 1) - after) for extent, (before, after), step in axes
    )
    if window.strides != (1, 1) or min(*rows, *columns) < 0 or features > MOST_CHANNELS * window.groups:
        return grouped(x, kernel, window)
    parts = jnp.flip(kernel, (0, 1)).reshape(height, width, channels, window.groups, features // window.groups)
    exchanged = parts.swapaxes(2, 4).reshape(height, width, -1, x.shape[-1])
    back = dataclasses.replace(window, widths=(rows, columns))
    y = jax.eval_shape(partial(plain, window=window), x, kernel)
    return jax.linear_transpose(lambda y: of_few_channels(y, exchanged, back), y)(x)[0]


def grouped(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "kernel_height kernel_width channels_per_group features"],
    window: Window,
) -> Float[Array, "batch out_height out_width features"]:
    """Convolves some groups at a time, by a kernel that is zero between them.

    As many together as it takes to have 16 channels, from which on a convolution is fast.
    """
    groups = window.groups
    together = next((each for each in range(1, groups) if groups % each == 0 and each * kernel.shape[2] >= 16), groups)
    images, kernels = (jnp.split(array, groups // together, -1) for array in (x, kernel))
    kernels = [_block_diagonal(each, together) for each in kernels]
    alone = dataclasses.replace(window, groups=1)
    form = on_cpu(images[0].shape, kernels[0].shape, alone)
    return jnp.concatenate([form(*part, alone) for part in zip(images, kernels, strict=True)], -1)


def _block_diagonal(
    kernel: Float[Array, "height width channels_per_group features"], groups: int
) -> Float[Array, "height width channels features"]:
    """Returns the kernel of one group that does what this one does for several."""
    height, width, channels, features = kernel.shape
    parts = kernel.reshape(height, width, 1, channels, groups, features // groups)
    apart = jnp.eye(groups, dtype=kernel.dtype)[:, None, :, None]
    return (parts * apart).reshape(height, width, groups * channels, features)


def of_patches(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "kernel_height kernel_width channels features"],
    window: Window,
) -> Float[Array, "batch out_height out_width features"]:
    """Multiplies the matrix of all patches by the matrix of the kernel.

    XLA's CPU compiler leaves a window to plain loops that is larger than what it slides over. So is one of 3x3 on the
    2x2 pixels of VGG's last stage (CIFAR-10), where this is 100 times as fast; and in the kernel's gradient, where the
    output slides over the images, that of `by_phases`: 15 times.
    """
    patches = jnp.concatenate([*_seen(x, kernel.shape[:2], window)], -1)
    return _product(patches, kernel.reshape(-1, kernel.shape[-1]))


def of_patches_by_kernel(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "kernel_height kernel_width channels features"],
    window: Window,
) -> Float[Array, "batch out_height out_width features"]:
    """Multiplies the patches of one image after the other: the gradient of the kernel is 1.6 times as fast.

    All images' patches fill 14 MB and more, for 2x2 taps and 64 channels, [16, 28, 28]. Small images are multiplied
    together, since it takes some hundreds of pixels to make a product fast.
    """
    form = partial(of_patches, window=window)
    return _image_by_image(form, x, kernel) if math.prod(x.shape[1:3]) >= 512 else form(x, kernel)


def _seen(
    x: Float[Array, "batch height width channels"], kernel_size: Sequence[int], window: Window
) -> Iterator[Float[Array, "batch out_height out_width channels"]]:
    """Yields what each tap of a kernel sees, row by row."""
    sizes = map(output_size, x.shape[1:3], kernel_size, window.strides, window.widths, window.dilation)
    height, width = (stride * (size - 1) + 1 for stride, size in zip(window.strides, sizes, strict=True))
    x = jnp.pad(x, ((0, 0), *window.widths, (0, 0)))
    for index in range(math.prod(kernel_size)):
        top = window.dilation[0] * (index // kernel_size[1])
        left = window.dilation[1] * (index % kernel_size[1])
        yield x[:, top : top + height : window.strides[0], left : left + width : window.strides[1]]


def turned(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "kernel_height kernel_width channels features"],
    window: Window,
) -> Float[Array, "batch out_height out_width features"]:
    """Convolves by a kernel whose transpose has its channels in the order that is fast, without groups.

    XLA for CPUs runs convolutions fast whose kernels have the features last. It turns others, but not inside of loops,
    where the gradient of the images took 12 times as long (ResNet-20, batch 30, in `lax.scan`).
    """
    return lax.conv_general_dilated(
        x,
        kernel.swapaxes(2, 3),
        window.strides,
        window.widths,
        rhs_dilation=window.dilation,
        dimension_numbers=("NHWC", "HWOI", "NHWC"),
    )


def stored(x: Array) -> Array:
    """Returns its input, past which XLA fuses nothing.

    On a CPU the gradient of the kernel wants the images with the batch innermost. XLA fuses this transposition with the
    layers that made the images, norm and activation, and computes them once more in an order that misses the cache at
    each value. From memory, a training step of ResNet-20 is 1.4 times as fast (batch 128).
    An optimization barrier does not do: XLA's CPU compiler drops it before it fuses.
    """
    with set_xla_metadata(inlineable="false"):
        return jax.jit(lambda x: x + 0)(x)
