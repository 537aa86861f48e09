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

"""The change detector: its time, what it pays while nothing happens, and what it misses; and the overlay's time.

Pictures are the demo's generated tabletop, on the grid of the embedded model and on that of a Qwen2.5-VL model at full
size; both see the same pictures. Written as JSON:

change_ms_p95  by picture size, the worst of the rows of times
times   the comparison of one picture, shrinking included, OpenCV on one thread: processor time of the thread (cpu_ms_*)
        and time on the clock (wall_ms_*), over `pictures` pictures. flicker: every picture is compared twice, as it is
        and with the exposure taken out. move: an object moves. pan: the whole picture moves, by 1 % of its width. In
        the last two every picture becomes the cached one, and what is new in it is determined too
overlay drawing the overlay of one picture, half of the cells paid for and a quarter deferred: processor time of the
        thread, over `pictures` pictures
paid    share of the cells that was paid for, while there is only noise or flicker: at level `frame`, where one stale
        cell pays for the whole picture, and cell by cell (the stale ones alone). oldest_s: longest doubt of a cell
events  an object of the smallest size appears, moves by a quarter of a cell, or changes colour. A cell is touched when
        at least TOUCHED of its pixels change by change_threshold in the picture without noise, and untouched when none
        changes by static_threshold. misses: touched cells that were not found in the first picture after the event.
        false_alarms: untouched cells that were found
"""

import argparse
import math
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from change_events import measure_events
from change_grids import CELL_PX, CONFIG, GRIDS
from results import publish

from vlm_reuse_node.demo import tabletop
from vlm_reuse_node.demo.tabletop import Sensor, Tabletop
from vlm_reuse_node.scene.change import ChangeDetector
from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.scene.overlay import draw_overlay
from vlm_reuse_node.scene.refresh import Level, Refresh

OUTPUT = Path(__file__).parents[1] / 'out' / 'bench' / 'change.json'
FLICKER = 0.1  # of the brightness
FLICKER_HZ = 5.0


def still(time_s: float) -> Sensor:
    """Return the camera's default noise."""
    return Sensor()


def flicker(time_s: float) -> Sensor:
    """Return the same under a lamp that flickers."""
    return Sensor(brightness=1 + FLICKER * math.sin(2 * math.pi * FLICKER_HZ * time_s))


def time_compare(size: tuple[int, int], grid: tuple[int, int], situation: str, pictures: int) -> dict:
    """Return the times of one situation, milliseconds."""
    rng = np.random.default_rng(0)
    table = Tabletop(rng, *size)
    things = tabletop.random_things(rng, 4)
    sensor = flicker if situation == 'flicker' else still
    rgbs = []
    for number in range(8):
        first = replace(things[0], x=things[0].x + (2 * number if situation == 'move' else 0))
        rgb = tabletop.sense(table.picture((first, *things[1:])), sensor(0.03 * number), rng)
        rgbs.append(np.roll(rgb, number * size[0] // 100 if situation == 'pan' else 0, axis=1))
    detector = ChangeDetector(rgbs[0], 0, *grid, CELL_PX)
    cpu = []
    wall = []
    for number in range(pictures):
        wall_s = time.perf_counter()
        cpu_s = time.thread_time()
        change = detector.compare(rgbs[(number + 1) % len(rgbs)], number + 1, CONFIG)
        if situation in ('move', 'pan') and change.stale.any():
            detector.refresh()
            detector.report_changed(change.stale, CONFIG)
        wall.append(1e3 * (time.perf_counter() - wall_s))
        cpu.append(1e3 * (time.thread_time() - cpu_s))
    return {'situation': situation, 'pictures': pictures, **percentiles('cpu', cpu), **percentiles('wall', wall)}


def time_overlay(size: tuple[int, int], grid: tuple[int, int], pictures: int) -> dict:
    """Return the processor times of drawing, in ms."""
    rgb = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8)
    refreshed = np.zeros(grid, bool)
    refreshed[::2] = True
    deferred = np.zeros(grid, bool)
    deferred[1::4] = True
    refresh = Refresh('camera', 0, '', Level.FRAME, 'some cells changed', refreshed, deferred, changed=refreshed)
    cpu = []
    for _ in range(pictures):
        cpu_s = time.thread_time()
        draw_overlay(Frame(rgb), refresh)
        cpu.append(1e3 * (time.thread_time() - cpu_s))
    return {'pictures': pictures, **percentiles('cpu', cpu)}


def percentiles(name: str, times_ms: list[float]) -> dict[str, float]:
    """Return the median and the 95th percentile, by name."""
    return {
        f'{name}_ms_{what}': float(np.percentile(times_ms, percent)) for what, percent in (('median', 50), ('p95', 95))
    }


def watch(sensor_at: Callable[[float], Sensor], seconds: float, rate_hz: float, seed: int) -> list[dict]:
    """Return what is paid on every grid while a table stands still."""
    rng = np.random.default_rng(seed)
    size, grids = next(iter(GRIDS.items()))
    picture = Tabletop(rng, *size).picture(tabletop.random_things(rng, 4))
    detectors: dict[str, ChangeDetector] = {}
    rows: dict[str, dict[str, Any]] = {}
    for number in range(round(seconds * rate_hz)):
        rgb = tabletop.sense(picture, sensor_at(number / rate_hz), rng)
        for name, grid in grids.items():
            if number == 0:
                detectors[name] = ChangeDetector(rgb, 0, *grid, CELL_PX)
                rows[name] = {
                    'grid': name,
                    'cells': math.prod(grid),
                    'pictures': 0,
                    'refreshes': 0,
                    'stale': 0,
                    'oldest_s': 0.0,
                }
                continue
            change = detectors[name].compare(rgb, round(1e9 * number / rate_hz), CONFIG)
            rows[name]['pictures'] += 1
            rows[name]['refreshes'] += bool(change.stale.any())
            rows[name]['stale'] += int(change.stale.sum())
            rows[name]['oldest_s'] = max(rows[name]['oldest_s'], float(change.doubt_s.max()))
            if change.stale.any():
                detectors[name].refresh()
    return [
        row
        | {
            'seconds': seconds,
            'rate_hz': rate_hz,
            'paid_frame': row['refreshes'] / row['pictures'],
            'paid_cells': row['stale'] / row['pictures'] / row['cells'],
        }
        for row in rows.values()
    ]


def table_of(title: str, rows: list[dict]) -> None:
    """Print rows as a table with their keys as titles."""
    print(f'\n{title}')
    texts = [[f'{value:.4g}' if isinstance(value, float) else str(value) for value in row.values()] for row in rows]
    widths = [max(map(len, column)) for column in zip(rows[0], *texts)]
    for line in (rows[0], *texts):
        print('  '.join(text.rjust(width) for text, width in zip(line, widths)), flush=True)


def measure_times(pictures: int) -> list[dict]:
    """Return the rows of times."""
    return [
        {'size': f'{size[0]}x{size[1]}', 'grid': name, **time_compare(size, grid, situation, pictures)}
        for size, grids in GRIDS.items()
        for name, grid in grids.items()
        for situation in ('still', 'flicker', 'move', 'pan')
    ]


def measure_overlay(pictures: int) -> list[dict]:
    """Return rows of the overlay."""
    return [
        {'size': f'{size[0]}x{size[1]}', 'grid': name, **time_overlay(size, grid, pictures)}
        for size, grids in GRIDS.items()
        for name, grid in grids.items()
    ]


def worst(times: list[dict]) -> dict[str, float]:
    """Return the worst of the rows of times by picture size: p95, processor milliseconds."""
    return {
        size: max(row['cpu_ms_p95'] for row in times if row['size'] == size)
        for size in dict.fromkeys(row['size'] for row in times)
    }


def measure_paid(seconds: float) -> list[dict]:
    """Return the rows of what is paid."""
    return [
        {'situation': name, **row}
        for name, sensor_at, rate_hz, share in (('still', still, 10.0, 1.0), ('flicker', flicker, 30.0, 0.2))
        for row in watch(sensor_at, share * seconds, rate_hz, seed=0)
    ]


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--pictures', type=int, default=200, help='pictures timed in each row; default: %(default)s')
    parser.add_argument(
        '--seconds',
        type=float,
        default=600.0,
        help='how long the table stands still, at 10 Hz; flicker: a fifth of it, at 30 Hz; default: %(default)s',
    )
    parser.add_argument(
        '--events', type=int, default=100, help='of each kind, on each grid, with each sensor; default: %(default)s'
    )
    parser.add_argument('--output', type=Path, default=OUTPUT, help='the JSON file; default: %(default)s')
    return parser


def main(argv: list[str] | None = None) -> int:
    """Measure, print the tables and the JSON line, and write the file."""
    arguments = build_parser().parse_args(argv)
    cv2.setNumThreads(1)
    times = measure_times(arguments.pictures)
    table_of('time of a comparison', times)
    overlay = measure_overlay(arguments.pictures)
    table_of('time of drawing the overlay', overlay)
    events = measure_events(arguments.events)
    table_of('events', events)
    paid = measure_paid(arguments.seconds)
    table_of('paid while nothing happens', paid)
    result = {'change_ms_p95': worst(times), 'times': times, 'overlay': overlay, 'events': events, 'paid': paid}
    publish(result, arguments.output)
    return 0


if __name__ == '__main__':
    sys.exit(main())
