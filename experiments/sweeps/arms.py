"""The arms of a sweep: what a grid or a named sweep says, as runs with names of their own.

A grid is `field=value,value; field=value,…`, the product of all; parentheses and quotes hold a value together. A named
sweep is a recipe's function `sweep_<name>()`, which returns dicts of {field: value}; it may take the recipe's argument.
In both, the field `config` is the recipe's argument.
"""

import dataclasses
import hashlib
import inspect
import itertools
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags

from cnn_research.errors import UserError, nearest
from cnn_research.training import config as configs
from cnn_research.training.program import make_program
from experiments import command_line

RECIPE_ARGUMENT = "config"
GRID = "a grid is written field=value,value; field=value"
LONGEST_LABEL = 120  # characters; file systems take names of 255 bytes

# Of a grid: a quoted string, or one character.
_TOKEN = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|.""", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Arm:
    """One run of a sweep.

    Attributes:
      name: of its directory: what the sweep sets in it, and a hash of its config.
      recipe: `FILE.py` or `FILE.py:argument`.
      overrides: the fields that flags set, as flags write them.
      fields: every field that the sweep sets in any arm, with this arm's value; a field that its config lacks is not
        there.
      config: what all this comes to.
    """

    name: str
    recipe: str
    overrides: dict[str, str]
    fields: dict[str, Any]
    config: ConfigDict


def make_arms(recipe: str, sweep: str, overrides: Mapping[str, Any]) -> list[Arm]:
    """Returns the arms of a sweep, each config once.

    Args:
      recipe: `FILE.py` or `FILE.py:argument`.
      sweep: a grid, or the name of one of the recipe's sweeps.
      overrides: fields that are the same in all arms, unless the sweep sets them.

    Raises:
      UserError: the sweep is not well formed, or a field or a value does not fit the config.
    """
    settings = parse_grid(sweep) if "=" in sweep else named_sweep(recipe, sweep)
    swept = list(dict.fromkeys(field for setting in settings for field in setting))
    arms: dict[str, Arm] = {}
    for setting in settings:
        arm = _make_arm(recipe, setting, overrides, swept)
        arms.setdefault(arm.name.rpartition("-")[2], arm)  # the hash
    return list(arms.values())


def _make_arm(recipe: str, setting: Mapping[str, Any], overrides: Mapping[str, Any], swept: Iterable[str]) -> Arm:
    file, _, argument = recipe.partition(":")
    argument = str(setting.get(RECIPE_ARGUMENT, argument))
    recipe = f"{file}:{argument}" if argument else file
    own = {field: value for field, value in setting.items() if field != RECIPE_ARGUMENT}
    texts = {field: _flag_text(value) for field, value in {**overrides, **own}.items()}
    config = resolve(recipe, texts)
    if config.data.num_examples:  # else only the data set can tell
        make_program(config)  # refuses values that are of the right type and still wrong, before any arm starts
    values = configs.flatten(config)
    # How a run is watched does not make it another one, unless that is what is swept.
    hashed = {field: value for field, value in values.items() if field not in configs.OPERATIONAL or field in setting}
    values[RECIPE_ARGUMENT] = argument
    digest = hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()[:8]
    return Arm(
        name=f"{_label({field: values[field] for field in setting})}-{digest}",
        recipe=recipe,
        overrides=texts,
        fields={field: values[field] for field in swept if field in values},
        config=config,
    )


def _flag_text(value: Any) -> str:
    """Returns a value as a flag takes it."""
    value = value.item() if isinstance(value, np.generic) else value
    return value if isinstance(value, str) else repr(value)


def _label(fields: Mapping[str, Any]) -> str:
    """Returns fields and values as part of a file name: `norm=batch,seed=0`."""
    names = short_names(fields)
    words = [f"{names[field]}={_safe(value)}" for field, value in fields.items()]
    return ",".join(words)[:LONGEST_LABEL] or "baseline"


def _safe(value: Any) -> str:
    return re.sub(r"[^\w.+-]+", "_", str(value), flags=re.ASCII).strip("_")


def short_names(fields: Iterable[str]) -> dict[str, str]:
    """Returns for each field the shortest end of its path that no other of them shares: `norm` for `model.norm`."""
    fields = list(fields)

    def ends(field: str) -> list[str]:
        words = field.split(".")
        return [".".join(words[start:]) for start in reversed(range(len(words)))]

    taken = [end for field in fields for end in ends(field)]
    return {field: next((end for end in ends(field) if taken.count(end) == 1), field) for field in fields}


def resolve(recipe: str, overrides: Mapping[str, str]) -> ConfigDict:
    """Returns the config that `train --config=recipe --config.field=text …` runs.

    Args:
      recipe: `FILE.py` or `FILE.py:argument`.
      overrides: {field: text}.

    Raises:
      UserError: a field is unknown, or a text is no value for it.
    """
    config = command_line.load_config(recipe)
    known = configs.flatten(config)
    for field in overrides:
        if field not in known:
            raise UserError(f"{field} is no field of {recipe}; {command_line.nearest_field(field, known)}")
    values = flags.FlagValues()  # flags of its own, so that texts become values exactly as they do in `train`
    arguments = ["", *flag_arguments(overrides)]
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=arguments)
        values(arguments)
    except flags.Error as error:
        match = re.match(r"flag --config\.([^=]+)=", str(error))
        fault = f"{match[1]}={overrides[match[1]]!r} does not fit" if match else str(error)
        hint = f"; a value is {known[match[1]]!r}" if match else ""
        raise UserError(fault + hint) from error
    return values.config


def flag_arguments(overrides: Mapping[str, str]) -> list[str]:
    """Returns the flags that set fields of a config."""
    return [f"--config.{field}={text}" for field, text in overrides.items()]


def named_sweep(recipe: str, name: str) -> list[dict[str, Any]]:
    """Returns what the recipe's `sweep_<name>()` gives.

    Args:
      recipe: `FILE.py`, or `FILE.py:argument`, which the function gets if it takes one.
      name: of the sweep.

    Raises:
      UserError: there is no such sweep, or it does not give dicts.
    """
    module = command_line.load_recipe(recipe)
    file = recipe.partition(":")[0]
    known = [word.removeprefix("sweep_") for word in vars(module) if word.startswith("sweep_")]
    if name not in known:
        raise UserError(f"{file} has no sweep {name!r}; {nearest(name, known)}; or {GRID}")
    sweep = getattr(module, f"sweep_{name}")
    takes = len(inspect.signature(sweep).parameters)
    settings = list(sweep(*recipe.split(":", 1)[1:][:takes]))
    if not settings or not all(isinstance(setting, Mapping) for setting in settings):
        raise UserError(f"sweep_{name} of {file} must return a list of one dict of {{field: value}} or more")
    return [dict(setting) for setting in settings]


def parse_grid(text: str) -> list[dict[str, str]]:
    """Returns the product of `field=value,value; field=value`, the last field changing fastest.

    Args:
      text: the grid; quotes around a value are taken off.

    Raises:
      UserError: it is not well formed.
    """
    grid: dict[str, list[str]] = {}
    for clause in _split(text, ";"):
        field, equals, values = (part.strip() for part in clause.partition("="))
        if not clause.strip():
            continue
        if not equals or not re.fullmatch(r"\w+(\.\w+)*", field):
            raise UserError(f"{clause.strip()!r} in the sweep is no field=value,value; {GRID}")
        if field in grid:
            raise UserError(f"the sweep names {field} twice; give all its values in one place")
        grid[field] = [_unquote(value.strip(), field) for value in _split(values, ",")]
    if not grid:
        raise UserError(f"the sweep is empty; {GRID}")
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def _split(text: str, separator: str) -> list[str]:
    """Cuts at each separator that is in no quotes and no parentheses."""
    parts, depth = [""], 0
    for token in _TOKEN.findall(text):
        if token in ("'", '"'):
            raise UserError(f"a quote in {text.strip()!r} is not closed")
        depth += (token in ("(", "[")) - (token in (")", "]"))
        if depth < 0:
            break
        if token == separator and not depth:
            parts.append("")
        else:
            parts[-1] += token
    if depth:
        raise UserError(f"the parentheses in {text.strip()!r} do not match")
    return parts


def _unquote(value: str, field: str) -> str:
    if not value:
        raise UserError(f"a value of {field} in the sweep is missing; write '' for an empty string")
    if value[0] in "'\"" and _TOKEN.fullmatch(value):
        return re.sub(r"\\([\\'\"])", r"\1", value[1:-1])
    return value
