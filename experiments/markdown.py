"""Tables in reports."""

from collections.abc import Sequence


def markdown_table(rows: Sequence[Sequence[str]], left: int) -> list[str]:
    """Returns the lines of a markdown table whose columns are aligned as text, too.

    Args:
      rows: the first is the header; no cell may hold a bare `|`.
      left: so many first columns are flush left, the others right.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = "<" * left + ">" * (len(widths) - left)
    lines = [
        " | ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=True))
        for row in rows
    ]
    dashes = ["-" * (width + 1) for width in widths]
    rule = "|".join(f":{dash}" if side == "<" else f"{dash}:" for dash, side in zip(dashes, sides, strict=True))
    return [f"| {lines[0]} |", f"|{rule}|", *(f"| {line} |" for line in lines[1:])]
