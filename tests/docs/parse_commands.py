"""Parses commands as the scripts would, and runs none; a process of its own, since scripts share names of flags.

Takes a list of commands, each a list of words from the module on, as JSON; gives a list of complaints, "" for none.
"""

import importlib
import json
import sys

from absl import flags

from cnn_research import models
from experiments.sweeps import arms
from launch import submit

LOCAL = {"--processes", "--devices", "--grace", "--"}


def check(words):
    """Raises what the script would."""
    module, *arguments = words
    if module == "launch.local":
        assert {argument.partition("=")[0] for argument in arguments} <= LOCAL, arguments
    elif module == "launch.submit":
        _, job, _ = submit.read(arguments)
        check(["experiments.train", *job.arguments, f"--workdir={job.workdir}"])
    else:
        parse(module, arguments)


def parse(module, arguments):
    """Parses arguments with a script's flags alone: scripts are imported anew, all flags defined before are gone."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "experiments"]:
        del sys.modules[name]
    for flag in list(flags.FLAGS):
        delattr(flags.FLAGS, flag)
    importlib.import_module(module)
    sys.argv = [module, *arguments]
    importlib.import_module("experiments.command_line")._parse(sys.argv)
    given = {argument.partition("=")[0]: argument.partition("=")[2] for argument in arguments}
    if "--model" in given:
        models.task(given["--model"])
    if "--sweep" in given:
        recipe, sweep = given["--config"], given["--sweep"]
        settings = arms.parse_grid(sweep) if "=" in sweep else arms.named_sweep(recipe, sweep)
        for setting in settings:
            field = {name: str(value) for name, value in setting.items() if name != arms.RECIPE_ARGUMENT}
            own = setting.get(arms.RECIPE_ARGUMENT)
            arms.resolve(f"{recipe.partition(':')[0]}:{own}" if own else recipe, field)


def complaint(words):
    try:
        check(words)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


if __name__ == "__main__":
    print(json.dumps([complaint(words) for words in json.load(sys.stdin)]))
