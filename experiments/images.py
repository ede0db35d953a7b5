"""Images that the command line names, and pictures that scripts draw."""

import glob
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

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


def save(figure: Any, path: epath.Path) -> None:
    """Writes a figure as a PNG, also into a bucket.

    Args:
      figure: of matplotlib, which takes half a second to import and so is not named here.
      path: of the file.
    """
    with path.open("wb") as file:
        figure.savefig(file, format="png", dpi=110)
