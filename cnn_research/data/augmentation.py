"""Augmentation on the device: random changes of the images of a batch, as pure functions of a key.

It runs inside the jitted step, on bytes or floats in 0..1, before `normalize`. Each example draws from a key of its
own, made of its position in the global batch, and each operation from a key of its own below that: what happens to an
example depends neither on how the batch is cut over devices nor on which other operations are on. Where each pixel has
a class, the mask moves with its image, each pixel to the nearest one's class, and 255 (ignore) is what comes from
outside. Objects' boxes move with it, too: they are cut off at its borders, and one whose centre leaves it is no longer
valid. Proposals do, too, and one whose centre leaves it has no area.
"""

import dataclasses
import enum
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int, Key, Shaped

from cnn_research.data import color, crops, mixing, mosaic
from cnn_research.data.color import Image, Scalar
from cnn_research.data.elastic import elastic
from cnn_research.errors import UserError, nearest

PAD_MODES = ("zeros", "reflect")
MASKS = ("segmentation_mask", "border_distance")  # which move with the image
BBOX, VALID, PROPOSALS = "objects/bbox", "objects/valid", "proposals"
OUTSIDE = 255.0  # their value beyond the border: ignored, and pixels far away


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Which operations are on, in the order in which they are applied; by default none.

    Attributes:
      mosaic: probability with which an image is put together with the three before it, each in a corner, and their
        objects and masks (Bochkovskiy et al. 2020, arXiv:2004.10934, section 3.3; see `data.mosaic`); 0 is off.
      elastic: deforms the image; standard deviation in pixels of the displacements of 3x3 points (Ronneberger et al.
        2015, arXiv:1505.04597: 10); 0 is off.
      random_resized_crop: the smallest and the largest part of the image's area that a random window has, which is then
        resized to `data.crop_size`, or to the image's size where that is () (Szegedy et al. 2014, arXiv:1409.4842:
        0.08,1.0); 1.0,1.0 is off. Where `data.crop_on` is host, the host does it, out of the whole photograph.
      aspect_ratio: the smallest and the largest width over height of that window, log-uniform.
      pad_crop: pixels of padding on each side; a random window is then cropped, likewise of `data.crop_size` or of the
        image's size (He et al. 2015, arXiv:1512.03385: 4 for CIFAR); 0 is off.
      scale_jitter: the smallest and the largest factor by which an image grows or shrinks, log-uniform, in a frame that
        keeps its size; what comes from beyond its borders is `fill` (Redmon et al. 2015, arXiv:1506.02640, section
        2.2, has scaling and translations of up to 20%: 0.8,1.2); 1.0,1.0 is off.
      pad_mode: what is padded: `zeros`, which means `fill`, or `reflect`.
      flip: mirrors half of the images left to right (Krizhevsky et al. 2012).
      dihedral: mirrors and turns images by right angles, in all ways that keep their shape: eight of a square image,
        four of another; where up and left mean nothing, as under a microscope.
      brightness: the factor is drawn from 1 ± this, never below 0; 0 is off.
      contrast: likewise.
      saturation: likewise.
      hue: the turn of the colour circle is drawn from ± this, at most 0.5; 0 is off.
      cutout: side in pixels of the square that is set to `fill`; its centre is any pixel, so it may hang over the
        border (DeVries & Taylor 2017, arXiv:1708.04552); 0 is off. A mask keeps its classes there.
      fill: colour in 0..1 of padding and of cut-out squares: one value, or one a channel. Give the data's mean to have
        zeros after normalising, as in the papers.
      mixup: alpha of the Beta(alpha, alpha) from which each example draws its own weight (Zhang et al. 2017,
        arXiv:1710.09412); 0 is off.
      cutmix: alpha likewise, for the area that is left to the example (Yun et al. 2019, arXiv:1905.04899); 0 is off.
        Where both are on, each example takes one of them with probability 1/2.

    Raises:
      UserError: a value is out of its range.
    """

    mosaic: float = 0.0
    elastic: float = 0.0
    random_resized_crop: tuple[float, ...] = (1.0, 1.0)
    aspect_ratio: tuple[float, ...] = (3 / 4, 4 / 3)
    pad_crop: int = 0
    scale_jitter: tuple[float, ...] = (1.0, 1.0)
    pad_mode: str = "zeros"
    flip: bool = False
    dihedral: bool = False
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    cutout: int = 0
    fill: tuple[float, ...] = (0.0,)
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        for field in ("random_resized_crop", "aspect_ratio", "scale_jitter", "fill"):
            # A list from JSON becomes a tuple again: the configuration is hashed where it is a static argument of jit.
            object.__setattr__(self, field, _numbers(field, getattr(self, field)))
        if not 0 <= self.mosaic <= 1:
            raise UserError(f"augmentation.mosaic={self.mosaic} is no probability; give a number from 0 to 1")
        for field in (
            "elastic",
            "pad_crop",
            "brightness",
            "contrast",
            "saturation",
            "hue",
            "cutout",
            "mixup",
            "cutmix",
        ):
            value = getattr(self, field)
            if not 0 <= value < math.inf:
                raise UserError(f"augmentation.{field}={value} must be a number from 0, which turns it off")
        if self.hue > 0.5:
            raise UserError(
                f"augmentation.hue={self.hue} is over 0.5, which is all colours: it is in turns of the colour circle"
            )
        if self.pad_mode not in PAD_MODES:
            raise UserError(f"augmentation.pad_mode={self.pad_mode!r} is unknown; {nearest(self.pad_mode, PAD_MODES)}")
        for field, largest in (("random_resized_crop", 1), ("aspect_ratio", math.inf), ("scale_jitter", math.inf)):
            values = getattr(self, field)
            if len(values) != 2 or not 0 < values[0] <= values[1] <= largest or math.isinf(values[1]):
                above = f" up to {largest}" if largest == 1 else ""
                raise UserError(f"augmentation.{field}={values} must be a smallest and a largest number above 0{above}")
        if not all(0 <= value <= 1 for value in self.fill):
            raise UserError(f"augmentation.fill={self.fill} must be in 0..1, where 1 is white")


class Draw(enum.IntEnum):
    """What each operation, by its field's name, folds into an example's key: another number would change every run.

    CROP is that of `data.crop_size`, where no other operation crops.
    """

    RANDOM_RESIZED_CROP = 0
    PAD_CROP = 1
    FLIP = 2
    BRIGHTNESS = 3
    CONTRAST = 4
    SATURATION = 5
    HUE = 6
    CUTOUT = 7
    MIXUP = 8
    CUTMIX = 9
    MIXUP_OR_CUTMIX = 10
    CROP = 11
    ELASTIC = 12
    DIHEDRAL = 13
    SCALE_JITTER = 14
    MOSAIC = 15


MOVING = (
    *(Draw.MOSAIC, Draw.ELASTIC, Draw.RANDOM_RESIZED_CROP, Draw.PAD_CROP, Draw.CROP),
    *(Draw.SCALE_JITTER, Draw.FLIP, Draw.DIHEDRAL),
)
# Which take bytes as they are: a mirrored image of 224x224 is 3.0 MB of a TPU's traffic as floats.
OF_WHOLE_PIXELS = (Draw.CROP, Draw.FLIP, Draw.DIHEDRAL)
NOT_OF_BOXES = (Draw.ELASTIC, Draw.MIXUP, Draw.CUTMIX)  # which leave boxes where they are
FIELDS_OF_DATA = {Draw.CROP: "data.crop_size"}

Operation = Callable[[Key[Array, ""], crops.Pixels], crops.Window]
BoxOperation = Callable[[Key[Array, ""], crops.Boxes, tuple[int, ...]], crops.Boxes]  # by the image's height and width


class Moves(NamedTuple):
    """What an operation does to an image, and to what moves with it; None where that stays as it is."""

    image: Operation
    mask: Operation | None = None
    boxes: BoxOperation | None = None


def augment(
    config: Augmentation,
    rng: Key[Array, ""],
    batch: Mapping[str, Shaped[Array, "batch ..."]],
    positions: Int[Array, "batch"],
    axis_name: str | None = None,
    crop_size: tuple[int, ...] = (),
) -> dict[str, Shaped[Array, "batch ..."]]:
    """Augments a batch; mixup and cutmix take from example i - 1 of the global batch.

    Args:
      config: which operations are on.
      rng: key of this step.
      batch: with `image`, uint8 or in 0..1, and `label` where examples are mixed. Those that `example_mask` rules out
        are not mixed into others.
      positions: of the examples in the global batch, contiguous and ascending.
      axis_name: of the devices that hold the global batch in order, under `pmap`; under `jit` the batch is the
        global one.
      crop_size: height and width of the images afterwards; () leaves them.

    Returns:
      The batch with the images, in 0..1, and the masks and boxes that it has, changed. Where mixup or cutmix is on,
      also `label_other` and `label_weight`, which is the part of `label` in the target; the rest is `label_other`'s.

    Raises:
      UserError: the batch holds targets that an operation would have to move or mix too, or lacks labels to mix.
    """
    if batch["image"].shape[1:3] == tuple(crop_size):  # as where the host has cropped
        crop_size = ()
    operations = _operations(config, crop_size)
    mixes = config.mixup > 0 or config.cutmix > 0
    if not operations and not mixes and not config.mosaic:
        return dict(batch) | {"image": as_float(batch["image"])}
    _check(config, operations, batch)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(rng, positions)
    if config.mosaic:
        batch = _with_mosaics(config, keys, batch, axis_name)

    def augment_example(key: Key[Array, ""], example: dict[str, Array]) -> dict[str, Array]:
        for draw, moves in operations.items():
            if draw not in OF_WHOLE_PIXELS:
                example["image"] = as_float(example["image"])
            operation_key = jax.random.fold_in(key, draw)
            if moves.boxes and BBOX in example:
                boxes = moves.boxes(operation_key, example[BBOX], example["image"].shape[:2])
                example |= {BBOX: jnp.clip(boxes, 0, 1), VALID: example[VALID] & _seen(boxes)}
            if moves.boxes and PROPOSALS in example:
                regions = moves.boxes(operation_key, example[PROPOSALS], example["image"].shape[:2])
                example[PROPOSALS] = jnp.where(_seen(regions)[:, None], jnp.clip(regions, 0, 1), 0)
            for name, move in {"image": moves.image, **dict.fromkeys(MASKS, moves.mask)}.items():
                if move and name in example:
                    example[name] = move(operation_key, example[name])
        return example | {"image": as_float(example["image"])}

    example = {name: batch[name] for name in ("image", *MASKS, BBOX, VALID, PROPOSALS) if name in batch}
    batch = dict(batch) | jax.vmap(augment_example)(keys, example)
    if not mixes:
        return batch
    real = batch.get("example_mask", jnp.ones(len(positions), bool))
    image, label, other_is_real = (mixing.previous(x, axis_name) for x in (batch["image"], batch["label"], real))
    mixed, weight = jax.vmap(partial(_mix, config))(keys, batch["image"], image, real & other_is_real)
    return batch | {"image": mixed, "label_other": label, "label_weight": weight}


def as_float(images: Shaped[Array, "*batch height width channels"]) -> Float[Array, "*batch height width channels"]:
    """Returns images of bytes in 0..1, and floats as they are."""
    return images.astype(jnp.float32) / 255 if jnp.issubdtype(images.dtype, jnp.integer) else images


def crop_center(
    batch: Mapping[str, Shaped[Array, "batch ..."]], crop_size: tuple[int, ...]
) -> dict[str, Shaped[Array, "batch ..."]]:
    """Keeps the middle of the images, and of their masks, where training takes random windows.

    Args:
      batch: with `image`.
      crop_size: height and width of the images afterwards; () leaves them.

    Raises:
      UserError: the batch holds targets that would have to be cropped too.
    """
    if not crop_size:
        return dict(batch)
    _check_targets([Draw.CROP], batch, not_of_boxes=[Draw.CROP])
    names = [name for name in ("image", *MASKS) if name in batch]
    return dict(batch) | {name: crops.center_crop(batch[name], crop_size) for name in names}


def normalize(
    images: Float[Array, "*batch height width channels"], mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Array, "*batch height width channels"]:
    """Returns (images - mean) / std.

    Args:
      images: in 0..1.
      mean: in the same units; one value a channel, or one for all.
      std: likewise.

    Raises:
      UserError: a wrong number of values, or a standard deviation that is not positive.
    """
    for name, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, images.shape[-1]):
            raise UserError(
                f"{name}={values} does not fit {images.shape[-1]} channels; give one value, or one a channel"
            )
    if not all(value > 0 for value in std):
        raise UserError(f"std={std} must be positive")
    return (images - jnp.array(mean, images.dtype)) / jnp.array(std, images.dtype)


def _seen(boxes: crops.Boxes) -> Bool[Array, " objects"]:
    """Returns of which boxes the centre is in the image, and which have an area there."""
    (top, left), (bottom, right) = boxes.T.reshape(2, 2, -1)
    y, x = (top + bottom) / 2, (left + right) / 2
    return (bottom > top) & (right > left) & (y > 0) & (y < 1) & (x > 0) & (x < 1)


def _operations(config: Augmentation, crop_size: tuple[int, ...]) -> dict[Draw, Moves]:
    """Returns those operations on single images that are on, in order."""
    resizes = config.random_resized_crop != (1.0, 1.0)
    jitters = config.scale_jitter != (1.0, 1.0)
    bend = partial(elastic, deviation=config.elastic)
    window: dict[str, Any] = dict(area=config.random_resized_crop, aspect_ratio=config.aspect_ratio)
    resize = partial(crops.random_resized_crop, **window, size=crop_size)
    pad = partial(crops.pad_crop, padding=config.pad_crop, mode=config.pad_mode, size=crop_size)
    crop = partial(crops.random_crop, size=crop_size)
    scale = partial(crops.scale_jitter, scale=config.scale_jitter)
    table: tuple[tuple[Draw, Any, Moves], ...] = (
        (Draw.ELASTIC, config.elastic, Moves(bend, partial(bend, nearest=True, outside=OUTSIDE))),
        (
            Draw.RANDOM_RESIZED_CROP,
            resizes,
            Moves(resize, partial(resize, nearest=True), partial(crops.resized_crop_boxes, **window)),
        ),
        (
            Draw.PAD_CROP,
            config.pad_crop,
            Moves(
                partial(pad, fill=config.fill),
                partial(pad, fill=(OUTSIDE,)),
                partial(crops.pad_crop_boxes, padding=config.pad_crop, window=crop_size),
            ),
        ),
        (
            Draw.CROP,
            crop_size and not resizes and not config.pad_crop,
            Moves(crop, crop, partial(crops.pad_crop_boxes, window=crop_size)),
        ),
        (
            Draw.SCALE_JITTER,
            jitters,
            Moves(
                partial(scale, fill=config.fill),
                partial(scale, fill=(OUTSIDE,), nearest=True),
                partial(crops.scale_jitter_boxes, scale=config.scale_jitter),
            ),
        ),
        (Draw.FLIP, config.flip, Moves(crops.flip, crops.flip, crops.flip_boxes)),
        (Draw.DIHEDRAL, config.dihedral, Moves(crops.dihedral, crops.dihedral, crops.dihedral_boxes)),
        (Draw.BRIGHTNESS, config.brightness, Moves(partial(_jitter, color.adjust_brightness, config.brightness))),
        (Draw.CONTRAST, config.contrast, Moves(partial(_jitter, color.adjust_contrast, config.contrast))),
        (Draw.SATURATION, config.saturation, Moves(partial(_jitter, color.adjust_saturation, config.saturation))),
        (Draw.HUE, config.hue, Moves(partial(_turn_hue, config.hue))),
        (Draw.CUTOUT, config.cutout, Moves(partial(crops.cutout, side=config.cutout, fill=config.fill))),
    )
    return {draw: moves for draw, on, moves in table if on}


def _jitter(adjust: Callable[[Image, Scalar], Image], strength: float, key: Key[Array, ""], image: Image) -> Image:
    return adjust(image, jax.random.uniform(key, minval=max(0.0, 1 - strength), maxval=1 + strength))


def _turn_hue(strength: float, key: Key[Array, ""], image: Image) -> Image:
    return color.adjust_hue(image, jax.random.uniform(key, minval=-strength, maxval=strength))


def _with_mosaics(
    config: Augmentation,
    keys: Key[Array, " batch"],
    batch: Mapping[str, Shaped[Array, "batch ..."]],
    axis_name: str | None,
) -> dict[str, Shaped[Array, "batch ..."]]:
    """Puts some examples together with the three before them; each then has room for the objects of four."""
    instances = "objects/number" in batch
    moving = {name: x for name, x in batch.items() if name in ("image", *MASKS) or name.startswith("objects/")}
    moving |= {"image": as_float(batch["image"]), "real": batch.get("example_mask", jnp.ones(len(keys), bool))}
    if instances and "segmentation_mask" in moving:
        moving["segmentation_mask"] = moving["segmentation_mask"].astype(jnp.int32)
    others = [moving]
    for _ in range(3):
        others.append({name: mixing.previous(x, axis_name) for name, x in others[-1].items()})

    def of_example(key: Key[Array, ""], four: dict[str, Array]) -> dict[str, Array]:
        size = four["image"].shape[1:3]
        choice, place = jax.random.split(jax.random.fold_in(key, Draw.MOSAIC))
        chosen = jax.random.bernoulli(choice, config.mosaic) & four.pop("real").all()
        layout = mosaic.draw(place, size)
        made = dict(four)
        made["image"] = mosaic.put_together(layout, four["image"], config.fill)
        if instances and "segmentation_mask" in four:  # the objects of each image get numbers of their own
            masks, apart = four["segmentation_mask"], 256 * np.arange(4)
            made["objects/number"] = four["objects/number"] + apart[:, None]
            of_objects = (masks > 0) & (masks < OUTSIDE)
            made["segmentation_mask"] = masks + jnp.where(of_objects, apart[:, None, None, None], 0)
        for name in set(MASKS) & set(four):
            made[name] = mosaic.put_together(layout, made[name], (OUTSIDE,), nearest=True)
        if BBOX in four:
            made[BBOX], seen = mosaic.move_boxes(layout, four[BBOX], size)
            made[VALID] &= seen
            four[VALID] &= np.arange(4)[:, None] == 0
        return {
            name: jnp.where(chosen, made[name].reshape(-1, *x.shape[2:]), x.reshape(-1, *x.shape[2:]))
            if name.startswith("objects/")
            else jnp.where(chosen, made[name], x[0])
            for name, x in four.items()
        }

    stacked = {name: jnp.stack([other[name] for other in others], axis=1) for name in moving}
    return dict(batch) | jax.vmap(of_example)(keys, stacked)


def _mix(
    config: Augmentation, key: Key[Array, ""], image: Image, other: Image, real: Bool[Array, ""]
) -> tuple[Image, Float32[Array, ""]]:
    """Applies mixup or cutmix to one example, unless it or the other one is padding."""
    table = ((Draw.MIXUP, mixing.mixup, config.mixup), (Draw.CUTMIX, mixing.cutmix, config.cutmix))
    results = [mix(jax.random.fold_in(key, draw), image, other, alpha) for draw, mix, alpha in table if alpha]
    if len(results) == 2:
        choice = jax.random.bernoulli(jax.random.fold_in(key, Draw.MIXUP_OR_CUTMIX))
        results = [jax.tree.map(partial(jnp.where, choice), *results)]
    [(mixed, weight)] = results
    return jnp.where(real, mixed, image), jnp.where(real, weight, 1)


def _numbers(field: str, values: tuple[float, ...] | list[float]) -> tuple[float, ...]:
    try:
        return tuple(float(value) for value in values)
    except (TypeError, ValueError):
        raise UserError(f"augmentation.{field}={values!r} must be numbers with commas between them") from None


def _check(config: Augmentation, operations: Iterable[Draw], batch: Mapping[str, Shaped[Array, "batch ..."]]) -> None:
    """Raises `UserError` where the images would no longer fit their targets, or `fill` does not fit the images."""
    channels = batch["image"].shape[-1]
    if len(config.fill) not in (1, channels):
        raise UserError(
            f"augmentation.fill={config.fill} does not fit {channels} channels; give one value, or one a channel"
        )
    moving = [draw for draw in MOVING if draw in operations or (draw == Draw.MOSAIC and config.mosaic)]
    if config.mosaic and not any(name in batch for name in (*MASKS, BBOX)):
        raise UserError("augmentation.mosaic moves objects and masks, and this data has neither; turn it off")
    mixed = [draw for draw, alpha in ((Draw.MIXUP, config.mixup), (Draw.CUTMIX, config.cutmix)) if alpha]
    _check_targets(moving + mixed, batch)
    if mixed and ("label" not in batch or "segmentation_mask" in batch):
        has = "masks" if "segmentation_mask" in batch else "none"
        raise UserError(f"augmentation.{mixed[0].name.lower()} mixes labels, and this data has {has}; turn it off")


def _check_targets(
    draws: Sequence[Draw],
    batch: Mapping[str, Shaped[Array, "batch ..."]],
    not_of_boxes: Sequence[Draw] = NOT_OF_BOXES,
) -> None:
    """Raises `UserError` where an operation would have to move a target, or mix it, and does not."""
    for draw in draws:
        for key in sorted(batch):
            fixed = key.startswith(("objects/", PROPOSALS)) and draw in not_of_boxes
            if key == "instance_mask" or fixed or (key == PROPOSALS and draw == Draw.MOSAIC):
                field = FIELDS_OF_DATA.get(draw, f"augmentation.{draw.name.lower()}")
                raise UserError(f"{field} changes the image but not yet its {key}; turn it off")
