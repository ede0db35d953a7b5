"""Prepares a data set for training, once: downloads it and writes it as ArrayRecord.

python -m experiments.prepare_data --dataset=cifar10
python -m experiments.prepare_data --dataset=imagenet2012 --data_dir=gs://bucket/tfds --manual_dir=~/downloads \
    --beam_options=runner=DataflowRunner,project=my-project,region=us-central1,temp_location=gs://bucket/tmp

python -m experiments.prepare_data --dataset=voc_segmentation --manual_dir=VOCdevkit/VOC2012
python -m experiments.prepare_data --dataset=coco_instances --manual_dir=COCO_2017

Sets of TFDS's catalogue need the extra `prepare` (`pip install -e .[prepare]`); training then does not. `digits` and
`shapes` need nothing, and training prepares them by itself; `voc_segmentation` and `coco_instances` need the folders
of VOC's and COCO's archives.
"""

import importlib.util
import json

import tensorflow_datasets as tfds
from absl import flags

from cnn_research.data import coco, embedded, voc_segmentation
from cnn_research.data.sources import folders
from cnn_research.errors import UserError, nearest
from experiments import command_line

_DATASET = flags.DEFINE_string(
    "dataset", "", "a name of TFDS's catalogue, or digits, shapes, voc_segmentation or coco_instances"
)
_DATA_DIR = flags.DEFINE_string("data_dir", "", "the folder to write to; TFDS's own unless given")
_MANUAL_DIR = flags.DEFINE_string("manual_dir", "", "where archives lie that must be downloaded by hand (imagenet2012)")
_BEAM_OPTIONS = flags.DEFINE_list(
    "beam_options", [], "Apache Beam's, for sets that are prepared on a cluster: name=value"
)


def prepare(name: str, data_dir: str, manual_dir: str, beam_options: list[str]) -> tfds.core.DatasetBuilder:
    """Prepares a data set, unless it is there.

    Raises:
      UserError: the name is unknown, or a library that preparing needs is missing.
    """
    folder = next(folders(data_dir))
    if name.split("/")[0] in embedded.NAMES:
        return embedded.prepare(name, folder)
    if name == voc_segmentation.VocSegmentation.name:
        return voc_segmentation.prepare(folder, manual_dir)
    if name == coco.CocoInstances.name:
        return coco.prepare(folder, manual_dir)
    known = [*tfds.list_builders(with_community_datasets=False), *embedded.NAMES]
    base = name.split("/")[0].split(":")[0]
    if base not in known:
        raise UserError(f"--dataset={name} is not in TFDS's catalogue; {nearest(base, known)}")
    _need("tensorflow", 'pip install -e ".[prepare]"')
    beam = None
    if beam_options:
        _need("apache_beam", "pip install apache-beam")
        from apache_beam.options.pipeline_options import PipelineOptions

        beam = PipelineOptions(flags=[f"--{option}" for option in beam_options])
    builder = tfds.builder(name, data_dir=folder, file_format="array_record")
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=manual_dir or None, beam_options=beam)
    )
    return builder


def _need(module: str, command: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise UserError(f"preparing this data set needs {module}: {command}")


def main() -> None:
    """Prepares and prints what there is, as one JSON object."""
    command_line.require("dataset")
    builder = prepare(_DATASET.value, _DATA_DIR.value, _MANUAL_DIR.value, _BEAM_OPTIONS.value)
    splits = {name: split.num_examples for name, split in builder.info.splits.items()}
    print(json.dumps({"dataset": builder.info.full_name, "directory": str(builder.data_dir), "splits": splits}))


if __name__ == "__main__":
    command_line.run(main)
