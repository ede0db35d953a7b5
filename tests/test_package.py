"""The wheel holds the library alone, and is enough to create, restore and apply a network."""

import ast
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import jax
import pytest
import yaml

import cnn_research
from cnn_research import training

REPOSITORY = Path(__file__).parents[1]

APPLY = """
import sys
import jax
import cnn_research
from cnn_research import analysis, models

assert "site-packages" in cnn_research.__file__, cnn_research.__file__
run = analysis.load_run(sys.argv[1])
model = models.create(**run.config.model.to_dict())
logits = model.apply(run.variables, jax.numpy.zeros((2, 32, 32, 1)), train=False)
print(logits.shape, round(run.evaluate()["accuracy"], 6))
"""


# What runs what it reads, or hands text to a shell: no file from elsewhere may come near it.
UNSAFE_MODULES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
UNSAFE_CALLS = {
    *("eval", "exec", "os.system", "os.popen", "torch.load", "np.lib.format.read_array"),
    *("yaml.load", "yaml.unsafe_load", "yaml.full_load", "pd.read_pickle", "pickle.load", "pickle.loads"),
}


@pytest.mark.parametrize("folder", ["cnn_research", "experiments", "launch"])
def test_nothing_that_is_read_is_run(folder):
    """No unpickling, no shell: `interop.pth` reads the opcodes of a pickle, and runs none of what they name."""
    for path in (REPOSITORY / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            where = f"{path}, line {getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
                assert not UNSAFE_MODULES & {name.split(".")[0] for name in names}, where
            if isinstance(node, ast.Call):
                name, given = ast.unparse(node.func), {each.arg: ast.unparse(each.value) for each in node.keywords}
                assert name not in UNSAFE_CALLS, where
                assert given.get("shell", "False") == "False", where
                assert name not in ("np.load", "numpy.load") or given.get("allow_pickle") == "False", where


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(REPOSITORY)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    return next(folder.glob("*.whl"))


def test_wheel_holds_the_library_alone(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"cnn_research"}
    sources = {str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "cnn_research").rglob("*.py")}
    parts = {f"cnn_research/analysis/report/page.{kind}" for kind in ("css", "html", "js")}
    assert sources | parts | {"cnn_research/py.typed"} <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.slow
def test_wheel_in_an_empty_environment(wheel, digits_config, tmp_path):
    result = training.train(digits_config(), tmp_path / "run", jax.devices()[:1])
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    constraints = str(REPOSITORY / "constraints.txt")
    install = [python, "-m", "pip", "install", "--quiet", "-c", constraints, str(wheel)]
    subprocess.run(install, check=True, cwd=tmp_path, timeout=500)
    command = [python, "-c", APPLY, str(tmp_path / "run")]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split("\n")[-2] == f"(2, 10) {round(result['test/accuracy'], 6)}"


def test_the_release_has_one_version():
    """That of the package is the changelog's newest and the citation's."""
    changelog = (REPOSITORY / "CHANGELOG.md").read_text()
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    versions = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - \d{4}-\d{2}-\d{2}$", changelog, re.MULTILINE)
    assert versions[0] == citation["version"] == cnn_research.__version__
