"""Finds regions that may hold objects, once, for networks that are given them: `fast_rcnn` and `rcnn`.

python -m experiments.propose --dataset=voc/2007 --split=train+validation+test

Selective search takes seconds for a photograph 500 pixels wide and core; what is found is kept in files, and training
and evaluation find it there by the images' bytes. A command that was interrupted goes on where it stopped. Several
machines share the work by `--shard=0/4` to `--shard=3/4`. Training makes the proposals of `shapes` by itself.

The last line of stdout is one JSON object: the images, the proposals of an image, and the share of the objects of the
split that one of the first `--max` covers with an IoU of 0.5 or more.
"""

import json
import re

import numpy as np
from absl import flags

from cnn_research.data.images import is_corrupt
from cnn_research.data.objects import read_objects
from cnn_research.data.proposals import Proposals, open_proposals
from cnn_research.data.selective_search import MODES, SelectiveSearch, as_boxes
from cnn_research.data.sources import Source, open_source
from cnn_research.errors import UserError
from cnn_research.metrics.detection import average_recall
from cnn_research.training.feed import watch_search
from experiments import command_line

_DATASET = flags.DEFINE_string("dataset", "", "the data set, as data.name of a config")
_SPLIT = flags.DEFINE_string("split", "train", "with TFDS's slicing, such as train+test")
_DATA_DIR = flags.DEFINE_string("data_dir", "", "the folder of data sets; as data.data_dir of a config")
_IMAGE = flags.DEFINE_string("image", "image", "the feature with the images, as data.image of a config")
_OUT = flags.DEFINE_string("out", "", "the folder of proposals, as data.proposal_dir of a config")
_MODE = flags.DEFINE_enum("mode", "fast", MODES, "of the search, as data.proposals of a config")
_WIDTH = flags.DEFINE_integer("width", 500, "a wider image is made this wide, as data.proposal_width", lower_bound=1)
_MAX = flags.DEFINE_integer("max", 2000, "proposals of an image that count in the summary", lower_bound=1)
_SHARD = flags.DEFINE_string("shard", "0/1", "which part of the split, of how many: 0/4 to 3/4")
_WORKERS = flags.DEFINE_integer("workers", 0, "threads; 0: one for each core", lower_bound=0)


_SKIP_CORRUPT = flags.DEFINE_bool("skip_corrupt", False, "leaves out images that cannot be decoded")


def parse_shard(text: str) -> tuple[int, int]:
    """Returns the shard and the number of shards.

    Raises:
      UserError: the text is no such pair.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or int(match[1]) >= int(match[2]):
        raise UserError(f"--shard={text}: give which part of how many, such as 0/4 to 3/4")
    return int(match[1]), int(match[2])


def summarize(source: Source, made: Proposals, shard: tuple[int, int]) -> dict[str, float]:
    """Returns how many proposals there are, and how well they cover the objects, where the data set knows them.

    Args:
      source: the split.
      made: its proposals.
      shard: which part of how many.
    """
    known = "objects" in source.features
    found, true, skipped = [], [], 0
    for example in source.read(range(shard[0], len(source), shard[1]), objects=known):
        corners = made.find(example["image"])
        assert corners is not None
        if not len(corners) and is_corrupt(example["image"]):
            skipped += 1
            continue
        boxes = as_boxes(corners[: made.count])
        found.append({"boxes": boxes, "scores": -np.arange(len(boxes))})
        if known:
            objects = read_objects(example["objects"])
            true.append({"boxes": objects.boxes, "crowd": objects.ignored})
    recall = {"recall": average_recall(found, true, [made.count])["recall50"][made.count]} if known and found else {}
    mean = float(np.mean([len(each["boxes"]) for each in found])) if found else 0.0
    return {"images": len(found), "skipped": skipped, "proposals": mean, **recall}


def main() -> None:
    """Searches and prints a summary."""
    command_line.require("dataset")
    shard, search = parse_shard(_SHARD.value), SelectiveSearch(_MODE.value, _WIDTH.value)
    source = open_source(_DATASET.value, _SPLIT.value, _DATA_DIR.value, _IMAGE.value)
    if shard[0] >= len(source):
        raise UserError(f"--shard={_SHARD.value}: the split has {len(source)} images; give fewer shards")
    made = open_proposals(_DATASET.value, search, _MAX.value, _OUT.value, _DATA_DIR.value)
    watch_search(source, made, _WORKERS.value, shard, _SKIP_CORRUPT.value)
    print(json.dumps({"folder": made.folder, **summarize(source, made, shard)}))


if __name__ == "__main__":
    command_line.run(main)
