"""Scenes of the embedded `shapes` set: ellipses, rectangles, triangles and stars on textured ground, as pure functions.

Nothing but the outline tells the class: the four shapes have equal area, and colour, texture, size, aspect, angle and
place are drawn without regard to it. A scene is the same wherever and whenever it is drawn: every random number is a
`Generator.random()`, the bit generator's output scaled to [0, 1), and pixels come from sums, products and square roots,
which IEEE 754 fixes. The sines of a few angles a scene, which it does not, differ by far less than a grey level.
"""

import dataclasses
import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

CLASSES = ("ellipse", "rectangle", "triangle", "star")


class Polygon(NamedTuple):
    """What lies within all but `misses` of `sides` lines, turned evenly about a centre at distance 1."""

    sides: int
    misses: int
    area: float
    reach: float  # the radius of the circle around it


# Each tip of a five-pointed star lies beyond one of its five lines.
POLYGONS = {
    "rectangle": Polygon(4, 0, 4.0, 1 / math.cos(math.pi / 4)),
    "triangle": Polygon(3, 0, 3 * math.tan(math.pi / 3), 1 / math.cos(math.pi / 3)),
    "star": Polygon(5, 1, 5 * math.tan(math.pi / 5) / math.cos(2 * math.pi / 5), 1 / math.cos(2 * math.pi / 5)),
}

Range = tuple[float, float]

RADII: Range = (0.1, 0.3)  # of the image's shorter side: the radius of a disc of the object's area
SMALLEST_RADIUS = 2.5  # pixels
CROWD = 6  # objects; more of them are each smaller, so that all find room
CENTRES: Range = (0.08, 0.92)  # of the image's height and width; objects may cross the border
MIN_VISIBLE = 0.45  # of an object's area, after what later ones hide and the border cuts off
MIN_PIXELS = 12
MIN_CONTRAST = 0.25  # of the full range, in the channel where an object differs most from what it covers
ATTEMPTS = 100  # to place an object, each SHRINK times as large as the one before
SHRINK = 0.97
MUTED: tuple[Range, Range] = ((0.0, 0.5), (0.2, 0.9))  # saturation and value of the ground
VIVID: tuple[Range, Range] = ((0.3, 1.0), (0.3, 1.0))  # and of the objects
SHADE = 0.45  # how far an object's second colour goes towards another one
WAVELENGTHS: Range = (0.08, 0.35)  # of the stripes, in shorter sides
SHARPNESS: Range = (1.0, 6.0)
NOISE_CELLS = (0.4, 0.15, 0.05)  # in shorter sides: the scales of the noise
GRAIN = 0.06


@dataclasses.dataclass(frozen=True)
class Figure:
    """The outline of one object.

    Attributes:
      kind: one of `CLASSES`.
      centre: y and x in pixels; the centre of the first pixel is (0.5, 0.5).
      radius: of the disc with the same area, in pixels.
      aspect: the first semi-axis over the second.
      angle: by which the first semi-axis is turned from x towards y, in radians.
    """

    kind: str
    centre: tuple[float, float]
    radius: float
    aspect: float
    angle: float

    @property
    def area(self) -> float:
        """Of the whole figure, in square pixels."""
        return math.pi * self.radius**2

    def window(self, height: int, width: int) -> tuple[slice, slice]:
        """Returns the rows and columns of an image that hold all of the figure that is inside."""
        reach = self.radius * math.sqrt(max(self.aspect, 1 / self.aspect)) + 1
        if self.kind != "ellipse":
            polygon = POLYGONS[self.kind]
            reach *= polygon.reach * math.sqrt(math.pi / polygon.area)
        rows, columns = (
            slice(max(int(centre - reach), 0), min(math.ceil(centre + reach), size))
            for centre, size in zip(self.centre, (height, width), strict=True)
        )
        return rows, columns

    def depth(self, rows: slice, columns: slice) -> Float[np.ndarray, "rows columns"]:
        """Returns how deep inside the outline each pixel's centre lies, in pixels; negative outside.

        Exact along straight sides; to first order along an ellipse, and beyond a polygon's corners too small a
        distance. The sign is always right.
        """
        y = np.arange(rows.start, rows.stop)[:, None] + (0.5 - self.centre[0])
        x = np.arange(columns.start, columns.stop)[None, :] + (0.5 - self.centre[1])
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        semi_u, semi_v = self.radius * math.sqrt(self.aspect), self.radius / math.sqrt(self.aspect)
        if self.kind == "ellipse":
            u, v = (cos * x + sin * y) / semi_u, (cos * y - sin * x) / semi_v
            slope = 2 * np.sqrt((u / semi_u) ** 2 + (v / semi_v) ** 2)
            return (1 - u**2 - v**2) / np.maximum(slope, 1e-6)
        polygon = POLYGONS[self.kind]
        distance = math.sqrt(math.pi / polygon.area)
        lowest = second = np.full((1, 1), np.inf)
        for turn in (2 * math.pi * side / polygon.sides for side in range(polygon.sides)):
            # The side's normal, in the figure's own axes and then in the image's.
            normal_u, normal_v = math.cos(turn) / semi_u, math.sin(turn) / semi_v
            normal_x, normal_y = cos * normal_u - sin * normal_v, sin * normal_u + cos * normal_v
            norm = math.hypot(normal_u, normal_v)
            margin = distance / norm - (normal_x / norm * x + normal_y / norm * y)
            lowest, second = np.minimum(lowest, margin), np.minimum(second, np.maximum(lowest, margin))
        return second if polygon.misses else lowest


@dataclasses.dataclass(frozen=True)
class Scene:
    """A picture and what is in it.

    Attributes:
      image: red, green, blue.
      instances: 0 where the ground is seen, k where the k-th figure is.
      figures: the objects, from back to front.
    """

    image: UInt8[np.ndarray, "height width 3"]
    instances: UInt8[np.ndarray, "height width"]
    figures: tuple[Figure, ...]

    @property
    def classes(self) -> Int[np.ndarray, "objects"]:
        """The class of each object, an index of `CLASSES`."""
        return np.array([CLASSES.index(figure.kind) for figure in self.figures], np.int64)

    @property
    def sizes(self) -> Int[np.ndarray, "objects"]:
        """Visible pixels of each object."""
        return np.bincount(self.instances.ravel(), minlength=len(self.figures) + 1)[1:]

    @property
    def semantic(self) -> UInt8[np.ndarray, "height width"]:
        """The class that is seen at each pixel, counted from 1; 0 is the ground."""
        return np.concatenate([[0], self.classes + 1]).astype(np.uint8)[self.instances]

    @property
    def boxes(self) -> Float[np.ndarray, "objects 4"]:
        """Around the visible pixels of each object: ymin, xmin, ymax, xmax, in 0..1 of the image."""
        height, width = self.instances.shape
        boxes = np.zeros((len(self.figures), 4))
        for index in range(len(self.figures)):
            y, x = np.nonzero(self.instances == index + 1)
            boxes[index] = y.min() / height, x.min() / width, (y.max() + 1) / height, (x.max() + 1) / width
        return boxes


def draw(random: np.random.Generator, height: int, width: int, objects: tuple[int, int]) -> Scene:
    """Draws a scene.

    Every object shows at least `MIN_VISIBLE` of its area and `MIN_PIXELS` pixels, and stands out from what it covers by
    `MIN_CONTRAST`. An object that finds no such place in `ATTEMPTS` is left out.

    Args:
      random: the only source of chance.
      height: of the image, in pixels.
      width: of the image, in pixels.
      objects: the fewest and the most to draw.
    """
    side = min(height, width)
    canvas = _paint(random, (height, width), side, _color(random, MUTED), _color(random, MUTED))
    instances = np.zeros((height, width), np.uint8)
    figures: list[Figure] = []
    count = objects[0] + int((objects[1] - objects[0] + 1) * random.random())
    for _ in range(count):
        for attempt in range(ATTEMPTS):
            figure = _figure(random, height, width, min(1, math.sqrt(CROWD / count)) * SHRINK**attempt)
            light = _color(random, VIVID)
            dark = light + SHADE * (_color(random, VIVID) - light)
            window = figure.window(height, width)
            depth = figure.depth(*window)
            inside = depth >= 0
            if not _all_seen([*figures, figure], instances, window, inside):
                continue
            if np.abs(canvas[window][inside].mean(axis=0) - (light + dark) / 2).max() < MIN_CONTRAST:
                continue
            paint = _paint(random, inside.shape, side, light, dark)
            canvas[window] += np.clip(depth + 0.5, 0, 1)[..., None] * (paint - canvas[window])
            figures.append(figure)
            instances[window][inside] = len(figures)
            break
    image = np.rint(255 * np.clip(canvas, 0, 1)).astype(np.uint8)
    return Scene(image, instances, tuple(figures))


def _all_seen(
    figures: list[Figure],
    instances: UInt8[np.ndarray, "height width"],
    window: tuple[slice, slice],
    inside: Bool[np.ndarray, "rows columns"],
) -> bool:
    """Tells whether every figure would show enough if the last one were to cover `inside` of the window."""
    seen = np.bincount(instances.ravel(), minlength=len(figures))
    seen -= np.bincount(instances[window][inside], minlength=len(figures))
    seen = np.append(seen[1:], inside.sum())
    return bool(np.all(seen >= [max(MIN_VISIBLE * figure.area, MIN_PIXELS) for figure in figures]))


def _figure(random: np.random.Generator, height: int, width: int, scale: float) -> Figure:
    kind = CLASSES[int(len(CLASSES) * random.random())]
    centre = height * _between(random, CENTRES), width * _between(random, CENTRES)
    radius = min(height, width) * _between(random, RADII) * scale
    aspect = math.sqrt(2.0) ** (4 * random.random() - 2)
    return Figure(kind, centre, max(radius, SMALLEST_RADIUS), aspect, 2 * math.pi * random.random())


def _color(random: np.random.Generator, ranges: tuple[Range, Range]) -> Float[np.ndarray, "3"]:
    """Returns a colour of any hue, with saturation and value in the given ranges."""
    hue, saturation, value = 6 * random.random(), _between(random, ranges[0]), _between(random, ranges[1])
    channels = ((offset + hue) % 6 for offset in (5, 3, 1))
    return np.array([value * (1 - saturation * max(min(channel, 4 - channel, 1), 0)) for channel in channels])


def _paint(
    random: np.random.Generator,
    shape: tuple[int, int],
    side: int,
    light: Float[np.ndarray, "3"],
    dark: Float[np.ndarray, "3"],
) -> Float[np.ndarray, "height width 3"]:
    """Mixes two colours by a blend of two layers, and adds grain."""
    texture = _layer(random, shape, side)
    texture += 0.5 * random.random() * (_layer(random, shape, side) - texture)
    texture -= texture.min()
    texture /= max(texture.max(), 1e-6)
    paint = light + texture[..., None] * (dark - light)
    paint += GRAIN * (random.random(shape)[..., None] - 0.5)
    return paint


def _layer(random: np.random.Generator, shape: tuple[int, int], side: int) -> Float[np.ndarray, "height width"]:
    """Returns a gradient, stripes or noise of one of three scales, each as likely as the others."""
    kind = int((2 + len(NOISE_CELLS)) * random.random())
    if kind < len(NOISE_CELLS):
        return _noise(random, shape, max(NOISE_CELLS[kind] * side, 2.0))
    return _gradient(random, shape) if kind == len(NOISE_CELLS) else _stripes(random, shape, side)


def _plane(random: np.random.Generator, shape: tuple[int, int]) -> Float[np.ndarray, "height width"]:
    """Returns the distance of each pixel along a random direction."""
    angle = 2 * math.pi * random.random()
    return math.sin(angle) * np.arange(shape[0])[:, None] + math.cos(angle) * np.arange(shape[1])[None, :]


def _gradient(random: np.random.Generator, shape: tuple[int, int]) -> Float[np.ndarray, "height width"]:
    plane = _plane(random, shape)
    return (plane - plane.min()) / max(plane.max() - plane.min(), 1.0)


def _stripes(random: np.random.Generator, shape: tuple[int, int], side: int) -> Float[np.ndarray, "height width"]:
    """Returns a triangle wave, clipped so that some stripes have sharp edges and some soft ones."""
    phase = _plane(random, shape) / max(side * _between(random, WAVELENGTHS), 3.0) + random.random()
    wave = np.abs(phase % 1 - 0.5) * 2
    return np.clip((wave - 0.5) * _between(random, SHARPNESS) + 0.5, 0, 1)


def _noise(random: np.random.Generator, shape: tuple[int, int], cell: float) -> Float[np.ndarray, "height width"]:
    """Returns value noise: random numbers at the corners of a grid of cells, smoothly interpolated."""
    noise = random.random((int(shape[0] / cell) + 2, int(shape[1] / cell) + 2))
    for size in shape:
        position = np.arange(size) / cell
        index = position.astype(np.int64)
        weight = position - index
        weight = (weight * weight * (3 - 2 * weight))[:, None]
        noise = (noise[index] * (1 - weight) + noise[index + 1] * weight).T  # twice transposed: rows, then columns
    return noise


def _between(random: np.random.Generator, limits: Range) -> float:
    return limits[0] + (limits[1] - limits[0]) * random.random()
