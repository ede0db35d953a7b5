"""PyTorch, for the suites that compare with it."""

import os
from types import ModuleType

import jax
from absl import flags

from cnn_research.errors import UserError

_AGAINST = flags.DEFINE_enum("against", None, ["torch"], "train_step, conv, pool: the library to compare with, if any")


def imported() -> ModuleType | None:
    """Imports PyTorch if `--against` asks for it, on as many threads as there are cores.

    Raises:
      UserError: it is not installed, or has no accelerator where JAX has one.
    """
    if not _AGAINST.value:
        return None
    # The threads of an operator must not spin, waiting for the next one, when it is our turn.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # JAX would take three quarters of a GPU's memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.45")
    try:
        import torch  # here: PyTorch is no dependency, and takes two seconds to import
    except ImportError as error:
        raise UserError('--against=torch needs PyTorch; install it: pip install -e ".[torch]"') from error
    if jax.default_backend() != "cpu" and not torch.cuda.is_available():
        raise UserError("--against=torch: JAX has an accelerator, but PyTorch sees no GPU; set JAX_PLATFORMS=cpu")
    torch.set_num_threads(os.cpu_count() or 1)
    torch.backends.cudnn.benchmark = True  # tries cuDNN's forms of each convolution, as XLA does
    return torch
