"""Selective search: boxes that may hold objects, from the colours and textures of an image alone.

Uijlings et al. 2013, "Selective search for object recognition", doi:10.1007/s11263-013-0620-5, by OpenCV. R-CNN
(Girshick et al. 2014, arXiv:1311.2524, section 2.1) takes the fast mode, in images 500 pixels wide.
"""

import dataclasses

import cv2
import numpy as np
from jaxtyping import Float32, UInt8, UInt16

from cnn_research.data.order import permutation
from cnn_research.errors import UserError, nearest

MODES = ("fast", "quality")
UNIT = np.float32(2**16 - 1)

Corners = UInt16[np.ndarray, "regions 4"]  # ymin, xmin, ymax, xmax in 65,535ths of the image's sides


@dataclasses.dataclass(frozen=True)
class SelectiveSearch:
    """A search: a pure function of an image.

    Attributes:
      mode: `fast`, 2 colour spaces and 2 scales, or `quality`, 5 and 4, which takes three times as long.
      width: a wider image is made this wide before; the time grows faster than its area.
    """

    mode: str = "fast"
    width: int = 500

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UserError(f"selective search has no mode {self.mode!r}; {nearest(self.mode, MODES)}")
        if self.width < 1:
            raise UserError(f"selective search in images {self.width} pixels wide finds nothing; 500 is R-CNN's")

    def __call__(self, image: UInt8[np.ndarray, "height width channels"]) -> Corners:
        """Returns the boxes of an image, each once, in a fixed random order.

        OpenCV finds the same boxes each time but ranks them by C's `rand`, which Python cannot seed. To keep the first
        ones of this order costs no more recall than to keep those of OpenCV's.

        Args:
          image: grey or RGB.
        """
        height, width, channels = image.shape
        if width > self.width:
            size = self.width, max(1, round(height * self.width / width))
            image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
        search.setBaseImage(cv2.cvtColor(image, cv2.COLOR_GRAY2BGR if channels == 1 else cv2.COLOR_RGB2BGR))
        if self.mode == "fast":
            search.switchToSelectiveSearchFast()
        else:
            search.switchToSelectiveSearchQuality()
        left, top, wide, tall = np.unique(search.process(), axis=0).astype(np.float64).T
        corners = np.stack([top, left, top + tall, left + wide], axis=1) / np.tile(image.shape[:2], 2)
        return np.round(corners * UNIT).astype(np.uint16)[permutation(len(corners), seed=0, epoch=0)]


def as_boxes(corners: Corners) -> Float32[np.ndarray, "regions 4"]:
    """Returns boxes in 0..1 of the image."""
    return corners / UNIT
