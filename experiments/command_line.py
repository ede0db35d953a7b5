"""What the scripts share: flags in, one line and an exit code out.

Exit codes: 0 done; 1 a bug, with its traceback; 2 the input was not right, one line `error: …`; 75 asked to stop by
SIGTERM and saved, try again; 130 the same by Ctrl-C.
"""

import errno
import importlib.util
import logging
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
from absl import flags
from absl import logging as absl_logging
from ml_collections import ConfigDict

from cnn_research.errors import UserError, nearest
from cnn_research.training import Stopped, config, distributed

TRY_AGAIN = 75  # EX_TEMPFAIL of sysexits.h; launchers start the run again


def run(main: Callable[[], None]) -> None:
    """Parses the command line, runs a script's main function, and ends the process.

    Args:
      main: reads the flags that its module defined.
    """
    _quiet()
    try:
        _parse(sys.argv)
        enable_compilation_cache()
        main()
    except UserError as error:
        distributed.end(2, f"error: {_one_line(error)}")
    except Stopped as stop:  # in all processes after the same step
        if jax.process_index() == 0:
            print(stop, file=sys.stderr)
        sys.exit(TRY_AGAIN if stop.signal == signal.SIGTERM else 128 + stop.signal)
    except KeyboardInterrupt:
        distributed.end(130, "interrupted")
    except BrokenPipeError:  # the reader, `head` say, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        # A path that cannot be read or written; a full disk, whose fault names no path.
        if error.filename is None and error.errno not in (errno.ENOSPC, errno.EDQUOT):
            _bug()
        said = ": ".join(str(part) for part in (error.filename, error.strerror) if part)
        distributed.end(2, f"error: {_one_line(said)}")
    except ImportError as error:
        if not str(error).startswith("Please install"):  # fsspec's, of what reads a bucket
            _bug()
        distributed.end(2, f'error: {error}: pip install -e ".[gcs]"')
    except Exception:
        _bug()


def _bug() -> NoReturn:
    if not jax.distributed.is_initialized():
        raise
    distributed.end(1, traceback.format_exc())


def _one_line(error: object) -> str:
    return " ".join(str(error).split())


def _quiet() -> None:
    """Keeps libraries' notes of their own doings out of the run's output; warnings stay."""
    logging.getLogger("jax").setLevel(logging.WARNING)
    absl_logging.set_verbosity(absl_logging.ERROR)  # Orbax and TFDS warn there of what is no fault
    # Where a checkpoint cannot be written, each of Orbax's threads tells its traceback; then Orbax raises the fault.
    logging.getLogger("absl").addFilter(lambda record: f"{os.sep}orbax{os.sep}" not in record.pathname)
    # Of a damaged checkpoint Orbax reads many parts at once; each tells its fault, of which one is in our own line.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)


def enable_compilation_cache() -> None:
    """Keeps compiled programs between runs, in `JAX_COMPILATION_CACHE_DIR` or the user's cache folder."""
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
        jax.config.update("jax_compilation_cache_dir", str(base / "cnn_research" / "xla"))
    if not os.environ.get("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        # JAX keeps what took a second; half of what a small network's first step waits for takes less.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def _parse(argv: Sequence[str]) -> None:
    """Parses flags; absl's, ml_collections' and our own complaints all become `UserError`s."""
    if {"-h", "--help", "-help"} & set(argv):
        print(f"{sys.modules['__main__'].__doc__}\n{flags.FLAGS.main_module_help()}")
        sys.exit(0)
    if "config" in flags.FLAGS:
        _check_config_flags(argv[1:])
    try:
        rest = flags.FLAGS(list(argv))
    except flags.Error as error:
        raise UserError(_plain(_one_line(error))) from error
    if rest[1:]:
        raise UserError(f"unexpected argument {rest[1]!r}; flags are written --name=value")


def _plain(message: str) -> str:
    return re.sub(r"^flag --(\S+?)=(.*?): ", r"--\1=\2: ", message)


def _check_config_flags(arguments: Sequence[str]) -> None:
    """Refuses a recipe or a field that does not exist, before ml_collections sees it."""
    given = [argument for argument in arguments if re.match(r"--?config(=|$)", argument)]
    if not given:
        return
    if "=" not in given[-1]:
        raise UserError("write --config=FILE, with an equals sign")
    known = config.flatten(load_config(given[-1].split("=", 1)[1]))
    for argument in arguments:
        match = re.match(r"--?(no)?config\.([^=]+)", argument)
        if match and match[2] not in known:
            raise UserError(f"--config.{match[2]} is no field of this config; {nearest_field(match[2], known)}")


def nearest_field(field: str, known: dict[str, Any]) -> str:
    """Returns the end of a message that names what a field may have meant.

    Args:
      field: `optimizer.lerning_rate`.
      known: all fields of the config.
    """
    inside = [name for name in known if name.startswith(field + ".")]
    if inside:
        return "it has the fields " + ", ".join(inside)
    hint = nearest(field, known)
    if hint.startswith("did you mean"):
        return hint
    alike = nearest(field.rsplit(".", 1)[-1], {name.rsplit(".", 1)[-1] for name in known})
    return alike if alike.startswith("did you mean") else "the recipe's config lists its fields"


def load_config(path: str) -> ConfigDict:
    """Returns the config of `FILE.py` or `FILE.py:argument`.

    Raises:
      UserError: there is no such file, it has no `get_config`, or that refuses the argument.
    """
    module = load_recipe(path)
    arguments = path.split(":", 1)[1:]
    try:
        return module.get_config(*arguments)
    except TypeError as error:
        if arguments and "positional argument" in str(error):
            raise UserError(f"{path.split(':', 1)[0]} takes no argument after the colon") from error
        raise


def load_recipe(path: str) -> Any:
    """Returns the module of a recipe, `FILE.py` or `FILE.py:argument`.

    Raises:
      UserError: there is no such file or it has no `get_config`.
    """
    file = Path(path.split(":", 1)[0])
    if not file.is_file():
        there = [str(other) for other in file.parent.glob("*.py")] if file.parent.is_dir() else []
        hint = f"; {nearest(str(file), there)}" if there else "; recipes are in experiments/configs"
        raise UserError(f"there is no recipe {str(file)!r}{hint}")
    spec = importlib.util.spec_from_file_location(f"recipe_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise UserError(f"recipe {str(file)!r} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise UserError(f"recipe {str(file)!r} has no function get_config")
    return module


def require(*names: str) -> None:
    """Refuses a command line without these flags.

    Raises:
      UserError: naming the first that is missing.
    """
    for name in names:
        if flags.FLAGS[name].value in (None, "", []):
            raise UserError(f"--{name} is missing; it is {flags.FLAGS[name].help}")
