# Copyright 2026 vlm_reuse_node maintainers
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

"""A tabletop seen by a camera: textured, unevenly lit, noisy, with coloured things on it.

Positions and sizes are in scene units: the table is `WIDTH` x `HEIGHT` units whatever the resolution of the picture.
"""

from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import ArrayLike

WIDTH, HEIGHT = 336, 252
SMALLEST, LARGEST = 46, 68  # size of a thing
GAP = 8  # between things
EDGE = 6  # between a thing and the table's edge
MOST_THINGS = 5
COLOURS = {
    'red': (205, 40, 42),
    'green': (40, 150, 62),
    'blue': (42, 84, 205),
    'yellow': (228, 204, 48),
    'purple': (142, 58, 172),
    'white': (236, 236, 232),
}
SHAPES = ('circle', 'square', 'triangle', 'cross')
_TABLE_TONES = np.array(
    [(150, 118, 84), (118, 92, 66), (128, 128, 126), (92, 92, 96), (170, 152, 126), (104, 112, 118)]
)
_SUBPIXEL_BITS = 4


@dataclass(frozen=True)
class Thing:
    """One object: centre and size (diameter of its outline) in scene units, angle in degrees, shade around 1."""

    shape: str
    colour: str
    x: float
    y: float
    size: float
    angle: float = 0.0
    shade: float = 1.0

    @property
    def name(self) -> str:
        """What a person calls it."""
        return f'{self.colour} {self.shape}'


@dataclass(frozen=True)
class Sensor:
    """What the camera adds: noise (standard deviation, grey levels), JPEG quality (0: none), brightness factor."""

    noise: float = 3.0
    jpeg_quality: int = 0
    brightness: float = 1.0


class Tabletop:
    """The empty table under its light; the same seed gives the same table."""

    def __init__(self, rng: np.random.Generator, width: int = 640, height: int = 480) -> None:
        """Draw the table. width, height: of its pictures, pixels."""
        self.width = width
        self.height = height
        tone = _TABLE_TONES[rng.integers(len(_TABLE_TONES))] * rng.uniform(0.85, 1.15)
        self._surface = (tone + self._texture(rng)).astype(np.float32)
        self._light = self._uneven_light(rng)
        self._shadow_shift = rng.uniform(-0.14, 0.14, 2) + np.sign(rng.uniform(-1, 1, 2)) * 0.04

    def picture(self, things: tuple[Thing, ...]) -> np.ndarray:
        """Return what an ideal camera sees: (height, width, 3) float32 of 0 to 255."""
        canvas = self._surface.copy()
        for thing in things:
            self._cast_shadow(canvas, thing)
        for thing in things:
            self._lay(canvas, thing)
        canvas *= self._light
        return canvas

    def _texture(self, rng: np.random.Generator) -> np.ndarray:
        """Grain at three scales, stretched along one axis as wood or weave is."""
        texture = np.zeros((self.height, self.width, 1), np.float32)
        for cells, strength in ((6, 7.0), (24, 4.5), (90, 3.0)):
            stretch = rng.choice((1, 3))
            coarse = rng.standard_normal((cells, max(3, cells * 4 // (3 * stretch)))).astype(np.float32)
            texture[..., 0] += strength * cv2.resize(coarse, (self.width, self.height), interpolation=cv2.INTER_LINEAR)
        return texture

    def _uneven_light(self, rng: np.random.Generator) -> np.ndarray:
        """Brightness factors around 1: a slope, and the spot of a lamp."""
        y, x = np.mgrid[-1:1:18j, -1:1:24j].astype(np.float32)
        slope = rng.uniform(-0.14, 0.14, 2)
        lamp = rng.uniform(-0.9, 0.9, 2)
        light = 1 + slope[0] * x + slope[1] * y
        light += rng.uniform(0.0, 0.18) * np.exp(-((x - lamp[0]) ** 2 + (y - lamp[1]) ** 2))
        return cv2.resize(light.astype(np.float32), (self.width, self.height))[..., None]

    @property
    def _scale(self) -> float:
        """Pixels per scene unit."""
        return self.width / WIDTH

    def _window(self, thing: Thing, margin: float) -> tuple[slice, slice]:
        """The picture's rows and columns around a thing."""
        reach = (thing.size * (0.75 + margin)) * self._scale
        x = thing.x * self._scale
        y = thing.y * self._scale
        rows = slice(max(0, int(y - reach)), min(self.height, int(y + reach) + 2))
        columns = slice(max(0, int(x - reach)), min(self.width, int(x + reach) + 2))
        return rows, columns

    def _mask(self, thing: Thing, rows: slice, columns: slice, shift: ArrayLike = (0.0, 0.0)) -> np.ndarray:
        """Coverage of each pixel by the thing, (rows, columns) float32 of 0 to 1, edges smooth."""
        mask = np.zeros((rows.stop - rows.start, columns.stop - columns.start), np.uint8)
        points = outline(thing) + np.asarray(shift) * thing.size
        points = points * self._scale - (columns.start, rows.start)
        cv2.fillPoly(mask, [np.round(points * 2**_SUBPIXEL_BITS).astype(np.int32)], 255, cv2.LINE_AA, _SUBPIXEL_BITS)
        return mask.astype(np.float32) / 255

    def _cast_shadow(self, canvas: np.ndarray, thing: Thing) -> None:
        rows, columns = self._window(thing, 0.35)
        if rows.stop <= rows.start or columns.stop <= columns.start:
            return
        mask = self._mask(thing, rows, columns, self._shadow_shift)
        side = 2 * round(thing.size * self._scale * 0.08) + 1
        mask = cv2.blur(mask, (side, side))
        canvas[rows, columns] *= 1 - 0.45 * mask[..., None]

    def _lay(self, canvas: np.ndarray, thing: Thing) -> None:
        rows, columns = self._window(thing, 0.0)
        if rows.stop <= rows.start or columns.stop <= columns.start:
            return
        mask = self._mask(thing, rows, columns)[..., None]
        grain = 0.25 * (self._surface[rows, columns] - self._surface[rows, columns].mean())
        paint = np.array(COLOURS[thing.colour], np.float32) * thing.shade + grain
        canvas[rows, columns] += mask * (paint - canvas[rows, columns])


def outline(thing: Thing) -> np.ndarray:
    """Return the thing's corners, (n, 2) in scene units; all shapes of one size look about as large."""
    if thing.shape == 'circle':
        turn = np.linspace(0, 2 * np.pi, 40, endpoint=False)
        corners = np.stack([np.cos(turn), np.sin(turn)], 1) * 0.48
    elif thing.shape == 'square':
        corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * 0.43
    elif thing.shape == 'triangle':
        corners = np.array([(0, -0.56), (0.53, 0.4), (-0.53, 0.4)])
    else:
        arm = 0.5  # length
        half = 0.17  # of its width
        corners = np.array(
            [
                (-half, -arm),
                (half, -arm),
                (half, -half),
                (arm, -half),
                (arm, half),
                (half, half),
                (half, arm),
                (-half, arm),
                (-half, half),
                (-arm, half),
                (-arm, -half),
                (-half, -half),
            ]
        )
    turn = np.deg2rad(thing.angle)
    spin = np.array([(np.cos(turn), np.sin(turn)), (-np.sin(turn), np.cos(turn))])
    return corners @ spin * thing.size + (thing.x, thing.y)


def sense(picture: np.ndarray, sensor: Sensor, rng: np.random.Generator) -> np.ndarray:
    """Return what the camera delivers: (height, width, 3) uint8, with brightness, noise and JPEG artefacts."""
    noisy = picture * sensor.brightness
    if sensor.noise:
        noisy += sensor.noise * rng.standard_normal(picture.shape, dtype=np.float32)
    rgb = np.clip(noisy, 0, 255).astype(np.uint8)
    if not sensor.jpeg_quality:
        return rgb
    _, data = cv2.imencode('.jpg', rgb[..., ::-1], (cv2.IMWRITE_JPEG_QUALITY, sensor.jpeg_quality))
    bgr: Any = cv2.imdecode(data, cv2.IMREAD_COLOR)
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)


def random_thing(rng: np.random.Generator, others: tuple[Thing, ...]) -> Thing | None:
    """Return a thing that lies clear of the others and of the edge, or None where no room was found."""
    shape = SHAPES[rng.integers(len(SHAPES))]
    colour = list(COLOURS)[rng.integers(len(COLOURS))]
    size = rng.uniform(SMALLEST, LARGEST)
    angle = rng.uniform(-12, 12)
    shade = rng.uniform(0.88, 1.06)
    if any(other.name == f'{colour} {shape}' for other in others):
        return None
    place = free_place(rng, size, others)
    return Thing(shape, colour, *place, size, angle, shade) if place else None


def free_place(rng: np.random.Generator, size: float, others: tuple[Thing, ...]) -> tuple[float, float] | None:
    """Return a centre for a thing of this size, clear of the others, or None where no room was found."""
    reach = size / 2 + EDGE
    for _ in range(30):
        x = rng.uniform(reach, WIDTH - reach)
        y = rng.uniform(reach, HEIGHT - reach)
        if all(np.hypot(x - other.x, y - other.y) > (size + other.size) / 2 + GAP for other in others):
            return x, y
    return None


def random_things(rng: np.random.Generator, count: int) -> tuple[Thing, ...]:
    """Return `count` things of different names, clear of each other; fewer where the table is full."""
    things: tuple[Thing, ...] = ()
    for _ in range(20 * count):
        if len(things) == count:
            break
        thing = random_thing(rng, things)
        things += (thing,) if thing else ()
    return things


def moved(rng: np.random.Generator, thing: Thing, others: tuple[Thing, ...]) -> Thing | None:
    """Return the thing pushed clearly left, right, up or down, or None where no room was found."""
    for _ in range(12):
        distance = rng.uniform(45, 130)
        drift = rng.uniform(-0.25, 0.25) * distance
        step = ((distance, drift), (-distance, drift), (drift, distance), (drift, -distance))[rng.integers(4)]
        pushed = replace(thing, x=thing.x + step[0], y=thing.y + step[1])
        reach = thing.size / 2 + EDGE
        inside = reach <= pushed.x <= WIDTH - reach and reach <= pushed.y <= HEIGHT - reach
        if inside and all(
            np.hypot(pushed.x - other.x, pushed.y - other.y) > (thing.size + other.size) / 2 + GAP for other in others
        ):
            return pushed
    return None
