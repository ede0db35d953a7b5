import importlib.util

import pytest
import tensorflow_datasets as tfds

from cnn_research.errors import UserError
from experiments import prepare_data


def test_embedded_set(tmp_path):
    builder = prepare_data.prepare("shapes/16x16_train6_test2_objects1-1", str(tmp_path), "", [])
    assert {name: split.num_examples for name, split in builder.info.splits.items()} == {"train": 6, "test": 2}
    assert tfds.builder_from_directory(builder.data_dir).info.full_name == builder.info.full_name


def test_unknown_name(tmp_path):
    with pytest.raises(UserError, match=r"--dataset=cifar11 is not in TFDS's catalogue; did you mean .*'cifar10'"):
        prepare_data.prepare("cifar11", str(tmp_path), "", [])


@pytest.mark.parametrize(("module", "options"), [("tensorflow", []), ("apache_beam", ["runner=DirectRunner"])])
def test_missing_library(tmp_path, monkeypatch, module, options):
    there = {"tensorflow", "apache_beam"} - {module}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name in there else None)
    with pytest.raises(UserError, match=f"needs {module}: pip install"):
        prepare_data.prepare("mnist", str(tmp_path), "", options)
    assert not list(tmp_path.iterdir())
