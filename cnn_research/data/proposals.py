"""Proposals in files: the boxes that a search found in images, by a digest of the image's bytes.

What is found of an image depends on the image and the search alone. So the files know nothing of splits: any slice of
any of them, and every copy of the data set, finds its images. Many machines may write into one folder; a file is there
at once and whole, named after the images that it holds. They are NumPy's `.npz`, an array a column, which is all that a
table of boxes needs: they are read once, all of them, and looked up in memory.
"""

import dataclasses
import functools
import hashlib
import io
import itertools
import os
from collections.abc import Mapping

import numpy as np
from etils import epath

from cnn_research.data.selective_search import Corners, SelectiveSearch
from cnn_research.data.sources import folders
from cnn_research.errors import UserError


@dataclasses.dataclass(frozen=True)
class Proposals:
    """Where a data set's proposals lie, and how they were found.

    Attributes:
      folder: of the files.
      search: that finds them.
      count: how many of an image a batch has room for; the first ones are taken.
    """

    folder: str
    search: SelectiveSearch
    count: int

    @property
    def base(self) -> str:
        """The folder of all proposals."""
        return str(epath.Path(self.folder).parent.parent)

    def find(self, encoded: bytes) -> Corners | None:
        """Returns what was found in an image; None where it was not searched.

        Args:
          encoded: the image's file.
        """
        return load(self.folder).get(digest(encoded))


def open_proposals(name: str, search: SelectiveSearch, count: int, base: str = "", data_dir: str = "") -> Proposals:
    """Returns a data set's proposals.

    Args:
      name: of the data set, as configs have it.
      search: that finds them.
      count: regions of an image.
      base: the folder of all proposals; `proposals` among the data sets that are prepared here unless given.
      data_dir: see `sources.folders`.
    """
    root = epath.Path(base).expanduser() if base else next(folders(data_dir)) / "proposals"
    folder = name.strip("/").replace("/", "_")
    if not folder.strip("."):  # `..` is a directory, too
        folder = folder.replace(".", "_")
    return Proposals(str(root / folder / f"{search.mode}_{search.width}"), search, count)


def digest(encoded: bytes) -> int:
    """Returns 64 bits of the BLAKE2 hash of an image's file."""
    return int.from_bytes(hashlib.blake2b(encoded, digest_size=8).digest(), "big")


@functools.cache
def load(folder: str) -> dict[int, Corners]:
    """Returns what the files of a folder hold, by digest; for as long as the process lives, or `write` is called.

    Raises:
      UserError: a file is damaged.
    """
    known: dict[int, Corners] = {}
    for path in sorted(epath.Path(folder).glob("*.npz")):
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as columns:
                digests, counts, corners = (columns[name] for name in ("digests", "counts", "corners"))
        except Exception as error:  # those of zipfile, zlib and NumPy are of many kinds
            raise UserError(f"{path} is damaged: {error}; remove it and make its proposals again") from error
        ends = itertools.accumulate(counts.tolist())
        for each, count, end in zip(digests.tolist(), counts.tolist(), ends, strict=True):
            known[each] = corners[end - count : end]
    return known


def write(folder: str, found: Mapping[int, Corners]) -> None:
    """Adds a file, at once.

    Args:
      folder: of the files; made if it is not there.
      found: in images, by digest; one at least.

    Raises:
      UserError: the folder cannot be written.
    """
    digests = np.array([*found], np.uint64)
    counts = np.array([len(corners) for corners in found.values()], np.int32)
    content = io.BytesIO()
    np.savez_compressed(content, digests=digests, counts=counts, corners=np.concatenate([*found.values()]))
    path = epath.Path(folder) / f"{digest(digests.tobytes()):016x}.npz"
    unfinished = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_bytes(content.getvalue())
        unfinished.replace(path)
    except OSError as error:
        raise UserError(f"cannot write proposals to {folder}: {error}; give a folder to write in") from error
    load.cache_clear()
