"""What a compiled program says between chips, and what it reads of their memory, from its HLO text."""

import collections
import dataclasses
import math
import re

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")

# Layouts may hold parentheses, but nothing before an instruction's operands holds a percent sign.
_COLLECTIVE = re.compile(rf"\s*(?:ROOT )?%[\w.-]+ = ([^%]*?) ({'|'.join(KINDS)})(-start)?\(")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.-]+) \(.*\{$")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|branch_computations|called_computations)=(\{[^}]*\}|%[\w.-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_ARRAY = re.compile(r"\b([a-z]+[0-9]*(?:e\d\w*)?)\[([\d,]*)\]")
_INSTRUCTION = re.compile(r"\s*(?:ROOT )?%([\w.-]+) = ([^%]*?) ([\w-]+)\(([^)]*)")
_PLACED = re.compile(rf"{_ARRAY.pattern}(\{{[^{{}}]*\}})?")
_CONTROL = re.compile(r" (?:while|conditional|call|async-start)\(")
# What moves nothing: its operands' or another instruction's bytes are counted there.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call"}


@dataclasses.dataclass(frozen=True)
class Collective:
    """A message between chips, of which a program may send several alike.

    Attributes:
      kind: one of `KINDS`.
      bytes: of the whole that a chip has when it is done, or, with reduce-scatter, had before.
      group: chips that take part.
      count: times that it is sent.
    """

    kind: str
    bytes: int
    group: int
    count: int = 1


def collectives(text: str, chips: int) -> tuple[Collective, ...]:
    """Returns what a program sends, those of one kind and size together, the largest first.

    Instructions in a loop count as often as it is known to run.

    Args:
      text: of a compiled module.
      chips: that it runs on.
    """
    found: collections.Counter[tuple[str, int, int]] = collections.Counter()
    for lines, times in _computations(text, re.compile("")):
        for line in lines:
            if match := _COLLECTIVE.match(line):
                shape, kind, start = match.groups()
                group = _group(line, chips)
                whole = _bytes(shape, kind, bool(start)) * (group if kind == "reduce-scatter" else 1)
                found[kind, whole, group] += times
    parts = [Collective(kind, size, group, count) for (kind, size, group), count in found.items() if group > 1]
    return tuple(sorted(parts, key=lambda part: -part.bytes * part.count))


def traffic(text: str) -> int:
    """Returns the bytes that a program reads from a chip's main memory and writes there.

    XLA's own count has those of the memory inside the chip, too, where a TPU's compiler puts what it soon needs: an
    array's layout says so, `S(1)`. Here an operand counts as read whole.

    Args:
      text: of a compiled module.
    """
    total = 0
    for lines, times in _computations(text, _CONTROL):
        arrays: dict[str, list[tuple[int, bool]]] = {}
        for line in lines:
            if not (match := _INSTRUCTION.match(line)):
                continue
            name, shape, opcode, operands = match.groups()
            moved = arrays[name] = _placed(shape)
            if opcode in _FREE or opcode == "async-start" or opcode.endswith("-done"):
                continue
            if opcode == "slice-start":  # ((source), result, a counter): as much is read as is written
                (_, outside), result = moved[:2]
                moved = [(result[0], outside), result]
            elif opcode != "copy-start":  # (result, source, a counter)
                read = [arrays.get(operand, []) for operand in re.findall(r"%([\w.-]+)", operands)]
                moved = sum(read, moved)
            total += times * sum(size for size, outside in moved if outside)
    return total


def _placed(shape: str) -> list[tuple[int, bool]]:
    """Returns the bytes of each array, and whether it is in main memory."""
    found = _PLACED.findall(shape)
    return [(_size(dtype, sizes), not re.search(r"S\([1-9]", layout)) for dtype, sizes, layout in found]


def _computations(text: str, follow: re.Pattern[str]) -> list[tuple[list[str], int]]:
    """Returns the lines of each computation and how often it runs.

    Args:
      text: of a compiled module.
      follow: found in the instructions whose computations are among them.
    """
    bodies: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            lines = bodies[match[2]] = []
            entry = match[2] if match[1] else entry
        else:
            lines.append(line)
    times: collections.Counter[str] = collections.Counter()

    def run(name: str, count: int) -> None:
        times[name] += count
        for line in bodies.get(name, ()):
            if not follow.search(line) or "-done(" in line or "-update(" in line:  # of what began in another line
                continue
            trips = _TRIPS.search(line)
            for called in _CALLED.findall(line):
                for callee in re.findall(r"%([\w.-]+)", called):
                    run(callee, count * (int(trips[1]) if trips else 1))

    run(entry, 1)
    return [(lines, times[name]) for name, lines in bodies.items() if times[name]]


def _bytes(shape: str, kind: str, start: bool) -> int:
    """Returns the bytes of arrays, without padding."""
    arrays = _ARRAY.findall(shape)
    if start and kind != "all-reduce":  # operands, then results, then counters
        arrays = [(dtype, sizes) for dtype, sizes in arrays if (dtype, sizes) != ("u32", "")]
        arrays = arrays[len(arrays) // 2 :]
    return sum(_size(dtype, sizes) for dtype, sizes in arrays)


def _size(dtype: str, sizes: str) -> int:
    match = re.match(r"[a-z]+(\d+)", dtype)
    bits = int(match[1]) if match else 8  # pred
    return math.prod(map(int, filter(None, sizes.split(",")))) * bits // 8


def _group(line: str, chips: int) -> int:
    """Returns how many chips take part, from any of the ways of writing that."""
    if "source_target_pairs={" in line:
        return 2
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", line):  # named axes, or parts of them
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", match[2])
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    if match := re.search(r"replica_groups=\[(\d+),(\d+)\]", line):  # groups, chips of each
        return int(match[2])
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return match[1].count(",") + 1
    return chips
