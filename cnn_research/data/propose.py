"""Proposals of whole splits: searched on all cores, where they were not before."""

import concurrent.futures
import os
from collections.abc import Iterator

import cv2
import numpy as np

from cnn_research.data import proposals
from cnn_research.data.batches import describe
from cnn_research.data.images import CorruptImageError, decode
from cnn_research.data.proposals import Proposals
from cnn_research.data.selective_search import Corners
from cnn_research.data.sources import Source
from cnn_research.errors import UserError

STORED = 2000  # of an image at most, in files as in R-CNN
PART = 200  # images of a file


def search_split(
    source: Source, wanted: Proposals, workers: int = 0, shard: tuple[int, int] = (0, 1), skip_corrupt: bool = False
) -> Iterator[int]:
    """Searches those images of a split that were not searched before; yields how many are done, file by file.

    Args:
      source: the split.
      wanted: where to write, and how to search.
      workers: threads, which suffice since OpenCV releases Python's lock; 0: one for each core.
      shard: which part of how many; others may be at work at theirs.
      skip_corrupt: whether there is nothing in an image that cannot be decoded.

    Raises:
      UserError: an image cannot be decoded, or the folder cannot be written.
    """

    def search(index: int, encoded: bytes) -> Corners:
        try:
            image = decode(encoded, channels=3)
        except CorruptImageError as error:
            if not skip_corrupt:
                raise UserError(f"{describe(source, index)}: {error}; --skip_corrupt leaves such images out") from error
            return np.empty((0, 4), np.uint16)
        return wanted.search(image)[:STORED]

    known = proposals.load(wanted.folder).keys()
    indices = range(shard[0], len(source), shard[1])
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # the cores are taken
    try:
        with concurrent.futures.ThreadPoolExecutor(workers or os.cpu_count()) as pool:
            for begin in range(0, len(indices), PART):
                part = indices[begin : begin + PART]
                read = zip(part, source.read(part), strict=True)
                images = {proposals.digest(each["image"]): (index, each["image"]) for index, each in read}
                new = {digest: image for digest, image in images.items() if digest not in known}
                if new:
                    found = pool.map(search, *zip(*new.values(), strict=True))
                    proposals.write(wanted.folder, dict(zip(new, found, strict=True)))
                yield begin + len(part)
    finally:
        cv2.setNumThreads(threads)


def is_searched(source: Source, wanted: Proposals) -> bool:
    """Tells whether all images of a split were searched."""
    return all(wanted.find(each["image"]) is not None for each in source.read(range(len(source))))
