"""What every test shares: eight virtual devices, shapes checked as code runs, a folder of their own for data sets."""

import os
import sys
from pathlib import Path

import jax
import pytest
from jaxtyping import install_import_hook

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)

# Many tests, and the scripts that they start, compile the same programs.
CACHE = Path(__file__).parent.parent / ".pytest_cache" / "xla"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(CACHE)
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)

# Folders of tests whose programs run once.
ONCE = ("attribution", "interop", "launch", "layers", "models", "neurons", "notebooks", "ops", "tasks", "training")

# Before the package is imported: the hook rewrites its modules as they load.
install_import_hook("cnn_research", "beartype.beartype")


@pytest.fixture(scope="session", autouse=True)
def data_dir(tmp_path_factory):
    """The folder that embedded data sets are prepared in, once for all of pytest's processes."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "tensorflow_datasets"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDS_DATA_DIR", str(shared))
        yield shared


@pytest.fixture(scope="module", autouse=True)
def _compile_quickly(request):
    """Skips LLVM's optimizations, which take most of the time to compile, where programs are compiled and run once."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", request.path.parent.name in ONCE)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="session")
def real_data():
    """Skips where there is no folder of real data sets."""
    folders = [Path(folder) for folder in os.environ.get("CNN_RESEARCH_DATA_DIRS", "").split(os.pathsep) if folder]
    if not any(folder.is_dir() for folder in folders):
        pytest.skip("no real data: CNN_RESEARCH_DATA_DIRS names no folder")
    return folders


@pytest.fixture(scope="session")
def digits_config():
    """Returns a function that gives a config of a few quick steps on the embedded digits."""
    from cnn_research import training

    def make(model="lenet5_modern", **fields):
        config = training.default_config(model, **{"num_classes": 10, **fields})
        config.data.update(name="digits", channels=1, mean=(0.3,), std=(0.38,))
        config.update(duration="12", batch_size=32, log_every=4, eval_every="6", checkpoint_every="6")
        config.optimizer.update(learning_rate=0.02)
        config.tensorboard = False
        return config

    return make


@pytest.fixture(scope="session")
def torchvision():
    """Torchvision's module; its compiled operators may be of another PyTorch's build, and then are not there."""
    torch = pytest.importorskip("torch")
    try:
        return pytest.importorskip("torchvision")
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):  # all that its import asks for
            library.define(f"{operator}(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor")
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        import torchvision

        torchvision.library = library  # what it defines goes with it
        return torchvision
