"""The embedded data sets, `digits` and `shapes`, prepared where they are missing; without network and TensorFlow."""

import contextlib
import io
import sys
import tempfile
from collections.abc import Iterator

import filelock
import tensorflow_datasets as tfds
from absl import logging
from etils import epath

from cnn_research.data import digits, shapes
from cnn_research.errors import UserError, nearest

NAMES = ("digits", "shapes")


def builder(name: str, data_dir: epath.PathLike) -> tfds.core.DatasetBuilder:
    """Returns the builder of an embedded data set; nothing is written.

    Args:
      name: `digits`, `shapes`, or `shapes/` and a text for `shapes.shapes_config`.
      data_dir: the folder of data sets that holds it or will.

    Raises:
      UserError: there is no such data set or config.
    """
    base, _, text = name.partition("/")
    if base not in NAMES:
        raise UserError(f"no embedded data set {base!r}; {nearest(base, NAMES)}")
    with quiet(), undamaged(f"data set {name!r} in {data_dir}"):
        if base == "digits":
            if text:
                raise UserError(f"digits has no configs, but was asked for {name!r}; give digits alone")
            return digits.Digits(data_dir=data_dir)
        config = shapes.shapes_config(text)
        # TFDS refuses another object with the name of a config that it knows.
        return shapes.Shapes(data_dir=data_dir, config=shapes.Shapes.builder_configs.get(config.name, config))


def prepare(name: str, data_dir: epath.PathLike) -> tfds.core.DatasetBuilder:
    """Returns the builder of an embedded data set that is ready to be read; prepares it if need be.

    Several processes may call this at once, on one machine or on several whose shared file system has locks: one
    prepares, the others wait. A bucket has no locks: there, let one process prepare. What a killed process has left
    half-written is removed.

    Args:
      name: see `builder`.
      data_dir: see `builder`.

    Raises:
      UserError: there is no such data set or config, or the folder cannot be written.
    """
    with quiet():
        made = builder(name, data_dir)
        if made.is_prepared():
            return made
        try:
            # TFDS makes a folder for downloads, though there are none.
            with _locked(made.data_path), tempfile.TemporaryDirectory() as downloads:
                made = builder(name, data_dir)  # another process may have prepared it while this one waited
                if not made.is_prepared():
                    made.download_and_prepare(file_format="array_record", download_dir=downloads)
        except OSError as error:
            raise UserError(f"cannot prepare {name} in {data_dir}: {error}; give a folder to write in") from error
        return made


@contextlib.contextmanager
def undamaged(what: str, *known: type[Exception]) -> Iterator[None]:
    """Says in one line what libraries, each in its own way, find wrong in damaged files.

    Args:
      what: is read.
      *known: exceptions that mean something else.

    Raises:
      UserError: the files are damaged.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, (UserError, OSError, ImportError, *known)):
            raise
        raise UserError(f"{what} is damaged: {type(error).__name__}: {error}; prepare it again") from error


@contextlib.contextmanager
def _locked(path: epath.Path) -> Iterator[None]:
    """Holds the lock of a data set's directory, and removes what was left half-written in its place."""
    if "://" in str(path):
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(path.parent / f".{path.name}.lock"):
        for abandoned in path.parent.glob(f"{tfds.core.constants.INCOMPLETE_PREFIX}*_{path.name}"):
            abandoned.rmtree()
        yield


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences TFDS's prints and warnings, and its progress bars where they would not be on a terminal."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)
