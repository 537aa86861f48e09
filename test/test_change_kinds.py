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

"""The change detector on the kinds of scenes that cameras show, against the pixels of the pictures themselves.

A cell is strongly changed when at least 3 % of its pixels differ by 24 or more from the pixels that its state was
computed from, both in the picture and in the median of three pictures in a row. It is unchanged when 99.5 % of the
pixels of that median differ by less than 10, and nothing is strongly changed in the picture itself.
"""

from functools import cache

import cv2
import numpy as np
import pytest

from vlm_reuse_node.config import Config
from vlm_reuse_node.scene.change import ChangeDetector

CONFIG = Config()
ROWS, COLUMNS, CELL_PX = 9, 12, 28
HEIGHT, WIDTH = ROWS * CELL_PX, COLUMNS * CELL_PX
PICTURES, PERIOD_NS = 25, 100_000_000
ALL, NONE = np.ones((ROWS, COLUMNS), bool), np.zeros((ROWS, COLUMNS), bool)


def sensed(scene, number, gain=0.05):
    """What a sensor makes of a scene: the variance of its noise grows with the brightness."""
    rng = np.random.default_rng(number)
    noise = np.sqrt(1 + gain * scene) * rng.standard_normal(scene.shape, np.float32)
    return np.clip(np.rint(scene + noise), 0, 255).astype(np.uint8)


def texture(low, high, seed=0, size=(HEIGHT, WIDTH), blur=2):
    rough = np.random.default_rng(seed).uniform(0, 1, (*size, 3)).astype(np.float32)
    return cv2.normalize(cv2.GaussianBlur(rough, (0, 0), blur), None, low, high, cv2.NORM_MINMAX)


ROOM, DARK = texture(40, 200), texture(8, 40)
DOWN, ACROSS = np.mgrid[:HEIGHT, :WIDTH]


def with_figure(number):
    """A figure walks through the dark and is gone after two seconds."""
    scene, left = DARK.copy(), 12 * number
    if number < 20:
        scene[60:200, left : left + 40] = 62
        scene[40:60, left + 10 : left + 30] = 74
    return scene


def with_shadow(number):
    edge = 5 * number
    return np.where((ACROSS + DOWN // 2 > edge + 40) & (ACROSS + DOWN // 2 < edge + 160), 0.7, 1)[..., None] * ROOM


def with_swing(number):
    scene, left = ROOM.copy(), int(150 + 60 * np.sin(0.9 * number))
    scene[100:140, left : left + 30] = (200, 60, 40)
    return scene


def with_fan(number):
    angle = np.arctan2(DOWN - 126, ACROSS - 168)
    blades = (np.hypot(DOWN - 126, ACROSS - 168) < 70) & (np.sin(3 * (angle + 0.37 * number)) > 0)
    return np.where(blades[..., None], 60.0, ROOM)


def with_flicker(number):
    return (1 + 0.08 * np.sin(0.6 * number)) * np.minimum(ROOM, 140)


def with_bands(number, share=0.01):
    """A lamp flickers while the rows are read one after the other."""
    return (1 + share * np.sin(DOWN / 30 + 0.4 * number))[..., None] * ROOM


def with_strong_bands(number):
    return with_bands(number, 0.2)


def with_shake(number):
    x, y = np.random.default_rng(100 + number).uniform(-1.5, 1.5, 2)
    return cv2.warpAffine(ROOM, np.float32([[1, 0, x], [0, 1, y]]), (WIDTH, HEIGHT), borderMode=cv2.BORDER_REFLECT)


def with_drift(number):
    """A part gets brighter by less than any threshold from one picture to the next."""
    scene = ROOM.copy()
    scene[56:140, 84:196] += 1.5 * number
    return scene


def with_steps(number):
    """Parts of a dark scene get brighter by 27 to 31 grey levels, one after the other."""
    scene = np.minimum(DARK, 14)
    for step in range(min(number // 4, 5)):
        scene[84:168, 56 * step : 56 * step + 42] += 27 + step
    return scene


def with_cursor(number):
    """A line of text is typed on a screen, which has no noise."""
    page = np.full((HEIGHT, WIDTH, 3), 250.0)
    cv2.putText(page, 'the quick brown fox jumps'[:number], (20, 110), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (20, 20, 20), 1)
    if number % 2:
        page[92:112, 24 + 11 * number : 26 + 11 * number] = 0
    return page


SCENES = {
    'a figure in the dark': with_figure,
    'a hard shadow': with_shadow,
    'a thing that goes back and forth': with_swing,
    'a fan': with_fan,
    'a flickering lamp': with_flicker,
    'faint bands': with_bands,
    'strong bands': with_strong_bands,
    'a camera that shakes': with_shake,
    'a slow drift': with_drift,
    'steps in the dark': with_steps,
    'a cursor': with_cursor,
    'noise alone': lambda number: ROOM,
    'much noise alone': lambda number: ROOM,
}
NOTHING_HAPPENS = {'a flickering lamp', 'faint bands', 'noise alone', 'much noise alone'}


@cache
def pictures(name):
    """The pictures, and the median of each one and its neighbours."""
    gains = {'a cursor': None, 'much noise alone': 0.3}
    scenes = [SCENES[name](number).astype(np.float32) for number in range(PICTURES)]
    gain = gains.get(name, 0.05)
    rgbs = [scene.astype(np.uint8) if gain is None else sensed(scene, n, gain) for n, scene in enumerate(scenes)]
    threes = [rgbs[number - 1 : number + 2] for number in range(1, PICTURES - 1)]
    medians = [np.maximum(np.minimum(a, b), np.minimum(np.maximum(a, b), c)) for a, b, c in threes]
    return rgbs, [rgbs[0], *medians, rgbs[-1]]


def share_of_pixels(now, then, least):
    """Share of the pixels of each cell that differ by at least so much in a channel."""
    differs = (cv2.absdiff(now, then) >= least).any(axis=2)
    return differs.reshape(ROWS, CELL_PX, COLUMNS, CELL_PX).mean(axis=(1, 3))


def eager(change, number):
    return ALL if change.stale.any() else NONE


def once_a_second(change, number):
    return ALL if change.stale.any() and number % 10 == 0 else NONE


def patched(change, number):
    return change.stale


@pytest.mark.parametrize('refreshed_of', [eager, once_a_second, patched])
@pytest.mark.parametrize('name', SCENES)
def test_strong_changes_are_found_and_what_is_unchanged_is_left_alone(name, refreshed_of):
    rgbs, medians = pictures(name)
    detector, cached, cached_median = ChangeDetector(rgbs[0], 0, ROWS, COLUMNS, CELL_PX), rgbs[0], medians[0]
    tally = dict.fromkeys(('strong', 'missed', 'unnoticed', 'unchanged', 'false', 'changed'), 0)
    for number in range(1, PICTURES - 1):
        rgb, median = rgbs[number], medians[number]
        change = detector.compare(rgb, number * PERIOD_NS, CONFIG)
        differs = share_of_pixels(rgb, cached, 24) >= 0.03
        strong = differs & (share_of_pixels(median, cached, 24) >= 0.03)
        unchanged = ~differs & (share_of_pixels(median, cached_median, 10) <= 0.005)
        for key, mask in (
            ('strong', strong),
            ('missed', strong & ~change.stale),
            ('unnoticed', strong.any() and not change.stale.any()),
            ('unchanged', unchanged),
            ('false', unchanged & change.changed),
            ('changed', change.changed),
        ):
            tally[key] += int(np.sum(mask))
        refreshed = refreshed_of(change, number)
        detector.settle(refreshed, NONE, change.stale, CONFIG)
        mask = np.kron(refreshed, np.ones((CELL_PX, CELL_PX), bool))[..., None]
        cached, cached_median = np.where(mask, rgb, cached), np.where(mask, median, cached_median)
    assert tally['missed'] <= 0.01 * tally['strong'] and not tally['unnoticed'], tally
    assert tally['false'] <= 0.02 * tally['unchanged'], tally
    if name in NOTHING_HAPPENS:
        assert not tally['strong'] and tally['changed'] <= 0.001 * PICTURES * ALL.size, tally
    else:
        assert tally['changed'] >= 10, tally
