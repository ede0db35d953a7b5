"""Lets the tests import several scripts, which define flags of the same names, each for a process of its own."""

import pytest
from absl import flags


def pytest_collectstart(collector):
    if isinstance(collector, pytest.Module):
        for module, defined in flags.FLAGS.flags_by_module_dict().items():
            for flag in defined if module.startswith("experiments.") else ():
                delattr(flags.FLAGS, flag.name)
