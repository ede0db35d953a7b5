"""The flags by which a script names a network: by its name and fields, or by a recipe."""

import ast
import re
from typing import Any, NamedTuple

from absl import flags
from flax import linen as nn
from ml_collections import ConfigDict, config_flags

from cnn_research import models
from cnn_research.errors import UserError
from cnn_research.training.config import input_shape
from cnn_research.training.program import compute_dtype
from experiments import command_line

_MODEL = flags.DEFINE_string("model", "", "a network's name")
_FIELDS = flags.DEFINE_string("fields", "", "fields of --model that differ from its own: width=0.5,norm=batch")
_CONFIG = config_flags.DEFINE_config_file("config", help_string="or a recipe, FILE.py or FILE.py:argument")
_INPUT_SHAPE = flags.DEFINE_string(
    "input_shape", "", "height,width,channels of the images; those of the network's paper or of the recipe unless given"
)


class Network(NamedTuple):
    """What the flags name.

    Attributes:
      name: of the network.
      model: the network.
      input_shape: (height, width, channels) of its images.
    """

    name: str
    model: nn.Module
    input_shape: tuple[int, int, int]


def parse_shape(text: str) -> tuple[int, int, int]:
    """Returns the sizes of `224,224,3`.

    Raises:
      UserError: the text is no such sizes.
    """
    if not re.fullmatch(r"[1-9]\d*,[1-9]\d*,[1-9]\d*", "".join(text.split())):
        raise UserError(f"--input_shape={text} is no height,width,channels; write 224,224,3")
    height, width, channels = map(int, text.split(","))
    return height, width, channels


def parse_fields(text: str) -> dict[str, Any]:
    """Returns the fields of `width=0.5,stage_sizes=(2,2),norm=batch`; what is no Python value is a word.

    Raises:
      UserError: the text is no such fields.
    """
    fields: dict[str, Any] = {}
    for part in filter(None, re.split(r",\s*(?=\w+\s*=)", text.strip())):
        field, equals, value = map(str.strip, part.partition("="))
        if not equals or not field.isidentifier() or not value:
            raise UserError(f"--fields: {part.strip()!r} is no field=value; write width=0.5,norm=batch")
        if field in fields:
            raise UserError(f"--fields names {field} twice")
        try:
            fields[field] = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            fields[field] = value
    return fields


def chosen() -> Network:
    """Returns the network that the flags name.

    Raises:
      UserError: they name none, or two.
    """
    config: ConfigDict | None = _CONFIG.value
    if config is None:
        command_line.require("model")
        model = models.create(_MODEL.value, **parse_fields(_FIELDS.value))
        name, shape = _MODEL.value, models.input_shape(_MODEL.value)
    elif _MODEL.value or _FIELDS.value:
        raise UserError("--config names the network itself; its fields are --config.model.width=0.5 and so on")
    else:
        model = models.create(**{**config.model.to_dict(), "dtype": compute_dtype(config)})
        name, shape = config.model.name, input_shape(config.data)
    return Network(name, model, parse_shape(_INPUT_SHAPE.value) if _INPUT_SHAPE.value else shape)
