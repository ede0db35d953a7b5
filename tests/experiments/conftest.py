"""Lets the tests import several scripts, which define flags of the same names, and run many command lines quickly."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags

REPOSITORY = Path(__file__).parents[2]

# Starts as a script does, then gives each command line a process of its own, as the shell does, but imports only once:
# that is most of what a small run takes.
FORKS = """
import importlib, json, os, signal, sys, tempfile
sys.path[0] = os.getcwd()  # command lines run elsewhere
import cv2, jax, matplotlib.pyplot
from cnn_research import analysis, data, interop, models, tasks, training
from experiments import command_line

for line in sys.stdin:
    folder, settings, script, *arguments = json.loads(line)
    files = [tempfile.TemporaryFile("w+") for _ in range(2)]
    child = os.fork()
    if not child:
        os.dup2(files[0].fileno(), 1), os.dup2(files[1].fileno(), 2)
        signal.alarm(500)
        os.chdir(folder)
        for name, value in settings.items():
            jax.config.update(name, value)
        sys.argv = [script, *arguments]
        sys.modules["__main__"] = module = importlib.import_module(script)
        command_line.run(module.main)
        sys.exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(json.dumps([code, *(file.seek(0) or file.read() for file in files)]), flush=True)
"""


def pytest_collectstart(collector):
    if isinstance(collector, pytest.Module):
        for module, defined in flags.FLAGS.flags_by_module_dict().items():
            for flag in list(defined) if module.startswith("experiments.") else ():
                delattr(flags.FLAGS, flag.name)


@pytest.fixture(scope="session")
def shell(data_dir):
    """Returns a function from a script's name and arguments to the exit code, stdout and stderr that a shell gets.

    Further arguments of the function are settings of JAX.
    """
    with subprocess.Popen(
        [sys.executable, "-c", FORKS],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    ) as process:

        def run(script, *arguments, folder=REPOSITORY, **settings):
            line = [str(folder), settings, f"experiments.{script}", *map(str, arguments)]
            process.stdin.write(json.dumps(line) + "\n")
            process.stdin.flush()
            return tuple(json.loads(process.stdout.readline()))

        yield run
        process.stdin.close()


@pytest.fixture
def script(shell):
    """Returns a function from a script's name and arguments to what it prints, when it ends well."""

    def run(*command):
        code, out, err = shell(*command)
        assert code == 0, err
        return out

    return run
