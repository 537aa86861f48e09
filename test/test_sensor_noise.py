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

"""The noise of a sensor is learnt by brightness, from what is still, and never from what moves."""

import cv2
import numpy as np
import pytest

from vlm_reuse_node.scene.scaled_frame import ScaledFrame
from vlm_reuse_node.scene.sensor_noise import SensorNoise

ROWS, COLUMNS, CELL_PX = 6, 8, 28
SIZE = ROWS * CELL_PX, COLUMNS * CELL_PX
FLAT = np.full((*SIZE, 3), 120.0)
# From dark to bright, each column of cells in one level.
STEPS = np.repeat(np.linspace(20, 235, COLUMNS), CELL_PX)[None, :, None] * np.ones((SIZE[0], 1, 3))


def sensed(scene, seed, deviation):
    noise = np.random.default_rng(seed).standard_normal(scene.shape) * deviation
    return np.clip(np.rint(scene + noise), 0, 255).astype(np.uint8)


def learnt(pictures, period_s=0.1, noise=None):
    """What is learnt from these pictures, and the last one's noise: (rows, columns)."""
    frames = [ScaledFrame.of(rgb, ROWS, COLUMNS, CELL_PX) for rgb in pictures]
    noise = noise or SensorNoise(pictures[0].shape[:2], frames[0])
    for then, now in zip(frames, frames[1:]):
        noise.learn(now, then, period_s)
    return noise, noise.of_cells(frames[-1])


@pytest.mark.parametrize('deviation', [0, 1.5, 4, 8])
def test_the_noise_of_a_difference_is_that_of_two_pictures(deviation):
    _, found = learnt([sensed(FLAT, seed, deviation) for seed in range(20)])
    assert found == pytest.approx(np.sqrt(2) * deviation, rel=0.2, abs=0.1)


def test_the_noise_depends_on_the_brightness():
    """The variance of the light's own noise is proportional to the brightness."""
    _, found = learnt([sensed(STEPS, seed, np.sqrt(0.1 * STEPS)) for seed in range(20)])
    assert found[0] == pytest.approx(np.sqrt(2 * 0.1 * np.linspace(20, 235, COLUMNS)), rel=0.25)


@pytest.mark.parametrize('camera', [(169, 226), (170, 222), (240, 320), (504, 672)])
def test_the_noise_of_the_sharpest_places_is_learnt_whatever_the_scale(camera):
    """Interpolation between the camera's pixels hides a part of the noise, in some places more than in others."""
    pictures = [sensed(np.full((*camera, 3), 120.0), seed, 6) for seed in range(12)]
    frames = [ScaledFrame.of(rgb, ROWS, COLUMNS, CELL_PX) for rgb in pictures]
    _, found = learnt(pictures)
    differences = [cv2.absdiff(now.pixels, then.pixels) for now, then in zip(frames, frames[1:])]
    by_cell = np.square(np.float32(differences)).reshape(-1, ROWS, CELL_PX, COLUMNS, CELL_PX * 3).mean(axis=(0, 2, 4))
    assert 0.8 < found.max() / np.sqrt(by_cell.max()) < 1.5


@pytest.mark.parametrize('share', [0.5, 1.0])
def test_what_moves_is_no_noise(share):
    rough = np.random.default_rng(0).uniform(0, 255, (SIZE[0], SIZE[1] + 80, 3)).astype(np.float32)
    wide = cv2.normalize(cv2.GaussianBlur(rough, (0, 0), 2), None, 60, 180, cv2.NORM_MINMAX)
    pictures = []
    for number in range(10):
        scene, edge = FLAT.copy(), int(share * SIZE[1])
        scene[:, :edge] = wide[:, 5 * number : 5 * number + edge]
        pictures.append(sensed(scene, number, 1))
    assert learnt(pictures)[1].max() < 4


def test_a_thing_of_rare_brightness_that_moves_is_no_noise():
    pictures = []
    for number in range(10):
        scene = FLAT.copy()
        scene[:, 15 * number : 15 * number + 50] = np.random.default_rng(number).uniform(190, 215, (SIZE[0], 50, 3))
        pictures.append(sensed(scene, number, 1))
    assert learnt(pictures)[1].max() < 5


def test_the_same_picture_again_teaches_nothing():
    pictures = [sensed(FLAT, seed, 4) for seed in range(10)]
    noise, once = learnt(pictures)
    _, again = learnt([pictures[-1]] * 10, period_s=10.0, noise=noise)
    assert np.array_equal(once, again)


@pytest.mark.parametrize('rate_hz', [2, 10, 30])
def test_noise_is_forgotten_by_the_second_and_not_by_the_picture(rate_hz):
    noise, loud = learnt([sensed(FLAT, seed, 6) for seed in range(10)])
    quiet = [sensed(FLAT, seed, 1) for seed in range(3 * rate_hz + 1)]
    _, found = learnt(quiet, period_s=1 / rate_hz, noise=noise)  # three seconds
    assert found**2 == pytest.approx((loud**2 + 7 * 2) / 8, rel=0.25)


def test_black_and_white_do_not_hide_the_noise_of_what_is_between():
    scene = STEPS.copy()
    scene[:, : 3 * CELL_PX], scene[:, 5 * CELL_PX :] = 0, 255
    _, found = learnt([sensed(scene, seed, 5) for seed in range(12)])
    assert found[0, 3:5] == pytest.approx(np.sqrt(2) * 5, rel=0.25)
