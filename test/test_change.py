"""The change detector: what it sees, what it does not, and its time."""

import time

import cv2
import numpy as np
import pytest

from vlm_reuse_node.change import CellAges, ChangeDetector

BASE = np.random.default_rng(0).integers(40, 200, (12, 16, 3), dtype=np.uint8).repeat(40, 0).repeat(40, 1)


def test_the_same_picture_has_no_difference():
    assert not ChangeDetector(BASE, 6, 8, 28).difference(BASE.copy()).any()


@pytest.mark.parametrize('row, column', [(0, 0), (5, 7), (2, 3)])
@pytest.mark.parametrize('channel', [0, 1, 2])
def test_only_the_cell_that_changed_is_found(row, column, channel):
    changed = BASE.copy()  # a cell is 80 x 80 px of the camera's picture
    changed[80 * row + 20:80 * row + 60, 80 * column + 20:80 * column + 60, channel] += 50
    difference = ChangeDetector(BASE, 6, 8, 28).difference(changed)
    assert difference.shape == (6, 8) and difference.dtype == np.uint8
    assert difference[row, column] == 50 and np.count_nonzero(difference) == 1


def test_the_cached_picture_is_a_copy():
    mine = BASE.copy()
    detector = ChangeDetector(mine, 480 // 28, 640 // 28, 28)
    exact = ChangeDetector(cv2.resize(mine, (224, 168)), 6, 8, 28)
    mine[:] = 0
    assert detector.difference(mine).min() >= 40 and exact.difference(mine).min() >= 40


def test_a_darker_picture_counts_like_a_brighter_one():
    detector = ChangeDetector(BASE, 6, 8, 28)
    assert (detector.difference(BASE - 9) == 9).all() and (detector.difference(BASE + 9) == 9).all()


def test_a_cell_ages_from_the_last_picture_that_showed_it_unchanged():
    ages = CellAges(1, 2, stamp_ns=0)
    ages.see_static(np.array([[True, False]]), stamp_ns=3_000_000_000)
    assert ages.seconds(4_000_000_000).tolist() == [[1.0, 4.0]]


def test_a_640_x_480_picture_takes_less_than_5_ms():
    detector, spent = ChangeDetector(BASE, 17, 23, 28), []
    for _ in range(30):
        started = time.perf_counter()
        detector.difference(BASE)
        spent.append(time.perf_counter() - started)
    assert np.median(spent) < 0.005
