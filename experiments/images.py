"""Images that the command line names."""

import glob
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cnn_research.data.images import decode
from cnn_research.errors import UserError

# Name, image, and what is true: a label, boxes and their labels, or the classes of pixels; None where it is not known.
Example = tuple[str, np.ndarray, Any]


def from_files(pattern: str, count: int, channels: int, class_names: tuple[str, ...]) -> Iterator[Example]:
    """Yields images of files; their true label is the folder's name, where that is a class.

    Args:
      pattern: a glob.
      count: images at most.
      channels: 1 or 3.
      class_names: of the run.

    Raises:
      UserError: no file matches, or one is no image.
    """
    paths = sorted(filter(lambda path: Path(path).is_file(), glob.glob(pattern, recursive=True)))
    if not paths:
        raise UserError(f"--images={pattern}: no file matches")
    for path in map(Path, paths[:count]):
        folder = path.absolute().parent.name
        try:
            image = decode(path.read_bytes(), channels)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        yield str(path), image, class_names.index(folder) if folder in class_names else None
