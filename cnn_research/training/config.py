"""The config of a run: every field with its default, its form on disk, and how two configs differ."""

import dataclasses
import json
import re
from collections.abc import Iterator
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from cnn_research import models, tasks
from cnn_research.data.augmentation import Augmentation
from cnn_research.errors import UserError, nearest

PARALLEL = ("jit", "pmap")
SHARD_STATE = ("off", "optimizer", "all")
CROP_ON = ("device", "host")
# Tasks that learn objects, and how many of an image by default.
OBJECTS = {
    **{"detection": 50, "instance_segmentation": 50, "localization": 1},
    **{"region_classification": 50, "region_detection": 50},
}
# Tasks that learn masks, and the feature that has them by default.
MASKS = {"instance_segmentation": "instance_mask", "segmentation": "segmentation_mask"}
WORDS = ("data.class_names", "optimizer.milestones")  # what sequences hold that are not numbers
PRECISION = {"f32": "float32", "bf16": "bfloat16"}

# Fields that say how a run is watched, kept and spread over devices, and not what it computes: a run may resume with
# other values. (Another number of devices, or the other `parallel`, changes results by rounding.)
OPERATIONAL = (
    "parallel", "shard_state", "log_every", "eval_every", "checkpoint_every", "keep_last", "keep_best",
    "eval_batch_size", "tensorboard", "profile", "data.data_dir", "data.proposal_dir", "data.resident", "data.workers",
)  # fmt: skip


def default_config(model: str, task: str = "", **model_fields: Any) -> ConfigDict:
    """Returns the config that recipes start from; a recipe overwrites what its data set wants.

    Args:
      model: a name from `models.names()`.
      task: a name from `tasks.names()`; the model's own unless given.
      **model_fields: fields of the model that differ from its defaults.
    """
    task = task or models.task(model)
    network = models.config(model, **model_fields)
    return ConfigDict(
        dict(
            seed=0,
            task=task,
            duration="10ep",  # epochs, or steps: 5000
            batch_size=128,  # of all devices together
            eval_batch_size=500,
            parallel="jit",  # jit: one program over a mesh of devices; pmap: a replica each
            shard_state="off",  # what of the state is cut over the devices: off | optimizer | all (parameters too)
            precision="auto",  # f32 | bf16 | auto: bf16 on TPU and GPU, f32 on CPU, unless model.dtype says otherwise
            log_every=50,  # steps
            eval_every="1ep",
            checkpoint_every="1ep",
            keep_last=2,  # checkpoints; with 1, there is none to go back to where the disk damages it
            keep_best=1,  # checkpoints, by the task's primary metric
            tensorboard=True,
            profile="",  # steps to trace with jax.profiler: "100:110"
            init_from="",  # a run's directory, or a file of weights: .safetensors (ours or torchvision's) or .pth
            init_except="",  # regex over variables' paths that keep their fresh values: "params/head"
            ema=0.0,  # decay of the averaged parameters that evaluation then uses; 0: none
            accumulate=1,  # micro-batches a step
            data=dict(
                name="",  # a TFDS name, or a directory that a TFDS builder prepared
                train="train",
                test="test",
                data_dir="",
                num_examples=0,  # of the training split, where the data is absent (plan, tabulate)
                image="image",  # the feature with the images
                class_names=(),  # read from the data set, but for those of pixels
                image_size=(32, 32),  # height, width
                crop_size=(),  # of the window that the network sees: random in training, else the middle; (): all
                # Where training's windows are cut. device: out of image_size, in a set that may be resident; host: out
                # of the whole photograph as it is decoded, in a set that is streamed.
                crop_on="device",
                # host: the shorter side of photographs that crop_size is cut out of, in pixels: the smallest and the
                # largest, as in (256, 480); (): that of image_size.
                short_side=(),
                mask=MASKS.get(task, ""),  # the feature with each pixel's class, or the number of its object
                # How many objects of an image are learnt, the largest ones; 0: it has one label.
                max_objects=OBJECTS.get(task, 0),
                # Regions of an image that a network is given: the first that selective search finds; 0: none.
                max_proposals=2000 if is_given_regions(network) else 0,
                proposals="fast",  # fast | quality: the mode of that search
                proposal_width=500,  # a wider image is made this wide for it, in pixels
                proposal_dir="",  # the folder of what it found; `proposals` beside the data sets unless given
                mask_values=(),  # the value of each class in a mask's file, all others ignored; (): the class itself
                # Pixels of mirrored border that the network sees around each image (Ronneberger et al. 2015), such as
                # the 92 that a U-Net of valid convolutions leaves out.
                mirror=0,
                channels=3,
                resize="stretch",  # stretch | pad | fit | crop
                mean=(0.5,),  # of pixels in 0..1; one for all channels or one for each
                std=(0.5,),
                # on | off | auto: a split lives on the devices if its images take at most 1 GiB. Where crop_on=host,
                # that goes for evaluation alone.
                resident="auto",
                workers=0,  # processes that decode; 0: threads
            ),
            augmentation=dataclasses.asdict(Augmentation()),
            loss=tasks.config(task),
            optimizer=dict(
                name="sgd",  # sgd | nesterov | adamw | lars | lamb | muon
                learning_rate=0.1,
                schedule="cosine",  # constant | cosine | linear | step
                warmup="5%",  # linear, from 0
                final=0.0,  # share of learning_rate at the end (cosine, linear)
                milestones=("50%", "75%"),  # when the rate is multiplied by `factor` (step)
                factor=0.1,
                momentum=0.9,  # sgd, nesterov, lars, muon
                beta1=0.9,  # adamw, lamb, and muon where a parameter is no matrix
                beta2=0.999,
                epsilon=1e-8,
                weight_decay=5e-4,  # sgd, nesterov: added to the gradient; lars, lamb: in the trust ratio; else apart
                decay="(^|/)kernel$",  # regex over parameters' paths that decay: by default no norms and biases
                clip_norm=0.0,  # of the whole gradient; 0: none
                freeze="",  # regex over paths of parameters, and of statistics of norms, that stay as they are
            ),
            model=network,
        )
    )


def validate(config: ConfigDict) -> None:
    """Checks the fields that no other part checks when it is built.

    Raises:
      UserError: naming the field and what would be right.
    """
    for field, value in flatten(config).items():
        if isinstance(value, tuple) and field not in WORDS and not all(isinstance(part, int | float) for part in value):
            raise UserError(f"{field}={value} must hold numbers")
    if config.parallel not in PARALLEL:
        raise UserError(f"parallel={config.parallel!r} is unknown; {nearest(config.parallel, PARALLEL)}")
    if config.get("shard_state", "off") not in SHARD_STATE:
        raise UserError(f"shard_state={config.shard_state!r} is unknown; {nearest(config.shard_state, SHARD_STATE)}")
    if config.precision not in (*PRECISION, "auto"):
        raise UserError(f"precision={config.precision!r} is unknown; it is auto, f32 or bf16")
    if config.data.resident not in ("auto", "on", "off"):
        raise UserError(f"data.resident={config.data.resident!r} is unknown; it is auto, on or off")
    for field in ("batch_size", "eval_batch_size", "log_every", "accumulate", "keep_last"):
        if config[field] < 1:
            raise UserError(f"{field}={config[field]} must be at least 1")
    for field in ("keep_best", "seed"):
        if config[field] < 0:
            raise UserError(f"{field}={config[field]} must not be negative")
    if not 0 <= config.ema < 1:
        raise UserError(f"ema={config.ema} is a decay: at least 0, below 1")
    if config.batch_size % config.accumulate:
        raise UserError(
            f"batch_size={config.batch_size} does not divide into accumulate={config.accumulate} micro-batches"
        )
    size, crop = config.data.image_size, crop_size(config.data)
    if crop and (len(crop) != 2 or not all(1 <= part <= whole for part, whole in zip(crop, size, strict=False))):
        raise UserError(
            f"data.crop_size={crop} is no window of data.image_size={tuple(size)};"
            " give a height and a width up to that, or () for all of it"
        )
    if crop and config.task in ("detection", "localization"):
        raise UserError(f"task {config.task} sees images whole, not data.crop_size={crop}; give ()")
    _validate_crops(config)
    if config.model.name in models.names() and models.task(config.model.name) != config.task:
        raise UserError(
            f"{config.model.name} is a network for {models.task(config.model.name)}, task is {config.task!r};"
            f" give one of {', '.join(models.names(config.task))}"
        )
    if (config.task in MASKS) != bool(mask_feature(config.data)):
        needs = f"a feature, such as {MASKS[config.task]}" if config.task in MASKS else "no feature"
        raise UserError(f"task {config.task} takes {needs}, as data.mask; it is {mask_feature(config.data)!r}")
    if (config.task in OBJECTS) != bool(max_objects(config.data)) or max_objects(config.data) < 0:
        needs = "1 or more" if config.task in OBJECTS else "0"
        raise UserError(f"task {config.task} takes {needs} as data.max_objects; it is {max_objects(config.data)}")
    if is_given_regions(config.model) != bool(max_proposals(config.data)) or max_proposals(config.data) < 0:
        needs = "1 or more" if is_given_regions(config.model) else "0"
        raise UserError(f"{config.model.name} takes {needs} as data.max_proposals; it is {max_proposals(config.data)}")
    if mirror(config.data) < 0:
        raise UserError(f"data.mirror={mirror(config.data)} must not be negative")
    if config.profile and not re.fullmatch(r"\d+:\d+", config.profile):
        raise UserError(f"profile={config.profile!r}: give the first step and the one after the last, such as 100:110")
    for field in ("mean", "std"):
        if len(config.data[field]) not in (1, config.data.channels):
            raise UserError(
                f"data.{field}={config.data[field]} must be one number, or {config.data.channels}: one a channel"
            )
    if min(config.data.std) <= 0:
        raise UserError(f"data.std={config.data.std} must be above 0")


def _validate_crops(config: ConfigDict) -> None:
    """Checks `crop_on` and what goes with it."""
    data = config.data
    crop_on, side = data.get("crop_on", "device"), tuple(data.get("short_side", ()))
    if crop_on not in CROP_ON:
        raise UserError(f"data.crop_on={crop_on!r} is unknown; {nearest(crop_on, CROP_ON)}")
    if crops_on_host(data) and data.resident == "on":
        raise UserError("data.resident=on keeps images as they are, data.crop_on=host cuts each anew; set one of them")
    if not side:
        return
    if not crops_on_host(data) or tuple(config.augmentation.random_resized_crop) != (1.0, 1.0):
        raise UserError(
            f"data.short_side={side} needs data.crop_on=host, and augmentation.random_resized_crop=(1.0,1.0): that"
            " cuts by area instead"
        )
    least = max(crop_size(data) or data.image_size)
    if len(side) != 2 or not all(isinstance(part, int) for part in side) or not least <= side[0] <= side[1]:
        raise UserError(
            f"data.short_side={side}: give the smallest and the largest length, in pixels, from {least}, which is seen"
        )


def is_given_regions(model: ConfigDict) -> bool:
    """Returns whether a network is given the regions that it looks at: it proposes none by anchors.

    Args:
      model: its config.
    """
    return model.name == "rcnn" or model.get("anchor_sizes", None) == ()


def crops_on_host(data: ConfigDict) -> bool:
    """Returns whether training's windows come from the host; those of runs that are older than the field do not."""
    return data.get("crop_on", "device") == "host"


def crop_size(data: ConfigDict) -> tuple[int, ...]:
    """Returns `config.data.crop_size`; runs that are older than the field see all of their images."""
    return tuple(data.get("crop_size", ()))


def image_feature(data: ConfigDict) -> str:
    """Returns `config.data.image`; runs that are older than the field read `image`."""
    return data.get("image", "image")


def mask_feature(data: ConfigDict) -> str:
    """Returns `config.data.mask`; runs that are older than the field have labels."""
    return data.get("mask", "")


def max_objects(data: ConfigDict) -> int:
    """Returns `config.data.max_objects`; runs that are older than the field have 0."""
    return data.get("max_objects", 0)


def max_proposals(data: ConfigDict) -> int:
    """Returns `config.data.max_proposals`; runs that are older than the field have 0."""
    return data.get("max_proposals", 0)


def mirror(data: ConfigDict) -> int:
    """Returns `config.data.mirror`; runs that are older than the field have 0."""
    return data.get("mirror", 0)


def input_shape(data: ConfigDict) -> tuple[int, int, int]:
    """Returns height, width and channels of the network's input in training, as `config.data` says."""
    height, width = (size + 2 * mirror(data) for size in crop_size(data) or data.image_size)
    return height, width, data.channels


def to_json(config: ConfigDict) -> str:
    """Returns the config as indented JSON, with its keys in order."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"


def from_json(text: str) -> ConfigDict:
    """Returns the config that `to_json` wrote; JSON's lists are tuples again."""
    return ConfigDict(_lists_to_tuples(json.loads(text)))


def load(workdir: epath.PathLike) -> ConfigDict:
    """Reads a run's config.

    Raises:
      UserError: the directory holds no run.
    """
    path = epath.Path(workdir) / "config.json"
    if not path.exists():
        raise UserError(f"{workdir} holds no run: there is no {path.name} in it")
    try:
        return from_json(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from error


def _lists_to_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lists_to_tuples(item) for key, item in value.items()}
    return tuple(map(_lists_to_tuples, value)) if isinstance(value, list) else value


def flatten(config: ConfigDict) -> dict[str, Any]:
    """Returns the config as {`data.name`: value}."""
    return dict(_flatten(config.to_dict(), ""))


def _flatten(fields: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in fields.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def differences(old: ConfigDict, new: ConfigDict) -> dict[str, tuple[Any, Any]]:
    """Returns the fields that differ, but for the operational ones, as {field: (old, new)}; a missing field is None."""
    first, second = flatten(old), flatten(new)
    fields = sorted({*first, *second} - set(OPERATIONAL))
    return {field: (first.get(field), second.get(field)) for field in fields if first.get(field) != second.get(field)}
