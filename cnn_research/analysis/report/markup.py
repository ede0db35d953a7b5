"""HTML out of Python: whatever is not markup yet is escaped, so that no name can become any."""

import html

# Elements without content, which have no end tag.
VOID = ("img", "wbr")


class Markup(str):
    """Text that is HTML already."""

    def __add__(self, other: str) -> "Markup":
        """Returns both, text escaped."""
        return join(self, other)


def element(tag: str, *content: str, **attributes: str | int | float | bool) -> Markup:
    """Returns an element.

    Args:
      tag: its name.
      *content: markup, or text, which is escaped.
      **attributes: escaped too; `class_` is class and `data_x` is data-x; True gives the bare name, False nothing.
    """
    words = [tag]
    for key, value in attributes.items():
        name = key.rstrip("_").replace("_", "-")
        if value is True:
            words.append(name)
        elif value is not False:
            words.append(f'{name}="{html.escape(str(value))}"')
    return Markup(f"<{' '.join(words)}>" + ("" if tag in VOID else f"{join(*content)}</{tag}>"))


def join(*parts: str) -> Markup:
    """Returns markup and text, which is escaped, one after the other."""
    return Markup("".join(part if isinstance(part, Markup) else html.escape(part, quote=False) for part in parts))
