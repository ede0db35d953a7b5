"""Menus that choose which of many things is seen; without scripts, or on paper, all are."""

from collections.abc import Sequence
from typing import NamedTuple

from cnn_research.analysis.report.markup import Markup, element


class Panel(NamedTuple):
    """What menus choose.

    Attributes:
      group: of choices, in the first menu.
      choice: in the first menu.
      part: in the second menu; empty where the choice has but one.
      content: what is seen.
    """

    group: str
    choice: str
    part: str
    content: Markup


def picker(panels: Sequence[Panel], choice: str, part: str = "") -> Markup:
    """Returns the menus and all panels; the page's script hides all but the chosen one.

    Args:
      panels: at least one.
      choice: what the first menu is of.
      part: what the second is of.
    """
    choices = dict.fromkeys((panel.group, panel.choice) for panel in panels)
    groups = [
        element("optgroup", *(element("option", name) for of, name in choices if of == group), label=group)
        for group in dict.fromkeys(group for group, _ in choices)
    ]
    menus = [
        element("label", element("span", label), element("select", *options, autocomplete="off"))
        for label, options in ((choice, groups), (part, []))
    ]
    shown = [
        element("div", panel.content, class_="panel", data_choice=panel.choice, data_part=panel.part)
        for panel in panels
    ]
    return element("div", element("div", *menus, class_="menus"), *shown, class_="picker")
