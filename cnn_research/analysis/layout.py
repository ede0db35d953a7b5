"""Where the blocks of a network's picture stand, and how its arrows run. All lengths are in inches, y goes up.

Columns follow the longest way through the network. That way is a straight line, or where maps grow again a U whose
levels are the maps' sizes; branches and skips run beside it, as near as what is already there lets them.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence

from cnn_research.analysis.blocks import MERGE, Block, Point, make_block, maps
from cnn_research.analysis.graph import CUT, IMAGES, PART, Graph

TALLEST = (1.5, 0.85)  # the largest maps, in networks without and with many branches
GAP = 0.34  # between blocks that arrows join
TIGHT = 0.03  # between blocks that follow each other at one size
LEVEL = 0.6  # from one size of maps to the next, in a U
CLEAR = 0.14  # between rows
UPRIGHT_COLUMNS = 14  # up to so many columns labels are horizontal


@dataclasses.dataclass(frozen=True)
class Layout:
    """A picture's parts.

    Attributes:
      blocks: by the names of their nodes, from left to right.
      wires: corners of the arrows.
      brackets: modules that hold several blocks: name, left and right end.
      bounds: left, bottom, right, top.
    """

    blocks: dict[str, Block]
    wires: list[list[Point]]
    brackets: list[tuple[str, float, float]]
    bounds: tuple[float, float, float, float]


def lay_out(graph: Graph) -> Layout:
    """Returns the layout of a graph's picture.

    Args:
      graph: of a network, with no more nodes than can be drawn.
    """
    return _Plan(graph).make()


@dataclasses.dataclass
class _Chain:
    """Nodes beside the main way that follow each other, or none of them: an arrow over others.

    Attributes:
      source: where it comes from.
      nodes: names.
      target: where it goes to; "" is nowhere.
    """

    source: str
    nodes: list[str]
    target: str


class _Plan:
    """Makes one layout."""

    def __init__(self, graph: Graph):
        """Takes the graph."""
        self._nodes = dict(graph.nodes)
        self._ranks = graph.ranks()
        self._takers = graph.consumers()
        self._columns: list[list[str]] = [[] for _ in range(max(self._ranks.values()) + 1)]
        for name, rank in self._ranks.items():
            self._columns[rank].append(name)
        self._upright = len(self._columns) <= UPRIGHT_COLUMNS
        crowded = max(map(len, self._columns)) > 2
        self._tallest = TALLEST[crowded]
        self._largest = max([max(size[:2]) for node in graph.nodes.values() if (size := maps(node))], default=1)
        self._blocks: dict[str, Block] = {}
        self._tight: set[str] = set()
        self._wires: list[list[Point]] = []

    def make(self) -> Layout:
        """Returns the layout."""
        main = self._main()
        chains = self._chains(main)
        self._levels = self._levels_of(main)
        for name, node in self._nodes.items():
            self._blocks[name] = make_block(node, self._tallest, self._largest, self._upright)
        self._place_columns()
        self._top = [max([b.center[1] + b.above for b in self._column(c, main)], default=0) for c in self._columns]
        self._bottom = [min([b.center[1] - b.below for b in self._column(c, main)], default=0) for c in self._columns]
        for chain in sorted(chains, key=lambda chain: (not chain.nodes, self._span(chain))):
            self._place_chain(chain)
        self._wire_ways([main, *(chain.nodes for chain in chains)])
        ordered = sorted(self._blocks.values(), key=lambda block: block.center[0])
        left = min(min(b.center[0] - b.half, b.center[0] - b.shift - b.label_size[0] / 2) for b in ordered)
        right = max(max(b.center[0] + b.half, b.center[0] - b.shift + b.label_size[0] / 2) for b in ordered)
        bounds = left, min(self._bottom), right, max(self._top)
        return Layout({block.node.name: block for block in ordered}, self._wires, self._brackets(), bounds)

    def _place_columns(self) -> None:
        """Gives each column its x, and the blocks of the main way their y."""
        x, before = 0.0, list[Block]()
        for column in self._columns:
            blocks = [self._blocks[name] for name in column]
            tight = all(map(self._may_be_tight, column))
            if tight:
                self._tight.update(column)
                [block], [last] = blocks, before
                blocks = [dataclasses.replace(block, drop=max(0.0, last.above + last.drop - block.above))]
            if before:
                ends = [max(b.width / 2 if tight else b.half for b in each) for each in (before, blocks)]
                labels = [max(b.label_size[0] for b in each) / 2 for each in (before, blocks)]
                slack = max(b.shift for b in blocks) - min(b.shift for b in before)
                x += max(sum(ends) + (TIGHT if tight else GAP), sum(labels) + 0.07 + max(0.0, slack))
            for block in blocks:
                name = block.node.name
                self._blocks[name] = dataclasses.replace(block, center=(x, self._levels.get(name, 0.0)))
            before = blocks

    def _may_be_tight(self, name: str) -> bool:
        """Tells whether a block can stand right behind the one before it, as those of one size do, and poolings."""
        node = self._nodes[name]
        if self._upright or len(node.inputs) != 1 or self._takers[node.inputs[0]] != [name]:
            return False
        before = self._nodes[node.inputs[0]]
        if node.merges or before.merges or {IMAGES, PART} & {node.kind, before.kind}:
            return False
        if self._levels.get(name) != self._levels.get(before.name) or "Pool" in before.kind:
            return False
        size, earlier = maps(node), maps(before)
        if not size or not earlier or len(self._columns[self._ranks[name] - 1]) > 1:
            return False
        return "Pool" in node.kind or abs(math.log2(size[0] / earlier[0])) < 0.25

    def _main(self) -> list[str]:
        """Returns the longest way, from the image on."""
        [name, *_] = self._columns[-1]
        way = [name]
        while inputs := self._nodes[way[0]].inputs:
            way.insert(0, next(source for source in inputs if self._ranks[source] == self._ranks[way[0]] - 1))
        return way

    def _chains(self, main: Sequence[str]) -> list[_Chain]:
        """Returns all else: branches, and the arrows that belong to none."""
        placed, chains = set(main), list[_Chain]()
        drawn = set(itertools.pairwise(main))
        for name, node in self._nodes.items():
            if name in placed:
                continue
            nodes = [name]
            while following := [taker for taker in self._takers[nodes[-1]] if taker not in placed | {*nodes}]:
                nodes.append(following[0])
            placed.update(nodes)
            source = node.inputs[0] if node.inputs else ""
            target = next(iter(self._takers[nodes[-1]]), "")
            chains.append(_Chain(source, nodes, target))
            way = [source, *nodes, target]
            drawn.update(itertools.pairwise(way))
        links = [(source, node.name) for node in self._nodes.values() for source in node.inputs]
        return chains + [_Chain(source, [], target) for source, target in links if (source, target) not in drawn]

    def _levels_of(self, main: Sequence[str]) -> dict[str, float]:
        """Returns the y of the blocks of the main way: that of their size where maps grow again."""
        heights = [size[0] if (size := maps(self._nodes[name])) else 0 for name in main]
        grows = any(after > before > 0 for before, after in itertools.pairwise(heights[1:]))
        cuts = any(node.kind == CUT for node in self._nodes.values())
        y, levels = 0.0, dict[str, float]()
        for name, height in zip(main, heights, strict=True):
            if grows and not cuts and height:
                y = -LEVEL * round(math.log2(self._largest / height))
            levels[name] = y
        return levels

    def _column(self, column: Iterable[str], among: Sequence[str]) -> list[Block]:
        return [self._blocks[name] for name in column if name in among]

    def _move(self, name: str, y: float) -> None:
        block = self._blocks[name]
        self._blocks[name] = dataclasses.replace(block, center=(block.center[0], y))

    def _span(self, chain: _Chain) -> int:
        return len(self._between(chain))

    def _between(self, chain: _Chain) -> range:
        """Returns the columns that a chain passes."""
        ends = [self._ranks[name] for name in chain.nodes]
        first = self._ranks[chain.source] + 1 if chain.source else min(ends)
        last = self._ranks[chain.target] - 1 if chain.target else max(ends)
        return range(first, last + 1)

    def _place_chain(self, chain: _Chain) -> None:
        """Gives a chain its y, above or below what is there, and draws its arrows."""
        columns = self._between(chain)
        start = self._blocks[chain.source].center[1] if chain.source else 0.0
        if chain.nodes:
            blocks = [self._blocks[name] for name in chain.nodes]
            above = max(self._top[c] for c in columns) + CLEAR + max(block.below for block in blocks)
            below = min(self._bottom[c] for c in columns) - CLEAR - max(block.above for block in blocks)
            y = above if abs(above - start) <= abs(below - start) else below
            for name in chain.nodes:
                self._move(name, y)
                block, rank = self._blocks[name], self._ranks[name]
                self._top[rank] = max(self._top[rank], y + block.above)
                self._bottom[rank] = min(self._bottom[rank], y - block.below)
        else:
            end = self._blocks[chain.target].center[1]
            merges = self._nodes[chain.target].merges
            passed = [*columns, *([columns.stop] if merges and columns else [])]
            free = max((self._top[c] for c in passed), default=-math.inf) + CLEAR
            y = start if free <= start else free
            if not columns:
                y = end
        for column in columns:
            self._top[column] = max(self._top[column], y)
            self._bottom[column] = min(self._bottom[column], y)
        self._wire_chain(chain, y)

    def _wire_chain(self, chain: _Chain, y: float) -> None:
        first = chain.nodes[0] if chain.nodes else chain.target
        if chain.source:
            x, level = self._leaving(chain.source)
            bend = self._bend(chain.source)
            start = [(x, level), *([(bend, level), (bend, y)] if abs(level - y) > 1e-6 else [])]
            if chain.nodes:
                self._wires.append([*start, (self._arriving(first)[0], y)])
            else:
                self._wires.append([*start, *self._into(chain.target, y)])
        if chain.nodes and chain.target:
            self._wires.append([self._leaving(chain.nodes[-1]), *self._into(chain.target, y)])

    def _into(self, target: str, y: float) -> list[Point]:
        """Returns the corners by which an arrow at a height ends in a block: from the side, in a merge from above."""
        block = self._blocks[target]
        x, level = self._arriving(target)
        if abs(y - level) < 1e-6:
            return [(x, level)]
        if block.node.merges:
            return [(block.center[0], y), (block.center[0], level + math.copysign(MERGE / 2, y - level))]
        bend = x - GAP / 3
        return [(bend, y), (bend, level), (x, level)]

    def _leaving(self, name: str) -> Point:
        x, y = self._blocks[name].center
        return x + self._blocks[name].reach, y

    def _bend(self, name: str) -> float:
        """Returns where arrows turn that leave a block: beyond its label."""
        block = self._blocks[name]
        beyond = block.center[0] - block.shift + block.label_size[0] / 2 + 0.035
        return max(self._leaving(name)[0] + GAP / 3, beyond)

    def _arriving(self, name: str) -> Point:
        x, y = self._blocks[name].center
        return x - self._blocks[name].reach, y

    def _wire_ways(self, ways: Iterable[Sequence[str]]) -> None:
        """Draws the arrows between neighbours that stand apart."""
        for way in ways:
            for source, target in itertools.pairwise(way):
                (left, level), (right, y) = self._leaving(source), self._arriving(target)
                if target in self._tight:
                    continue
                if abs(level - y) < 1e-6:
                    self._wires.append([(left, level), (right, y)])
                else:
                    bend = self._bend(source)
                    self._wires.append([(left, level), (bend, level), (bend, y), (right, y)])

    def _brackets(self) -> list[tuple[str, float, float]]:
        """Returns the modules of more than one block, and how far each reaches."""
        members: dict[str, list[Block]] = {}
        for name, block in self._blocks.items():
            module = name.rpartition("/")[0]
            if module:
                members.setdefault(module, []).append(block)
        return [
            (
                module,
                min(b.center[0] - max(b.half, b.shift + b.label_size[0] / 2) for b in blocks),
                max(b.center[0] + b.half for b in blocks),
            )
            for module, blocks in members.items()
        ]
