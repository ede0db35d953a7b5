"""How far apart objects lie at each pixel between them, for a loss that keeps them apart.

Ronneberger et al. 2015, arXiv:1505.04597, eq. 2, weighs pixels by the distances to the nearest and to the second
nearest object. They depend on the mask alone, so the host works them out once, and the device moves them with the mask.
"""

import cv2
import numpy as np
from jaxtyping import Float16, Float32, UInt8

from cnn_research.data.images import IGNORE

REACH = 64  # pixels; at ten times the paper's σ the weight has long been nothing

Distance = Float32[np.ndarray, "height width"]


def border_distance(mask: UInt8[np.ndarray, "height width 1"]) -> Float16[np.ndarray, "height width 1"]:
    """Returns the distances to the two nearest objects, added, where nothing but they is near.

    Args:
      mask: 0 on the ground, 255 where nothing is known. Objects are 4-connected regions of one other class.

    Returns:
      In pixels, on the ground; infinite elsewhere, and where there are no two objects within reach.
    """
    nearest, second = nearest_two(mask)
    return np.where(mask == 0, (nearest + second)[..., None], np.inf).astype(np.float16)


def nearest_two(mask: UInt8[np.ndarray, "height width 1"]) -> tuple[Distance, Distance]:
    """Returns each pixel's distances to the nearest and the second nearest object, in pixels between centres.

    Args:
      mask: see `border_distance`.

    Returns:
      Infinite, or over 64 pixels, where there is no object within 64 pixels along an axis.
    """
    nearest, second = (np.full(mask.shape[:2], np.inf, np.float32) for _ in range(2))
    for value in np.setdiff1d(mask, [0, IGNORE]):
        count, regions, boxes, _ = cv2.connectedComponentsWithStats((mask == value).astype(np.uint8), connectivity=4)
        for index in range(1, count):
            left, top, width, height = boxes[index, :4]
            rows = slice(max(top - REACH, 0), top + height + REACH)
            columns = slice(max(left - REACH, 0), left + width + REACH)
            elsewhere = (regions[rows, columns] != index).astype(np.uint8)
            distance = cv2.distanceTransform(elsewhere, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
            one, two = nearest[rows, columns], second[rows, columns]
            two[...] = np.minimum(two, np.maximum(one, distance))
            one[...] = np.minimum(one, distance)
    return nearest, second
