"""Progress: a bar on a terminal, plain lines where there is none."""

import sys
import time
from typing import Any

import jax
from tqdm import tqdm


class Progress:
    """Steps done, images/s and the time left, on stderr of process 0."""

    def __init__(self, start: int, total: int, unit: str = "step"):
        """Begins.

        Args:
          start: steps done before.
          total: steps of the whole run.
          unit: what a step is called.
        """
        self._start, self._total, self._unit, self._began = start, total, unit, time.monotonic()
        self._speaks = jax.process_index() == 0
        terminal = self._speaks and sys.stderr.isatty()
        self._bar = _Bar(total=total, initial=start, unit=unit, dynamic_ncols=True, leave=False) if terminal else None

    def update(self, step: int, values: dict[str, float]) -> None:
        """Reports a step and its values.

        Args:
          step: steps done.
          values: `images_per_second` and metrics, under flat names.
        """
        if self._bar is not None:
            self._bar.update(step - self._bar.n)
            self._bar.set_postfix_str(describe(values))
        elif self._speaks:
            elapsed = time.monotonic() - self._began
            left = elapsed / max(step - self._start, 1) * (self._total - step)
            words = f"{self._unit} {step}/{self._total}", describe(values), f"left {tqdm.format_interval(left)}"
            self.say("  ".join(filter(None, words)))

    def say(self, text: str) -> None:
        """Prints a line, above the bar if there is one."""
        if self._speaks:
            tqdm.write(text, file=sys.stderr)

    def close(self) -> None:
        """Removes the bar."""
        if self._bar is not None:
            self._bar.close()


class _Bar(tqdm):
    """A bar that goes by a clock which nobody sets: tqdm's own freezes where the time of day is set back."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        self._time = time.monotonic
        self.start_t = self.last_print_t = self._time()


def describe(values: dict[str, Any]) -> str:
    """Returns `loss 0.0312  accuracy 0.9912  5,210 images/s`."""
    words = []
    for name, value in values.items():
        if name == "images_per_second":
            words.append(f"{value:,.0f} images/s")
        elif name not in ("seconds", "train/learning_rate", "train/gradient_norm"):
            words.append(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}")
    return "  ".join(words)
