"""Discrete convolution in the mathematical sense, in one and two dimensions, and the kernels that courses show.

A signal m and a kernel a give

  (m ∗ a)[k] = Σ_i m[k + i] · a[−i].

Reading the kernel backwards is what makes convolution an algebra, where m and a are 0 beyond their ends and all of the
result is kept (`full`), or where m is one period of a cyclic signal (`same` with `circular` padding):

* linear: (x + c·y) ∗ a = x ∗ a + c·(y ∗ a), and the same in a;
* commutative: m ∗ a = a ∗ m; cyclic, where both have one size, the period;
* associative: (m ∗ a) ∗ b = m ∗ (a ∗ b), with a ∗ b in `full`; cyclic, off by one place along an axis on which both
  kernels are even, since neither has a middle there.

Linear it is in every mode, since all paddings are. `same` breaks the other two at the borders: it cuts off what the
first kernel would have written beyond them, and padding then makes up other values for the second. With `zeros` and
`edge` (m ∗ a) ∗ b differs from m ∗ (a ∗ b) in a frame as wide as b reaches. With `reflect` and `symmetric` as well,
unless `a` is odd and its own mirror image along each axis, as blurs are: the blurred mirror image is the blurred
image's mirror image then.

Cross-correlation, Σ_i m[k + i] · a[i], reads the kernel forwards; it is linear, neither commutative nor associative,
and what convolutional networks compute (`cnn_research.ops.convolution`): a learned kernel does not mind being turned.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Real
from numpy.typing import ArrayLike

from cnn_research.errors import UserError, nearest
from cnn_research.ops.geometry import output_size
from cnn_research.ops.padding import pad

# By mode: what a kernel of some extent is to see beyond an axis, (before, after).
WIDTHS = {
    "full": lambda extent: (extent - 1, extent - 1),
    "same": lambda extent: (extent // 2, (extent - 1) // 2),
    "valid": lambda extent: (0, 0),
}


def convolve1d(
    x: Real[Array | np.ndarray, " size"],
    kernel: Real[Array | np.ndarray, " kernel_size"],
    mode: str = "full",
    padding: str = "zeros",
) -> Float[Array, " out_size"]:
    """Convolves a signal with a kernel; see `convolve2d`.

    >>> convolve1d(np.array([0, 1, 0, 0, 2]), np.array([3, 2, 1])).tolist()
    [0.0, 3.0, 2.0, 1.0, 6.0, 4.0, 2.0]
    """
    return convolve2d(x[None], kernel[None], mode, padding)[0]


def correlate1d(
    x: Real[Array | np.ndarray, " size"],
    kernel: Real[Array | np.ndarray, " kernel_size"],
    mode: str = "full",
    padding: str = "zeros",
) -> Float[Array, " out_size"]:
    """Correlates a signal with a kernel; see `convolve2d`.

    >>> correlate1d(np.array([0, 1, 0, 0, 2]), np.array([3, 2, 1])).tolist()
    [0.0, 1.0, 2.0, 3.0, 2.0, 4.0, 6.0]
    """
    return correlate2d(x[None], kernel[None], mode, padding)[0]


def convolve2d(
    image: Real[Array | np.ndarray, "height width *channels"],
    kernel: Real[Array | np.ndarray, "kernel_height kernel_width"],
    mode: str = "same",
    padding: str = "zeros",
) -> Float[Array, "out_height out_width *channels"]:
    """Convolves an image, each channel by itself, with a kernel that is read backwards.

    Args:
      image: one image, without or with an axis of channels; `jax.vmap` takes several.
      kernel: of any size, larger than the image too, as far as mode and padding allow.
      mode: `full`: wherever the kernel touches the image, I + K − 1 values along an axis; `same`: the middle I of them,
        where K is even the earlier ones, as in NumPy's and SciPy's `convolve`; `valid`: the I − K + 1 that need no
        padding.
      padding: what the kernel sees beyond the border: zeros, edge, reflect, symmetric or circular.

    Returns:
      float32, or float64 where an argument is.

    Raises:
      UserError: the mode or the padding is not known, the kernel has no values or does not fit, a mirror or a cycle
        would need more values than the image has, or the image has other axes.
    """
    return correlate2d(image, kernel[::-1, ::-1], mode, padding)


def correlate2d(
    image: Real[Array | np.ndarray, "height width *channels"],
    kernel: Real[Array | np.ndarray, "kernel_height kernel_width"],
    mode: str = "same",
    padding: str = "zeros",
) -> Float[Array, "out_height out_width *channels"]:
    """Correlates an image, each channel by itself, with a kernel that is read as it stands.

    Arguments, result and errors are those of `convolve2d`.
    """
    if mode not in WIDTHS:
        raise UserError(f"mode {mode!r} is not known; {nearest(mode, WIDTHS)}")
    if image.ndim not in (2, 3):
        raise UserError(f"an image of shape {image.shape} is none; it is [height, width] or [height, width, channels]")
    if 0 in kernel.shape:
        raise UserError(f"a kernel of shape {kernel.shape} has no values; it must have one at least")
    dtype = jnp.promote_types(jnp.result_type(image, kernel), jnp.float32)
    widths = (*map(WIDTHS[mode], kernel.shape), (0, 0))[: image.ndim]
    padded = pad(jnp.asarray(image, dtype), widths, padding)
    for size, extent in zip(padded.shape, kernel.shape, strict=False):
        output_size(size, extent)
    # The channels become a batch, since none is to see another.
    planes = jnp.atleast_3d(padded).transpose(2, 0, 1)[:, None]
    kernels = jnp.asarray(kernel, dtype)[None, None]
    # By default accelerators round float32 to eight or eleven bits, of which a pixel alone takes eight.
    result = lax.conv(planes, kernels, (1, 1), "VALID", precision=lax.Precision.HIGHEST)[:, 0]
    return result.transpose(1, 2, 0).reshape(*result.shape[1:], *image.shape[2:])


def box(size: int) -> Float[np.ndarray, "size size"]:
    """Returns the kernel that takes the mean over a square of `size` pixels a side.

    Raises:
      UserError: the size is less than 1.
    """
    _check_size(size)
    return np.full((size, size), 1 / size**2, np.float32)


def gaussian(size: int, sigma: float | Float[Array, ""]) -> Float[Array, "size size"]:
    """Returns a Gaussian bell, sampled at the pixels' centres and with sum 1; it is the outer product of two in 1-D.

    Args:
      size: of its sides, in pixels; 6·sigma + 1 or more holds nearly all of the bell.
      sigma: standard deviation in pixels; it may be traced, and differentiated by.

    Raises:
      UserError: the size is less than 1, or sigma is not more than 0.
    """
    _check_size(size)
    if not isinstance(sigma, jax.core.Tracer) and not sigma > 0:
        raise UserError(f"sigma={sigma} is out of range; it must be more than 0")
    positions = jnp.arange(size) - (size - 1) / 2
    weights = jax.nn.softmax(-jnp.square(positions / sigma) / 2)
    return jnp.outer(weights, weights)


def sobel_magnitude(
    image: Real[Array | np.ndarray, "height width *channels"], mode: str = "same", padding: str = "zeros"
) -> Float[Array, "out_height out_width *channels"]:
    """Returns how steep the image is whatever the direction: √(x² + y²) of the two Sobel filters' results.

    Its derivative is taken as 0 where the image is flat and it has none.

    Arguments, result and errors are those of `convolve2d`.
    """
    horizontal, vertical = (convolve2d(image, kernel, mode, padding) for kernel in (SOBEL_X, SOBEL_Y))
    squared = jnp.square(horizontal) + jnp.square(vertical)
    steep = squared > 0
    # The inner `where` keeps the root's infinite derivative at 0 out of the gradient, where 0 times it is NaN.
    return jnp.where(steep, jnp.sqrt(jnp.where(steep, squared, 1)), 0)


def _check_size(size: int) -> None:
    if size < 1:
        raise UserError(f"size={size} is out of range; it must be 1 or more")


def _constant(rows: ArrayLike) -> Float[np.ndarray, "height width"]:
    kernel = np.array(rows, np.float32)
    kernel.setflags(write=False)
    return kernel


BLUR = _constant(box(3))

# The Laplacian, ∂²/∂x² + ∂²/∂y² by second differences, and the one that looks along both diagonals too.
EDGE = _constant([[0, 1, 0], [1, -4, 1], [0, 1, 0]])
EDGE_8 = _constant([[1, 1, 1], [1, -8, 1], [1, 1, 1]])

# The image less its Laplacian: what differs from its surroundings, differs more.
SHARPEN = _constant([[0, -1, 0], [-1, 5, -1], [0, -1, 0]])

# Differences along one axis of means along the other. As convolution reads them backwards, they are positive where the
# image brightens to the right and downwards; on a slope of 1 a pixel they give 8.
SOBEL_X = _constant([[1, 0, -1], [2, 0, -2], [1, 0, -1]])
SOBEL_Y = _constant([[1, 2, 1], [0, 0, 0], [-1, -2, -1]])
