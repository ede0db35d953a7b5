import json
import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def test_loop(tmp_path):
    """Two turns of a few steps: the form of what it prints, not its figures."""
    command = [sys.executable, "-m", "experiments.benchmark", "--suite=loop", "--rounds=1", "--steps=30"]
    environment = {key: value for key, value in os.environ.items() if key != "CNN_RESEARCH_DATA_DIRS"}
    ended = subprocess.run(
        [*command, "--examples=300", "--models=lenet5_modern", f"--out={tmp_path / 'loop.json'}"],
        cwd=REPOSITORY,
        env={**environment, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert ended.returncode == 0, ended.stderr
    result = json.loads(ended.stdout.splitlines()[-1])
    assert json.loads((tmp_path / "loop.json").read_text()) == result
    assert result["suite"] == "loop"
    assert [row["model"] for row in result["rows"]] == ["lenet5_modern"]
    for row in result["rows"]:
        assert row["bare_images_per_s"] > 0
        assert 0 < row["ratio"] < 2
        assert row["data"].startswith("shapes/32x32")


def test_unknown_suite():
    command = [sys.executable, "-m", "experiments.benchmark", "--suite=lop"]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 2
    assert ended.stderr == "error: --suite=lop is unknown; did you mean 'loop'?\n"
