"""TFDS splits as random-access sources, read without TensorFlow."""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core import read_only_builder, registered
from tensorflow_datasets.core.data_sources import array_record
from tensorflow_datasets.proto import tf_example_pb2

from cnn_research.data import embedded
from cnn_research.errors import UserError, nearest

SMALL_FILE = 2**14  # bytes
# What may be known of objects, and how it is stored.
OBJECTS = {
    **{"bbox": "float_list", "label": "int64_list"},
    **{"is_difficult": "int64_list", "is_crowd": "int64_list", "area": "int64_list"},
}


@runtime_checkable
class Examples(Protocol):
    """Random access, as TFDS's data sources give it."""

    def __len__(self) -> int:
        """Returns the number of examples."""
        ...

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns an example."""
        ...

    def __getitems__(self, indices: Sequence[int]) -> Sequence[dict[str, Any]]:
        """Returns many examples at once."""
        ...


@dataclasses.dataclass(frozen=True)
class Source:
    """One split of a prepared data set.

    Attributes:
      name: the data set's name as it was asked for.
      split: with TFDS's slicing, such as `train[:90%]`.
      examples: random access to the examples; images are still encoded.
      features: TFDS's description of an example.
      image: the feature that holds the images, which is `image` in what `read` yields.
    """

    name: str
    split: str
    examples: Examples
    features: tfds.features.FeaturesDict
    image: str = "image"

    def __len__(self) -> int:
        """Returns the number of examples."""
        return len(self.examples)

    def read(self, indices: Sequence[int], mask: str = "", objects: bool = False) -> Iterator[dict[str, Any]]:
        """Yields the image files (`image`), labels, masks and objects of examples; more only of other formats.

        A list of MNIST's records takes a quarter of the time that they take one by one. A list of photographs takes
        three times as much: ArrayRecord starts threads for it, and what it reads has left the cache when it is decoded.

        Args:
          indices: of the examples, one or more; the size of the first one's file decides.
          mask: the feature of the masks; none unless given.
          objects: whether to read `objects`, see `data.objects`.

        Raises:
          UserError: the files are damaged.
        """
        records: Any = self.examples
        parse: Callable[[Any], dict[str, Any]] = self._renamed
        if isinstance(records, array_record.ArrayRecordDataSource):
            records, parse = records.data_source, functools.partial(_parse, self.image, mask, objects)
        with embedded.undamaged(f"split {self.split!r} of data set {self.name!r}"):
            first = parse(records[indices[0]])
            if len(first["image"]) < SMALL_FILE:
                yield from map(parse, records.__getitems__(list(indices)))
            else:
                yield first
                yield from map(parse, map(records.__getitem__, indices[1:]))

    def _renamed(self, example: dict[str, Any]) -> dict[str, Any]:
        return {**example, "image": example[self.image]}

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes of `label`; empty where the examples have none."""
        return _names(self.features)

    @property
    def object_names(self) -> tuple[str, ...]:
        """Names of the classes of the `label` of `objects`; empty where the examples have none."""
        return _names(self.features["objects"].feature) if "objects" in self.features else ()


def _names(features: Any) -> tuple[str, ...]:
    label = features["label"] if "label" in features else None  # noqa: SIM401 - it has no `get`
    return tuple(label.names) if isinstance(label, tfds.features.ClassLabel) else ()


def folders(data_dir: str = "") -> Iterator[epath.Path]:
    """Yields the folders that data sets are looked for in: the first is also where they are prepared.

    Args:
      data_dir: the only folder, if given; else TFDS's own (`TFDS_DATA_DIR`, or `~/tensorflow_datasets`) and then those
        that `CNN_RESEARCH_DATA_DIRS` lists, separated as in `PATH`, which are only read.
    """
    if data_dir:
        yield epath.Path(data_dir).expanduser()
        return
    yield epath.Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    for folder in filter(None, os.environ.get("CNN_RESEARCH_DATA_DIRS", "").split(os.pathsep)):
        yield epath.Path(folder).expanduser()


def find(name: str, data_dir: str = "") -> tfds.core.DatasetBuilder:
    """Finds a prepared data set; `digits` and `shapes` are prepared when they are first asked for.

    Args:
      name: a TFDS name (`mnist`, `voc/2012`, `imagenet2012:5.*.*`), an embedded set, or a directory that a TFDS builder
        prepared.
      data_dir: see `folders`.

    Raises:
      UserError: there is no such data set; the message says where it was looked for.
    """
    if not name:
        raise UserError("data.name is empty; give a TFDS name such as mnist, or the path of a prepared directory")
    if name.split("/")[0] in embedded.NAMES:
        return embedded.prepare(name, next(folders(data_dir)))
    if (epath.Path(name).expanduser() / "dataset_info.json").exists():
        with embedded.undamaged(f"data set {name!r}"):
            return tfds.builder_from_directory(epath.Path(name).expanduser())
    for folder in folders(data_dir):
        try:
            with embedded.undamaged(f"data set {name!r} in {folder}", ValueError):
                return read_only_builder.builder_from_files(name, data_dir=folder)
        except registered.DatasetNotFoundError:
            continue
        except ValueError as error:  # a name that TFDS cannot parse
            raise UserError(
                f"data.name={name!r} is neither a TFDS name such as mnist or voc/2012,"
                " nor a directory that holds a prepared data set (with its dataset_info.json)"
            ) from error
    searched = list(folders(data_dir))
    raise UserError(
        f"no prepared data set {name!r} in {', '.join(map(str, searched))}; {nearest(name, _prepared(searched))}"
        f" (a catalogue set is prepared by: python -m experiments.prepare_data --dataset={name})"
    )


def _prepared(searched: Iterable[epath.Path]) -> set[str]:
    """Names of the data sets there are: they lie in `name/version` or `name/config/version`."""
    infos = [
        info.relative_to(folder).parts[:-2]
        for folder in searched
        for versions in ("*/*", "*/*/*")
        for info in folder.glob(f"{versions}/dataset_info.json")
    ]
    return {*map("/".join, infos), *embedded.NAMES}


def open_source(name: str, split: str, data_dir: str = "", image: str = "image") -> Source:
    """Opens a split of a prepared data set.

    Args:
      name: see `find`.
      split: a split or a slice of one: `train`, `train[:90%]`, `train+validation`.
      data_dir: see `folders`.
      image: the feature that holds the images.

    Raises:
      UserError: no such data set or split, a format without random access, or an empty split.
    """
    builder = find(name, data_dir)
    images = {key: tfds.decode.SkipDecoding() for key, feature in builder.info.features.items() if _is_image(feature)}
    try:
        examples = builder.as_data_source(split=split, decoders=images)
    except NotImplementedError as error:
        raise UserError(
            f"data set {name!r} is stored without random access; prepare it again as ArrayRecord:"
            f" python -m experiments.prepare_data --dataset={name}"
        ) from error
    except (ValueError, AssertionError) as error:
        known = ", ".join(f"{key} ({info.num_examples})" for key, info in builder.info.splits.items())
        raise UserError(f"data set {name!r} has no examples in split {split!r}; its splits are {known}") from error
    return Source(name, split, examples, builder.info.features, image)


def _parse(image: str, mask: str, objects: bool, record: bytes) -> dict[str, Any]:
    """Reads what is needed; TFDS takes 12 µs more for MNIST's, and 20 to 100 for a photograph's and all that it has."""
    features = tf_example_pb2.Example.FromString(record).features.feature
    example: dict[str, Any] = {"image": features[image].bytes_list.value[0]}
    if mask:
        example[mask] = features[mask].bytes_list.value[0]
    if objects:
        example["objects"] = {
            name: getattr(features[f"objects/{name}"], kind).value
            for name, kind in OBJECTS.items()
            if f"objects/{name}" in features
        }
    return example | {"label": features["label"].int64_list.value[0]} if "label" in features else example


def _is_image(feature: Any) -> bool:
    return isinstance(feature, tfds.features.Image)
