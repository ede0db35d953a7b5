"""Receptive fields: the pixels that each value within a network depends on, read from the traced program.

The size is that of the windows alone, as the literature has it (Araujo, Norris & Sim 2019, doi:10.23915/distill.00021):
what lies beyond the image's borders counts, whatever the padding holds, so that it does not depend on the image's size.
"""

import dataclasses
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from fractions import Fraction

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

from cnn_research.ops.geometry import Pair


@dataclasses.dataclass(frozen=True)
class View:
    """The pixels that the values of an array depend on, along one axis of the image.

    The value at (i, j, …) sees `size` pixels from start + jumps[0]·i + jumps[1]·j + … on; pixel 0 is the image's first.
    Where a map was made finer again, values that lie together see the same pixels: both ends are then off by less than
    the distance between the coarser map's values. In a map that is finer than the image jumps are fractions.

    Attributes:
      start: first pixel of the value at (0, 0, …).
      size: how many pixels.
      jumps: for each axis of the array how far the next value's pixels lie.
    """

    start: Fraction
    size: Fraction
    jumps: tuple[Fraction, ...]


@dataclasses.dataclass(frozen=True)
class Window:
    """What a layer slides over the axes between batch and channels; without any it takes every position on its own.

    Attributes:
      kernel: size along each of these axes.
      strides: steps.
      padding: values (before, after) each end.
      dilation: distances of the taps.
      base: factors by which the layer makes its input larger first, with zeros between the values; () is 1.
    """

    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    padding: tuple[Pair, ...] = ()
    dilation: tuple[int, ...] = ()
    base: tuple[int, ...] = ()

    def __call__(self, view: View) -> View:
        """Returns what the layer's output sees, where its input sees this."""
        bases = self.base or (1,) * len(self.kernel)
        axes = zip(self.kernel, self.strides, self.padding, self.dilation, bases, strict=True)
        for axis, (kernel, stride, (before, _), dilation, base) in enumerate(axes, start=1):
            view = _slide(view, axis, kernel, stride, before, dilation, base)
        return view

    def output_sizes(self, sizes: Sequence[int]) -> tuple[int, ...]:
        """Returns how many positions it takes along each of these axes of an input that it does not make larger."""
        axes = zip(sizes, self.kernel, self.strides, self.padding, self.dilation, strict=True)
        return tuple(
            (sum(ends) + size - distance * (kernel - 1) - 1) // stride + 1
            for size, kernel, stride, ends, distance in axes
        )


# `views` knows a layer's input by the layer's name with this before it.
INPUT = "input of "


def views(
    program: ClosedJaxpr, image: int, windows: Mapping[str, Window] | None = None
) -> dict[str, tuple[View | None, View | None]]:
    """Returns what each array of a program that `jax.ad_checkpoint.checkpoint_name` named sees of an image.

    Args:
      program: of `jax.make_jaxpr`.
      image: which of its arguments is the image, [batch, height, width, channels].
      windows: of layers, by name; their inputs are named too, with `INPUT` before it. Such a layer's output sees what
        its window sees of its input, however that is computed: a border filled with mirrored pixels, or a convolution
        that is rewritten as another, is the window that it was.

    Returns:
      (vertical, horizontal) by name, None where nothing of the image is seen.
    """
    arguments: list[View | None] = [None] * len(program.jaxpr.invars)
    axes = []
    for axis in (1, 2):
        arguments[image] = View(Fraction(0), Fraction(1), tuple(Fraction(each == axis) for each in range(4)))
        seen: dict[str, View | None] = {}
        _walk(program.jaxpr, arguments, windows or {}, seen)
        axes.append(seen)
    vertical, horizontal = axes
    return {name: (vertical[name], horizontal[name]) for name in vertical if not name.startswith(INPUT)}


def _walk(
    jaxpr: Jaxpr, arguments: Sequence[View | None], windows: Mapping[str, Window], seen: dict[str, View | None]
) -> list[View | None]:
    """Follows an image through a program; returns what the results see and adds named arrays to `seen`."""
    known = dict(zip(jaxpr.invars, arguments, strict=True))
    for eqn in _needed(jaxpr, windows):
        operands = [known.get(atom) if isinstance(atom, Var) else None for atom in eqn.invars]
        results: Sequence[View | None] = [None] * len(eqn.outvars)
        if eqn.primitive.name == "name":
            name = eqn.params["name"]
            before = seen.get(INPUT + name)
            results = [windows[name](before)] if name in windows and before else operands
            seen.setdefault(name, *results)
        elif any(operands):
            if inner := inner_programs(eqn):
                ends = [_walk(each, operands[len(operands) - len(each.invars) :], windows, seen) for each in inner]
                results = [_union(views, _shape(var)) for var, *views in zip(eqn.outvars, *ends, strict=True)]
            else:
                results = _results(eqn, operands)
        known.update(zip(eqn.outvars, results, strict=True))
    return [known.get(atom) if isinstance(atom, Var) else None for atom in jaxpr.outvars]


def _shape(atom: Var | Literal) -> tuple[int, ...]:
    return getattr(atom.aval, "shape", ())


def _needed(jaxpr: Jaxpr, windows: Mapping[str, Window]) -> list[JaxprEqn]:
    """Returns the equations that make a program's results and named arrays, but those inside of layers with windows."""
    wanted: set[Var | Literal] = {*filter(_is_var, jaxpr.outvars)}
    kept = []
    for eqn in reversed(jaxpr.eqns):
        named = eqn.primitive.name == "name"
        if named or not wanted.isdisjoint(eqn.outvars) or _names_arrays(eqn):
            kept.append(eqn)
            if not named or eqn.params["name"] not in windows:
                wanted.update(filter(_is_var, eqn.invars))
    return kept[::-1]


def _is_var(atom: Var | Literal) -> bool:
    return isinstance(atom, Var)


def _programs(eqn: JaxprEqn) -> list[Jaxpr]:
    """Returns the programs that an equation holds."""
    values = [each for value in eqn.params.values() for each in (value if isinstance(value, tuple) else [value])]
    programs = [each.jaxpr if isinstance(each, ClosedJaxpr) else each for each in values]
    return [each for each in programs if isinstance(each, Jaxpr)]


def _names_arrays(eqn: JaxprEqn) -> bool:
    inner = (each for program in _programs(eqn) for each in program.eqns)
    return any(each.primitive.name == "name" or _names_arrays(each) for each in inner)


def inner_programs(eqn: JaxprEqn) -> list[Jaxpr]:
    """Returns the programs one of which an equation runs, once: that of a call, the branches of a condition."""
    if eqn.primitive.name in ("scan", "while"):
        return []
    shapes = [*map(_shape, eqn.invars)]

    def fits(program: Jaxpr) -> bool:  # others work on single values, such as the sum that a reduction repeats
        ends = shapes[len(shapes) - len(program.invars) :]
        return [*map(_shape, program.invars)] == ends and [*map(_shape, program.outvars)] == [*map(_shape, eqn.outvars)]

    return [*filter(fits, _programs(eqn))]


# How views change.


def _moved(view: View, jumps: Sequence[Fraction], distance: Fraction | int = 0) -> View:
    """Returns the view of values that begin elsewhere and follow each other by other jumps."""
    return View(view.start + distance, view.size, tuple(jumps))


def _span(view: View, shape: Sequence[int], axes: Collection[int]) -> View:
    """Returns what all the values along axes see together; these axes move it no more."""
    reaches = [view.jumps[axis] * (shape[axis] - 1) for axis in axes]
    jumps = tuple(Fraction(0) if axis in axes else jump for axis, jump in enumerate(view.jumps))
    return View(
        view.start + sum(min(reach, Fraction(0)) for reach in reaches), view.size + sum(map(abs, reaches)), jumps
    )


def _slide(view: View, axis: int, kernel: int, stride: int, before: int, dilation: int = 1, base: int = 1) -> View:
    """Returns what a window sees that slides along an axis, between whose values stand base − 1 zeros."""
    jump = view.jumps[axis]
    reach = jump * (dilation * (kernel - 1) // base)
    jumps = (*view.jumps[:axis], jump * stride / base, *view.jumps[axis + 1 :])
    return View(view.start - jump * before / base + min(reach, Fraction(0)), view.size + abs(reach), jumps)


def _union(views: Sequence[View | None], shape: Sequence[int]) -> View | None:
    """Returns what arrays of one shape, or single values beside them, see together at each place."""
    still = (Fraction(0),) * len(shape)
    there = [view if view.jumps else _moved(view, still) for view in views if view]
    if not there:
        return None
    differ = [axis for axis in range(len(shape)) if len({view.jumps[axis] for view in there}) > 1]
    there = [_span(view, shape, differ) for view in there]
    start = min(view.start for view in there)
    return View(start, max(view.start + view.size for view in there) - start, there[0].jumps)


# What the results of equations see.

# How the names of operations begin whose results may have the shape of their operands and see other places than theirs.
MIXING = ("cum", "dynamic", "fft", "gather", "pure_callback", "scan", "scatter", "sort", "top_k", "while")


def _results(eqn: JaxprEqn, views: Sequence[View | None]) -> Sequence[View | None]:
    """Returns what the results of an equation see, by what its operands see; by an unknown operation all of it."""
    name, shapes = eqn.primitive.name, [*map(_shape, eqn.invars)]
    out = _shape(eqn.outvars[0])
    rule = UNARY.get(name)
    if rule and views[0] and not any(views[1:]):
        return [rule(eqn, views[0], shapes[0])]
    if name == "concatenate":
        return [_concatenate(eqn, views)]
    if name == "dot_general":
        return [_dot(eqn, views)]
    if name == "stack":
        return [_stack(eqn, views)]
    if name == "split":
        return _split(eqn, views[0])
    seeing = {shape for shape, view in zip(shapes, views, strict=True) if view}
    if seeing | {*map(_shape, eqn.outvars)} <= {out, ()} and not name.startswith(MIXING):
        return [_union(views, out)] * len(eqn.outvars)
    spans = [view and _span(view, shape, range(len(shape))) for view, shape in zip(views, shapes, strict=True)]
    whole = _union([span and _moved(span, ()) for span in spans], ())
    return [whole and _moved(whole, [Fraction(0)] * len(_shape(var))) for var in eqn.outvars]


def _broadcast(eqn: JaxprEqn, view: View, shape: Sequence[int]) -> View:
    jumps = [Fraction(0)] * len(eqn.params["shape"])
    for axis, to in enumerate(eqn.params["broadcast_dimensions"]):
        if shape[axis] == eqn.params["shape"][to]:
            jumps[to] = view.jumps[axis]
    return _moved(view, jumps)


def _convolution(eqn: JaxprEqn, view: View, shape: Sequence[int]) -> View:
    before, weights, after = eqn.params["dimension_numbers"]  # of each: batch or features, channels, space
    view = _span(view, shape, before[1:2])
    kernel = [_shape(eqn.invars[1])[axis] for axis in weights[2:]]
    rest = [eqn.params[name] for name in ("window_strides", "padding", "rhs_dilation", "lhs_dilation")]
    for axis, size, stride, (low, _), dilation, base in zip(before[2:], kernel, *rest, strict=True):
        view = _slide(view, axis, size, stride, int(low), dilation, base)
    jumps = dict(zip(after, (view.jumps[axis] for axis in before), strict=True))
    return _moved(view, [jumps[axis] for axis in range(len(after))])


def _pad(eqn: JaxprEqn, view: View, _: Sequence[int]) -> View:
    for axis, (low, _, interior) in enumerate(eqn.params["padding_config"]):
        view = _slide(view, axis, 1, 1, int(low), base=int(interior) + 1)
    return view


def _reduce(eqn: JaxprEqn, view: View, shape: Sequence[int]) -> View:
    axes = [*map(int, eqn.params["axes"])]
    view = _span(view, shape, axes)
    return _moved(view, [jump for axis, jump in enumerate(view.jumps) if axis not in axes])


def _reduce_window(eqn: JaxprEqn, view: View, _: Sequence[int]) -> View:
    names = ("window_dimensions", "window_strides", "padding", "window_dilation", "base_dilation")
    windows = zip(*(eqn.params[name] for name in names), strict=True)
    for axis, (size, stride, (low, _), dilation, base) in enumerate(windows):
        view = _slide(view, axis, size, stride, int(low), dilation, base)
    return view


def _groups(before: Sequence[int], after: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
    """Yields which axes of a shape become which of another: the fewest at a time that hold equally many values."""
    old, new = ([axis for axis, size in enumerate(shape) if size != 1] for shape in (before, after))
    while old:
        merged, split = [old.pop(0)], [new.pop(0)]
        while left := math.prod(before[axis] for axis in merged) - math.prod(after[axis] for axis in split):
            if left < 0:
                merged.append(old.pop(0))
            else:
                split.append(new.pop(0))
        yield merged, split


def _reshape(eqn: JaxprEqn, view: View, shape: Sequence[int]) -> View:
    sizes = eqn.params["new_sizes"]
    jumps = [Fraction(0)] * len(sizes)
    for merged, split in _groups(shape, sizes):
        reaches = [view.jumps[axis] * shape[axis] for axis in merged]
        if [view.jumps[axis] for axis in merged[:-1]] != reaches[1:]:  # the rows of an image, say, become one
            view = _span(view, shape, merged)
        jump = view.jumps[merged[-1]]
        for axis in reversed(split):
            jumps[axis] = jump
            jump *= sizes[axis]
    return _moved(view, jumps)


def _reverse(eqn: JaxprEqn, view: View, shape: Sequence[int]) -> View:
    axes = eqn.params["dimensions"]
    jumps = [-jump if axis in axes else jump for axis, jump in enumerate(view.jumps)]
    return _moved(view, jumps, sum(view.jumps[axis] * (shape[axis] - 1) for axis in axes))


def _slice(eqn: JaxprEqn, view: View, shape: Sequence[int]) -> View:
    begin, strides = eqn.params["start_indices"], eqn.params["strides"] or (1,) * len(shape)
    jumps = [jump * stride for jump, stride in zip(view.jumps, strides, strict=True)]
    return _moved(view, jumps, sum(jump * index for jump, index in zip(view.jumps, begin, strict=True)))


def _squeeze(eqn: JaxprEqn, view: View, _: Sequence[int]) -> View:
    return _moved(view, [jump for axis, jump in enumerate(view.jumps) if axis not in eqn.params["dimensions"]])


def _transpose(eqn: JaxprEqn, view: View, _: Sequence[int]) -> View:
    return _moved(view, [view.jumps[axis] for axis in eqn.params["permutation"]])


# By operation, where the first operand alone sees something of the image.
UNARY = {
    **dict.fromkeys(
        ("argmax", "argmin", "reduce_and", "reduce_max", "reduce_min", "reduce_or", "reduce_prod"), _reduce
    ),
    **dict.fromkeys(("reduce_window", "reduce_window_max", "reduce_window_min", "reduce_window_sum"), _reduce_window),
    "broadcast_in_dim": _broadcast,
    "conv_general_dilated": _convolution,
    "pad": _pad,
    "reduce_sum": _reduce,
    "reshape": _reshape,
    "rev": _reverse,
    "slice": _slice,
    "squeeze": _squeeze,
    "transpose": _transpose,
}


def _concatenate(eqn: JaxprEqn, views: Sequence[View | None]) -> View | None:
    axis, offset = eqn.params["dimension"], 0
    moved: list[View | None] = []
    for var, view in zip(eqn.invars, views, strict=True):
        size = _shape(var)[axis]
        moved.append(_moved(view, view.jumps, -view.jumps[axis] * offset) if view and size else None)
        offset += size
    return _union(moved, _shape(eqn.outvars[0]))


def _dot(eqn: JaxprEqn, views: Sequence[View | None]) -> View | None:
    contracted, batch = eqn.params["dimension_numbers"]
    rank, taken = len(_shape(eqn.outvars[0])), len(batch[0])
    moved: list[View | None] = []
    for var, view, over, shared in zip(eqn.invars, views, contracted, batch, strict=True):
        free = [axis for axis in range(len(_shape(var))) if axis not in (*over, *shared)]
        if view:
            jumps = [Fraction(0)] * rank  # of the result: shared axes, then the free ones of one and the other
            for to, axis in (*enumerate(shared), *enumerate(free, start=taken)):
                jumps[to] = view.jumps[axis]
            moved.append(_moved(_span(view, _shape(var), over), jumps))
        taken += len(free)
    return _union(moved, _shape(eqn.outvars[0]))


def _stack(eqn: JaxprEqn, views: Sequence[View | None]) -> View | None:
    axis = eqn.params["axis"]
    moved = [view and _moved(view, (*view.jumps[:axis], Fraction(0), *view.jumps[axis:])) for view in views]
    return _union(moved, _shape(eqn.outvars[0]))


def _split(eqn: JaxprEqn, view: View | None) -> list[View | None]:
    axis, offset = eqn.params["axis"], 0
    parts: list[View | None] = []
    for size in eqn.params["sizes"]:
        parts.append(view and _moved(view, view.jumps, view.jumps[axis] * offset))
        offset += int(size)
    return parts
