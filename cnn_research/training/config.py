"""The config of a run: every field with its default, its form on disk, and how two configs differ."""

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
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
CHECKED = ("loss.", "model.")  # groups whose fields' types are checked where their objects are made
WORDS = ("data.class_names", "optimizer.milestones")  # what sequences hold that are not numbers
PRECISION = {"f32": "float32", "bf16": "bfloat16"}

# Fields that say how a run is watched, kept and spread over devices, and not what it computes: a run may resume with
# other values. (Another number of devices, or the other `parallel`, changes results by rounding. Until a run meets an
# example that cannot be decoded it is the same with and without `data.skip_corrupt`, and one without ends there.)
OPERATIONAL = (
    "parallel", "shard_state", "log_every", "eval_every", "checkpoint_every", "keep_last", "keep_best",
    "eval_batch_size", "tensorboard", "profile", "data.data_dir", "data.proposal_dir", "data.resident", "data.workers",
    "data.skip_corrupt",
)  # fmt: skip


def default_config(model: str, task: str = "", **model_fields: Any) -> ConfigDict:
    """Returns the config that recipes start from; a recipe overwrites what its data set wants.

    Args:
      model: a name from `models.names()`.
      task: a name from `tasks.names()`; the model's own unless given.
      **model_fields: fields of the model that differ from its defaults.
    """
    return _defaults(task or models.task(model), models.config(model, **model_fields))


def _defaults(task: str, network: ConfigDict) -> ConfigDict:
    """Returns the defaults of all fields.

    What a new field defaults to is what runs did before: `complete` gives it to those that are older.
    """
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
                # Whether examples that cannot be decoded are left out, named and counted, and do not end the run.
                skip_corrupt=False,
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
    if config.shard_state not in SHARD_STATE:
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
    size, crop = config.data.image_size, config.data.crop_size
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
    if (config.task in MASKS) != bool(config.data.mask):
        needs = f"a feature, such as {MASKS[config.task]}" if config.task in MASKS else "no feature"
        raise UserError(f"task {config.task} takes {needs}, as data.mask; it is {config.data.mask!r}")
    if (config.task in OBJECTS) != bool(config.data.max_objects) or config.data.max_objects < 0:
        needs = "1 or more" if config.task in OBJECTS else "0"
        raise UserError(f"task {config.task} takes {needs} as data.max_objects; it is {config.data.max_objects}")
    if is_given_regions(config.model) != bool(config.data.max_proposals) or config.data.max_proposals < 0:
        needs = "1 or more" if is_given_regions(config.model) else "0"
        raise UserError(f"{config.model.name} takes {needs} as data.max_proposals; it is {config.data.max_proposals}")
    if config.data.mirror < 0:
        raise UserError(f"data.mirror={config.data.mirror} must not be negative")
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
    side = data.short_side
    if data.crop_on not in CROP_ON:
        raise UserError(f"data.crop_on={data.crop_on!r} is unknown; {nearest(data.crop_on, CROP_ON)}")
    if data.crop_on == "host" and data.resident == "on":
        raise UserError("data.resident=on keeps images as they are, data.crop_on=host cuts each anew; set one of them")
    if not side:
        return
    if data.crop_on != "host" or tuple(config.augmentation.random_resized_crop) != (1.0, 1.0):
        raise UserError(
            f"data.short_side={side} needs data.crop_on=host, and augmentation.random_resized_crop=(1.0,1.0): that"
            " cuts by area instead"
        )
    least = max(data.crop_size or data.image_size)
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


def input_shape(data: ConfigDict) -> tuple[int, int, int]:
    """Returns height, width and channels of the network's input in training, as `config.data` says."""
    height, width = (size + 2 * data.mirror for size in data.crop_size or data.image_size)
    return height, width, data.channels


def to_json(config: ConfigDict) -> str:
    """Returns the config as indented JSON, with its keys in order."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"


def from_json(text: str) -> ConfigDict:
    """Returns the config that `to_json` wrote, `complete`; JSON's lists are tuples again.

    Raises:
      ValueError: the text is no such config.
    """
    stored = _lists_to_tuples(json.loads(text))
    if not isinstance(stored, dict):
        raise UserError("it holds no fields")
    return complete(stored)


def complete(stored: Mapping[str, Any]) -> ConfigDict:
    """Returns the config of a run that may be older than some fields: these get their defaults.

    Fields that are not known here stay as they are.

    Args:
      stored: its fields.

    Raises:
      UserError: the model or the task is not named, the task is not known, or what should be a group of fields is none.
    """
    model = stored.get("model")
    if not isinstance(model, Mapping) or "name" not in model or not isinstance(stored.get("task"), str):
        raise UserError("it does not say model.name and task")
    known = models.config(model["name"]).to_dict() if model["name"] in models.names() else {}
    return ConfigDict(_merged(_defaults(stored["task"], ConfigDict({**known, **model})).to_dict(), stored, ""))


def unknown_fields(config: ConfigDict) -> list[str]:
    """Returns the fields of a network's config that no part of the program asks for, but for the network's own."""
    known = _defaults(config.task, config.model)
    return sorted(flatten(config).keys() - flatten(known).keys())


def _merged(defaults: Mapping[str, Any], stored: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    merged = {**defaults, **stored}
    for name in defaults.keys() & stored.keys():
        default, value = defaults[name], stored[name]
        if isinstance(default, Mapping) != isinstance(value, Mapping):
            raise UserError(f"{prefix}{name} is {'no' if isinstance(default, Mapping) else 'a'} group of fields")
        if isinstance(default, Mapping):
            merged[name] = _merged(default, value, f"{prefix}{name}.")
            continue
        kinds = (float, int) if isinstance(default, float) else (type(default),)
        if not prefix.startswith(CHECKED) and type(value) not in kinds:
            raise UserError(f"{prefix}{name}={value!r} is of the wrong type; a right one is {default!r}")
    return merged


def load(workdir: epath.PathLike) -> ConfigDict:
    """Reads a run's config, `complete`.

    Raises:
      UserError: the directory holds no run, or its config is damaged.
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
