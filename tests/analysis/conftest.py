"""What the tests of tables share."""

import pytest

from cnn_research import models
from cnn_research.analysis import tabulate
from cnn_research.analysis.table import Table


@pytest.fixture(scope="session")
def table():
    """Returns a function that tabulates a named network, once."""
    made: dict[str, Table] = {}

    def make(name):
        if name not in made:
            made[name] = tabulate(models.create(name), models.input_shape(name), name)
        return made[name]

    return make
