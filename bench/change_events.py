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

"""What the change detector misses, and what it finds where nothing happened; see `change.py`."""

import math
from dataclasses import replace

import cv2
import numpy as np
from change_grids import CELL_PX, CONFIG, GRIDS

from vlm_reuse_node.demo import tabletop
from vlm_reuse_node.demo.tabletop import Sensor, Tabletop, Thing
from vlm_reuse_node.scene.change import ChangeDetector

TOUCHED = 0.05
SENSORS = {'noise 3': Sensor(), 'noise 8': Sensor(noise=8.0), 'noise 3, JPEG 60': Sensor(jpeg_quality=60)}
KINDS = ('appear', 'move', 'recolour')
Things = tuple[Thing, ...]


def measure_events(count: int) -> list[dict]:
    """Return the rows of events."""
    grids = next(iter(GRIDS.values()))
    return [
        {'sensor': name, 'grid': grid, **count_events(sensor, grids[grid], kind, count, seed)}
        for name, sensor in SENSORS.items()
        for grid in grids
        for seed, kind in enumerate(KINDS)
    ]


def draw_event(rng: np.random.Generator, kind: str, quarter: float) -> tuple[Things, Things] | None:
    """Return the things before and after one event of a thing of the smallest size; None where there is no room."""
    others = tabletop.random_things(rng, 3)
    place = tabletop.free_place(rng, tabletop.SMALLEST + 2 * quarter, others)
    if place is None:
        return None
    colours = rng.permutation(list(tabletop.COLOURS))
    shape = tabletop.SHAPES[rng.integers(len(tabletop.SHAPES))]
    thing = tabletop.Thing(shape, str(colours[0]), *place, tabletop.SMALLEST, rng.uniform(-12, 12))
    turn = rng.uniform(0, 2 * math.pi)
    after = {
        'appear': thing,
        'recolour': replace(thing, colour=str(colours[1])),
        'move': replace(thing, x=thing.x + quarter * math.cos(turn), y=thing.y + quarter * math.sin(turn)),
    }[kind]
    return others if kind == 'appear' else (*others, thing), (*others, after)


def truth(before: np.ndarray, after: np.ndarray, grid: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the cells that an event touches, and those that it leaves alone, (rows, columns) bool.

    before, after: pictures without noise.
    """
    rows, columns = grid
    small = [
        cv2.resize(np.clip(rgb, 0, 255), (columns * CELL_PX, rows * CELL_PX), interpolation=cv2.INTER_AREA)
        for rgb in (before, after)
    ]
    pixels = np.abs(small[1] - small[0]).max(axis=2).reshape(rows, CELL_PX, columns, CELL_PX)
    share = (pixels >= CONFIG.change_threshold).mean(axis=(1, 3))
    return share >= TOUCHED, pixels.max(axis=(1, 3)) < CONFIG.static_threshold


def count_events(sensor: Sensor, grid: tuple[int, int], kind: str, count: int, seed: int) -> dict:
    """Count misses and false alarms of events of one kind. Three pictures before each show the camera's noise."""
    rng = np.random.default_rng(seed)
    size = next(iter(GRIDS))
    quarter = CELL_PX / 4 * tabletop.WIDTH / (grid[1] * CELL_PX)
    tally = dict.fromkeys(('events', 'touched', 'misses', 'untouched', 'false_alarms'), 0)
    while tally['events'] < count:
        scenes = draw_event(rng, kind, quarter)
        if scenes is None:
            continue
        table = Tabletop(rng, *size)
        before, after = (table.picture(things) for things in scenes)
        detector = ChangeDetector(tabletop.sense(before, sensor, rng), 0, *grid, CELL_PX)
        for stamp in (1, 2):
            if detector.compare(tabletop.sense(before, sensor, rng), stamp, CONFIG).stale.any():
                detector.refresh()
        changed = detector.compare(tabletop.sense(after, sensor, rng), 3, CONFIG).changed
        touched, untouched = truth(before, after, grid)
        tally['events'] += 1
        for name, cells in (
            ('touched', touched),
            ('misses', touched & ~changed),
            ('untouched', untouched),
            ('false_alarms', untouched & changed),
        ):
            tally[name] += int(cells.sum())
    return {'kind': kind, **tally}
