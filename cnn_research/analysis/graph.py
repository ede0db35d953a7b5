"""A network becomes a graph of its layers: what each takes from where, read from the traced program."""

import dataclasses
import graphlib
import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flax import linen as nn
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var

from cnn_research.analysis.receptive_field import INPUT, inner_programs
from cnn_research.analysis.table import Row, Table
from cnn_research.analysis.tabulate import IN_PLACE, tabulate_traced
from cnn_research.analysis.trace import Traced, trace_network
from cnn_research.layers import Activation

IMAGES = "images"

# Where tensors of several layers become one: kind by operation. CUT is anything else, such as maps cut out by boxes.
ADD, CONCAT, MULTIPLY, CUT = "add", "concat", "multiply", "cut"
MERGES = {"add": ADD, "add_any": ADD, "concatenate": CONCAT, "mul": MULTIPLY}
PART = "part"  # a module drawn as one block

Sources = frozenset[str]
NOTHING: Sources = frozenset()


@dataclasses.dataclass(frozen=True)
class Node:
    """A tensor of one example, by what makes it.

    Attributes:
      name: of the layer; of a merge that of the module that gives it, or `add1` in the module whose layer takes it.
      kind: of the layer as tables have it, `images`, one of the merges, or `part`.
      shape: of the tensor.
      inputs: names of the nodes that it is made of.
      row: of the table, where it is a layer.
      activated: whether an activation writes over it.
      inside: nodes of a part.
      count: equal parts in a row that it stands for.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    inputs: tuple[str, ...] = ()
    row: Row | None = None
    activated: bool = False
    inside: tuple["Node", ...] = ()
    count: int = 1

    @property
    def merges(self) -> bool:
        """Whether it puts several tensors together without weights of its own."""
        return self.kind in (*MERGES.values(), CUT)


@dataclasses.dataclass(frozen=True)
class Graph:
    """A network's tensors, each after those that it is made of; layers that write over their input have none.

    Attributes:
      table: of the network.
      nodes: by name.
    """

    table: Table
    nodes: Mapping[str, Node]

    def modules(self) -> list[str]:
        """Returns the names of the modules that hold nodes."""
        names = (name.split("/") for name in self.nodes)
        return list(dict.fromkeys("/".join(each[:end]) for each in names for end in range(1, len(each))))

    def consumers(self) -> dict[str, list[str]]:
        """Returns for each node the names of those that take it."""
        taken: dict[str, list[str]] = {name: [] for name in self.nodes}
        for node in self.nodes.values():
            for source in node.inputs:
                taken[source].append(node.name)
        return taken

    def ranks(self) -> dict[str, int]:
        """Returns for each node how many there are on the longest way to it."""
        ranks: dict[str, int] = {}
        for node in self.nodes.values():
            ranks[node.name] = max((ranks[source] + 1 for source in node.inputs), default=0)
        return ranks


def make_graph(model: nn.Module, input_shape: tuple[int, int, int], name: str = "") -> Graph:
    """Returns the graph of a network as it evaluates one image.

    Args:
      model: the network.
      input_shape: (height, width, channels) of the images.
      name: of the network; its class unless given.

    Raises:
      UserError: a layer cannot take what reaches it.
    """
    traced = trace_network(model, input_shape)
    table = tabulate_traced(traced, name or type(model).__name__)
    return Graph(table, _without_in_place(_Reader(traced, table).read(), traced))


class _Reader:
    """Follows an image through a program, and notes what each named array is made of."""

    def __init__(self, traced: Traced, table: Table):
        """Takes what was traced and its table, whose rows are the layers."""
        self._program = traced.program.jaxpr
        self._rows = {row.name: row for row in table.rows if row.output_shape is not None}
        self._leaves = {call.name for call in traced.calls if call.leaf}
        self._joins = {call.name for call in traced.calls if call.joins}
        self._nodes = {IMAGES: Node(IMAGES, IMAGES, traced.input_shape)}
        self._given: dict[str, str] = {}  # the modules that give merges
        self._running = ""  # the leaf whose equations these are

    def read(self) -> dict[str, Node]:
        """Returns the nodes."""
        arguments = [NOTHING] * (len(self._program.invars) - 1) + [frozenset([IMAGES])]
        self._walk(self._program, arguments)
        return self._named()

    def _walk(self, jaxpr: Jaxpr, arguments: Sequence[Sources]) -> list[Sources]:
        known = dict(zip(jaxpr.invars, arguments, strict=True))

        def sources(atoms: Iterable[Any]) -> list[Sources]:
            return [known.get(atom, NOTHING) if isinstance(atom, Var) else NOTHING for atom in atoms]

        for eqn in jaxpr.eqns:
            operands = sources(eqn.invars)
            if eqn.primitive.name == "name":
                name = eqn.params["name"]
                results = [self._named_array(name, operands[0], _shape(eqn.outvars[0]))]
                if not name.startswith(INPUT):  # `taps.intermediates` gives what has no name yet
                    known.update({atom: results[0] for atom in eqn.invars if isinstance(atom, Var)})
            elif inner := inner_programs(eqn) if any(operands) else []:
                ends = [self._walk(each, operands[len(operands) - len(each.invars) :]) for each in inner]
                results = [NOTHING.union(*parts) for parts in zip(*ends, strict=True)]
            else:
                results = [self._result(eqn, operands)] * len(eqn.outvars)
            known.update(zip(eqn.outvars, results, strict=True))
        return sources(jaxpr.outvars)

    def _named_array(self, name: str, sources: Sources, shape: tuple[int, ...]) -> Sources:
        if name.startswith(INPUT):
            layer = name.removeprefix(INPUT)
            self._running = layer if layer in self._leaves else ""
            return sources if len(sources) < 2 else self._merge(CUT, sources, shape)
        self._running = ""
        if name in self._leaves:
            earlier = self._nodes[name].inputs if name in self._nodes else ()  # where it gives more than one array
            row = self._rows[name]
            inputs = self._ordered(sources.union(earlier))
            self._nodes[name] = Node(name, row.kind, row.output_shape or (), inputs, row)
            return frozenset([name])
        if name in self._joins and len(sources) == 1:
            [made] = sources
            self._given.setdefault(made, name)
        return sources

    def _ordered(self, sources: Sources) -> tuple[str, ...]:
        return tuple(name for name in self._nodes if name in sources)

    def _result(self, eqn: JaxprEqn, operands: Sequence[Sources]) -> Sources:
        """Returns what the results of an equation are made of; whole tensors that meet in it are a node."""
        together = NOTHING.union(*operands)
        kind, shape = MERGES.get(eqn.primitive.name), _shape(eqn.outvars[0])
        tensors = [each for each in operands if each]
        whole = kind == CONCAT or all(_shape(atom) == shape for atom in eqn.invars)
        if kind and whole and not self._running and len(together) > 1 and all(len(each) == 1 for each in tensors):
            return self._merge(kind, together, shape)
        return together

    def _merge(self, kind: str, sources: Sources, shape: tuple[int, ...]) -> Sources:
        name = f"#{len(self._nodes)}"  # until it is known which module's it is
        self._nodes[name] = Node(name, kind, shape[1:] if shape[:1] == (1,) else shape, self._ordered(sources))
        return frozenset([name])

    def _named(self) -> dict[str, Node]:
        """Returns the nodes with names for the merges: of the module that gives it, or in that whose layer takes it."""
        takers = {source: node.name for node in reversed(self._nodes.values()) for source in node.inputs}
        names: dict[str, str] = {}
        taken = {*self._nodes}
        for name, node in self._nodes.items():
            if not name.startswith("#"):
                continue
            taker = takers.get(name, "")
            while taker.startswith("#"):
                taker = takers.get(taker, "")
            given = self._given.get(name, "")
            stem = _join(given or taker.rpartition("/")[0], node.kind)
            numbered = (f"{stem}{number}" for number in itertools.count(1))
            names[name] = (
                given if given and given not in taken else next(each for each in numbered if each not in taken)
            )
            taken.add(names[name])
        return {
            names.get(name, name): dataclasses.replace(
                node,
                name=names.get(name, name),
                inputs=tuple(names.get(source, source) for source in node.inputs),
                row=node.row or self._rows.get(names.get(name, "")),
            )
            for name, node in self._nodes.items()
        }


def _join(module: str, name: str) -> str:
    return f"{module}/{name}" if module else name


def _shape(atom: Var | Literal) -> tuple[int, ...]:
    return getattr(atom.aval, "shape", ())


def _without_in_place(nodes: Mapping[str, Node], traced: Traced) -> dict[str, Node]:
    """Returns the nodes but for those of layers that write over what they take, in whose place that stands."""
    modules = {call.name: call.module for call in traced.calls}
    stand_in: dict[str, str] = {}
    kept: dict[str, Node] = {}
    for name, node in nodes.items():
        inputs = tuple(dict.fromkeys(stand_in.get(source, source) for source in node.inputs))
        module = modules.get(name)
        if isinstance(module, IN_PLACE) and len(inputs) == 1 and not node.merges:
            [stand_in[name]] = inputs
            if isinstance(module, Activation) and not kept[inputs[0]].merges and inputs[0] != IMAGES:
                kept[inputs[0]] = dataclasses.replace(kept[inputs[0]], activated=True)
        else:
            kept[name] = dataclasses.replace(node, inputs=inputs)
    return kept


# What is drawn of it.


def inside(graph: Graph, module: str) -> Graph:
    """Returns what a module does: its rows of the table, its nodes, and those beyond it that it takes.

    Args:
      graph: of the network.
      module: its name, `stage1/block1`.
    """
    within = {name for name in graph.nodes if name == module or name.startswith(f"{module}/")}
    taken = {source for name in within for source in graph.nodes[name].inputs} - within
    nodes = {
        name: node if name in within else Node(name, IMAGES, node.shape)
        for name, node in graph.nodes.items()
        if name in within or name in taken
    }
    rows = tuple(row for row in graph.table.rows if row.name == module or row.name.startswith(f"{module}/"))
    return Graph(dataclasses.replace(graph.table, name=f"{graph.table.name} {module}", rows=rows), nodes)


def folded(graph: Graph, depth: int) -> Graph:
    """Returns the graph with each module below a depth as one node, and equal ones in a row as one.

    Args:
      graph: of the network.
      depth: names that a path keeps: 1 makes a node of each stage, 2 of each block.
    """
    parts: dict[str, list[Node]] = {}
    for node in graph.nodes.values():
        parts.setdefault(_part(node.name, depth), []).append(node)
    part_of = {node.name: part for part, members in parts.items() for node in members}
    nodes: dict[str, Node] = {}
    for part, members in parts.items():
        inputs = dict.fromkeys(part_of[source] for node in members for source in node.inputs)
        inputs.pop(part, None)
        if len(members) == 1:
            nodes[part] = dataclasses.replace(members[0], name=part, inputs=tuple(inputs))
        else:
            nodes[part] = Node(part, PART, members[-1].shape, tuple(inputs), inside=tuple(members))
    order = graphlib.TopologicalSorter({name: node.inputs for name, node in nodes.items()}).static_order()
    return _runs(Graph(graph.table, {name: nodes[name] for name in order}))


def _part(name: str, depth: int) -> str:
    names = name.split("/")
    return name if len(names) <= depth else "/".join(names[:depth])


def _runs(graph: Graph) -> Graph:
    """Returns the graph with parts that follow each other and are equal as one node."""
    takers, kept, stand_in = graph.consumers(), dict[str, Node](), dict[str, str]()
    for name, node in graph.nodes.items():
        inputs = tuple(stand_in.get(source, source) for source in node.inputs)
        before = kept.get(inputs[0]) if len(inputs) == 1 else None
        alone = len(node.inputs) == 1 and takers[node.inputs[0]] == [name]
        if before and alone and node.kind == PART == before.kind and _signature(node) == _signature(before):
            kept[before.name] = dataclasses.replace(before, count=before.count + 1)
            stand_in[name] = before.name
        else:
            kept[name] = dataclasses.replace(node, inputs=inputs)
    return Graph(graph.table, kept)


def _signature(part: Node) -> list[tuple[Any, ...]]:
    """Returns what equal parts have in common: their layers, and what these give."""
    return [
        (
            node.name.removeprefix(part.name),
            node.kind,
            node.shape,
            node.row and (node.row.kernel, node.row.stride, node.row.input_shape),
        )
        for node in part.inside
    ]


def fitted(graph: Graph, columns: int, lanes: int) -> Graph:
    """Returns the graph in the greatest detail that fits, or else in the least.

    Args:
      graph: of the network.
      columns: how many nodes there may be on the longest way through it.
      lanes: how many tensors there may be beside each other.
    """
    deepest = max(name.count("/") for name in graph.nodes) + 1
    made = graph
    for depth in range(deepest, 0, -1):
        made = graph if depth == deepest else folded(graph, depth)
        ranks = made.ranks()
        ways = [(ranks[source], ranks[node.name]) for node in made.nodes.values() for source in node.inputs]
        beside = Counter(rank for start, end in ways for rank in range(start, end))
        if max(ranks.values()) < columns and max(beside.values()) <= lanes:
            break
    return made
