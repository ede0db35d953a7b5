"""Tables of a report."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Integer

from cnn_research.analysis.report.markup import Markup, element
from cnn_research.analysis.report.numbers import number

LARGEST_MATRIX = 20  # classes; more are too many to read
CONFUSED = 10  # pairs that are named


def table(heading: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1, class_: str = "") -> Markup:
    """Returns a table that scrolls by itself where the page is narrower.

    Args:
      heading: of the columns.
      rows: a cell is text or markup, also a whole `td`; the first of a row is its heading.
      left: so many first columns hold words, the others numbers.
      class_: of the table, further names.
    """
    head = [element("th", cell, scope="col", class_=_side(column, left)) for column, cell in enumerate(heading)]
    body = [
        element(
            "tr",
            element("th", row[0], scope="row"),
            *(
                cell
                if isinstance(cell, Markup) and cell.startswith("<td")
                else element("td", cell, class_=_side(column, left))
                for column, cell in enumerate(row[1:], start=1)
            ),
        )
        for row in rows
    ]
    whole = element("table", element("thead", element("tr", *head)), element("tbody", *body), class_=class_)
    return scrolling(whole, ", ".join(heading))


def scrolling(content: Markup, label: str) -> Markup:
    """Returns what scrolls by itself, also by the keyboard.

    Args:
      content: as wide as it likes.
      label: what it is, for those who hear it.
    """
    return element("div", content, class_="scroll", tabindex=0, role="region", aria_label=label)


def _side(column: int, left: int) -> str:
    return "word" if column < left else "number"


def share(value: float) -> Markup:
    """Returns a cell with a share of 1 in per cent, and a bar behind it.

    Args:
      value: in 0..1, or NaN, which is a dash.
    """
    if np.isnan(value):
        return element("td", "-", class_="number")
    return element("td", element("span", f"{value:.1%}"), class_="number share", style=f"--share:{value:.4f}")


def tiles(values: Sequence[tuple[str, str]]) -> Markup:
    """Returns numbers to see first, the first of them large.

    Args:
      values: (what it is, the number as text).
    """
    return _numbers(values, "tiles")


def metrics(values: Sequence[tuple[str, str]]) -> Markup:
    """Returns many numbers in little space.

    Args:
      values: (what it is, the number as text).
    """
    return _numbers(values, "metrics")


def _numbers(values: Sequence[tuple[str, str]], class_: str) -> Markup:
    pairs = (element("div", element("dt", name), element("dd", value)) for name, value in values)
    return element("dl", *pairs, class_=class_)


def details(summary: str, *content: str) -> Markup:
    """Returns what is closed until it is asked for.

    Args:
      summary: the line that opens it.
      *content: markup.
    """
    return element("details", element("summary", summary), *content)


def confusion(matrix: Integer[np.ndarray, "classes classes"], names: Sequence[str]) -> Markup:
    """Returns which class is taken for which: the matrix where it is small, and the most frequent mistakes.

    Args:
      matrix: counts[true, predicted].
      names: of the classes.
    """
    totals = np.maximum(matrix.sum(1), 1)
    mistakes = np.where(np.eye(len(matrix), dtype=bool), 0, matrix)
    order = np.argsort(-mistakes, axis=None, kind="stable")[:CONFUSED]
    pairs = [(int(true), int(said)) for true, said in zip(*np.unravel_index(order, matrix.shape), strict=True)]
    rows = [
        [names[true], names[said], f"{mistakes[true, said]:,}", share(mistakes[true, said] / totals[true])]
        for true, said in pairs
        if mistakes[true, said]
    ]
    parts = [_matrix(matrix, names)] if len(matrix) <= LARGEST_MATRIX else []
    if rows:
        frequent = table(["true", "taken for", "images", "of the class"], rows, left=2)
        parts.append(element("div", element("h3", "Most frequent mistakes"), frequent))
    return element("div", *parts, class_="columns")


def _matrix(matrix: np.ndarray, names: Sequence[str]) -> Markup:
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    mistakes = np.where(np.eye(len(matrix), dtype=bool), 0, shares)
    largest = max(float(mistakes.max()), 1e-9)
    heading = [element("th", element("span", name), scope="col") for name in names]
    rows = []
    for true, name in enumerate(names):
        cells = [element("th", name, scope="row")]
        for said in range(len(names)):
            right = true == said
            part = shares[true, said] if right else shares[true, said] / largest
            words = f"{name} as {names[said]}: {matrix[true, said]:,}, {shares[true, said]:.1%}"
            cells.append(
                element(
                    "td",
                    number(int(matrix[true, said])) if matrix[true, said] else "",
                    class_=f"{'right' if right else 'wrong'}{' deep' if part > 0.6 else ''}",
                    style=f"--share:{part:.3f}",
                    title=words,
                )
            )
        rows.append(element("tr", *cells))
    whole = element(
        "table",
        element("thead", element("tr", element("td"), *heading)),
        element("tbody", *rows),
        class_="matrix",
    )
    note = "A row is a true class, a column what the network says of it. Mistakes are coloured by their share of the"
    note += f" row, of which the largest is {largest:.1%}."
    return element("div", scrolling(whole, "confusion matrix"), element("p", note, class_="note"))
