"""What a user can get wrong, and how it is said: one line that names the fault and what would be right."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A fault of the input, not of the program; scripts print it as `error: …` and exit with 2."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns the end of an error message that names what `name` may have meant.

    Args:
      name: the word that is not known.
      known: the words that are.
    """
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(repr(word) for word in close) + "?"
    return "there " + ("are " + ", ".join(known) if len(known) > 1 else "is " + "".join(known) if known else "are none")
