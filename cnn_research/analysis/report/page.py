"""One page that needs nothing but itself: sections in order, with their style, script and pictures inside."""

import importlib.resources
import string
from collections.abc import Sequence
from typing import NamedTuple

from cnn_research.analysis.report.markup import Markup, element, join


class Section(NamedTuple):
    """A part of a page.

    Attributes:
      title: its heading, and its place in the page's list of sections.
      body: what is under it.
    """

    title: str
    body: Markup

    @property
    def anchor(self) -> str:
        """The word that links to it."""
        return self.title.lower().replace(" ", "-")


def page(kind: str, title: str, subtitle: str, sections: Sequence[Section], footer: str) -> str:
    """Returns a page. Its policy (CSP) makes browsers refuse whatever would come from elsewhere.

    Args:
      kind: what the page is about, above its title.
      title: its heading.
      subtitle: a line under it.
      sections: in order.
      footer: the last line.
    """
    return string.Template(_part("page.html")).substitute(
        kind=join(kind),
        title=join(title),
        subtitle=join(subtitle),
        links=join(*(element("a", section.title, href=f"#{section.anchor}") for section in sections)),
        sections=join(*map(_section, sections)),
        footer=join(footer),
        style=_part("page.css"),
        script=_part("page.js"),
    )


def _section(section: Section) -> Markup:
    return element("section", element("h2", section.title), section.body, id=section.anchor)


def _part(name: str) -> str:
    return (importlib.resources.files(__package__) / name).read_text(encoding="utf-8")
