"""The runs that a command line names."""

import glob

from etils import epath

from cnn_research.errors import UserError


def find_runs(patterns: str) -> dict[str, epath.Path]:
    """Returns the directories of networks' runs by short names: their own, or whole paths where two have the same.

    Args:
      patterns: globs with commas between; what has no checkpoints, such as a sweep's table or a run of `hog_svm`, is
        passed over.

    Raises:
      UserError: a glob matches no run.
    """
    found: dict[str, epath.Path] = {}
    for pattern in filter(None, patterns.split(",")):
        paths = [epath.Path(path) for path in sorted(glob.glob(pattern, recursive=True))]
        paths = [path for path in paths if (path / "config.json").exists() and (path / "checkpoints").exists()]
        if not paths:
            raise UserError(f"--runs={pattern}: no directory of a run with a checkpoint matches")
        found |= {str(path): path for path in paths}
    unique = len({path.name for path in found.values()}) == len(found)
    return {path.name if unique else str(path): path for path in found.values()}
