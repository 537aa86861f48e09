"""The change detector: what it sees, what it does not, and its time."""

import time

import cv2
import numpy as np
import pytest

from vlm_reuse_node.change import ChangeDetector
from vlm_reuse_node.config import Config

SECOND_NS = 1_000_000_000
CONFIG = Config()
BASE = np.random.default_rng(0).integers(40, 200, (12, 16, 3), dtype=np.uint8).repeat(40, 0).repeat(40, 1)


def detector_of(rgb, rows=6, columns=8):
    return ChangeDetector(rgb, 0, rows, columns, 28)


def test_the_same_picture_has_no_difference():
    change = detector_of(BASE).compare(BASE.copy(), SECOND_NS, CONFIG)
    assert not change.difference.any() and not change.stale.any() and not change.doubt_s.any()


@pytest.mark.parametrize('row, column', [(0, 0), (5, 7), (2, 3)])
@pytest.mark.parametrize('channel', [0, 1, 2])
def test_only_the_cell_that_changed_is_found(row, column, channel):
    changed = BASE.copy()  # a cell is 80 x 80 px of the camera's picture
    changed[80 * row + 20:80 * row + 60, 80 * column + 20:80 * column + 60, channel] += 50
    change = detector_of(BASE).compare(changed, SECOND_NS, CONFIG)
    assert change.difference.shape == (6, 8) and change.difference.dtype == np.uint8
    assert change.difference[row, column] == 50 and np.count_nonzero(change.difference) == 1
    assert change.stale[row, column] and np.count_nonzero(change.stale) == 1


def test_the_cached_picture_is_a_copy():
    mine = BASE.copy()
    detector, exact = detector_of(mine, 480 // 28, 640 // 28), detector_of(cv2.resize(mine, (224, 168)))
    mine[:] = 0
    assert detector.compare(mine, 1, CONFIG).difference.min() >= 40
    assert exact.compare(mine, 1, CONFIG).difference.min() >= 40


@pytest.fixture
def one_core():
    """OpenCV on the calling thread alone, so that its time is all there is."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    yield
    cv2.setNumThreads(threads)


def test_a_640_x_480_picture_takes_less_than_5_ms(one_core):
    detector, spent = detector_of(BASE, 17, 23), []
    for number in range(30):
        started = time.thread_time()
        detector.compare(BASE, number, CONFIG)
        spent.append(time.thread_time() - started)
    assert np.median(spent) < 0.005
