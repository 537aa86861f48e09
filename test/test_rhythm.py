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

"""How likely a question is soon."""

import math

import pytest

hypothesis = pytest.importorskip('hypothesis', reason='hypothesis is missing: pip install hypothesis')
from hypothesis import given
from hypothesis import strategies as st

from vlm_reuse_node.session.rhythm import FEWEST, REGULAR, REMEMBERED, SPREAD, Rhythm

INTERVALS = st.lists(st.floats(0, 100), max_size=20)
TIMES = st.floats(0, 1000)
RANDOM = [0.0, 1.0, 9.0, 10.0, 30.0, 31.0]


def asked(*times_s):
    rhythm = Rhythm()
    for time_s in times_s:
        rhythm.note(time_s)
    return rhythm


def after(intervals_s):
    """A rhythm with these intervals, and the time of its last question."""
    times_s = [0.0]
    for interval_s in intervals_s:
        times_s.append(times_s[-1] + interval_s)
    return asked(*times_s), times_s[-1]


def regular(period_s=2.0, count=FEWEST, spread_s=0.0):
    """The last of `count` questions, which come every period, every other one early and late, is at 0 s."""
    return asked(*(period_s * (number - count + 1) + spread_s * (-1) ** number for number in range(count)))


@given(INTERVALS, TIMES, TIMES, TIMES)
def test_a_probability_is_one_and_more_time_never_makes_a_question_less_likely(intervals_s, waited_s, short_s, more_s):
    rhythm, last_s = after(intervals_s)
    shorter, longer = (rhythm.probability(last_s + waited_s, each_s) for each_s in (short_s, short_s + more_s))
    assert 0 <= shorter <= longer + 1e-12 and longer <= 1


@given(INTERVALS, TIMES, TIMES, st.floats(0.01, 100))
def test_silence_lowers_the_probability_where_there_is_no_rhythm(intervals_s, waited_s, longer_s, within_s):
    rhythm, last_s = after(intervals_s)
    early_s, late_s = last_s + waited_s, last_s + waited_s + longer_s
    if rhythm.due(early_s) is None:
        assert rhythm.due(late_s) is None
        assert rhythm.probability(late_s, within_s) <= rhythm.probability(early_s, within_s)


@given(INTERVALS, TIMES)
def test_a_question_is_due_one_mean_interval_after_the_last_and_its_rhythm_ends(intervals_s, waited_s):
    rhythm, last_s = after(intervals_s)
    if due := rhythm.due(last_s + waited_s):
        newest_s = intervals_s[-REMEMBERED + 1 :]
        assert len(newest_s) + 1 >= FEWEST
        mean_s = sum(newest_s) / len(newest_s)
        earliest_s, due_s = due
        assert due_s == pytest.approx(last_s + mean_s) and earliest_s <= due_s
        assert rhythm.due(due_s + SPREAD * REGULAR * mean_s + REGULAR * mean_s + 1e-3) is None


def test_before_two_questions_nothing_is_likely():
    assert asked().last_s == -math.inf
    for rhythm in (asked(), asked(0.0)):
        assert rhythm.due(0.0) is None and rhythm.probability(0.1, 100.0) == 0
    assert asked(0.0, 1.0).probability(1.0, 1.0) > 0 and asked(0.0, 3.0).last_s == 3


@pytest.mark.parametrize('count', range(2, 12))
def test_four_questions_make_a_rhythm(count):
    rhythm = regular(2.0, count)
    assert rhythm.due(0.0) == ((2.0, 2.0) if count >= 4 else None)


def test_only_the_newest_eight_questions_count():
    rhythm = asked(-100.0, -40.0, *(2.0 * number for number in range(-7, 1)))
    assert rhythm.due(0.0) == (2.0, 2.0)
    assert asked(-100.0, *(2.0 * number for number in range(-6, 1))).due(0.0) is None


@pytest.mark.parametrize('spread_s, is_regular', [(0.0, True), (0.4, True), (0.5, True), (0.51, False), (2.0, False)])
def test_intervals_that_differ_by_more_than_a_quarter_are_no_rhythm(spread_s, is_regular):
    """The standard deviation of 2 - d, 2 + d, 2 - d, 2 + d seconds is d."""
    times_s = (0.0, 2 - spread_s, 4.0, 6 - spread_s, 8.0)
    due = asked(*times_s).due(8.0)
    assert due == (pytest.approx((10 - 3 * spread_s, 10.0)) if is_regular else None)


@pytest.mark.parametrize('spread_s', [0.0, 0.25])
def test_a_rhythm_ends_when_its_question_stays_out(spread_s):
    rhythm = asked(0.0, 2 - spread_s, 4.0, 6 - spread_s, 8.0)
    last_s = 10 + 3 * spread_s + 0.5
    assert rhythm.due(last_s) and rhythm.due(last_s + 1e-6) is None
    assert rhythm.probability(last_s + 1e-6, 0.1) < 0.1  # the rate of five questions in some eleven seconds
    rhythm.note(last_s + 9)
    assert rhythm.due(last_s + 9) is None


def test_a_regular_question_is_likely_only_around_its_time():
    rhythm = asked(0.0, 1.9, 4.0, 5.9, 8.0)  # due at 10.0 s, give or take 0.1 s
    assert rhythm.probability(8.5, 1.0) < 1e-3
    assert rhythm.probability(8.5, 1.5) == pytest.approx(0.5)
    assert rhythm.probability(9.0, 1.0) == pytest.approx(0.5)
    assert rhythm.probability(9.0, 1.1) == pytest.approx(0.841, abs=0.001)  # one standard deviation
    assert rhythm.probability(9.0, 1.4) > 0.999
    # It has not come yet: half of what is left is likely within the first 0.067 standard deviations.
    assert rhythm.probability(10.0, 0.06745) == pytest.approx(0.5, abs=0.001)
    assert 0.9 < rhythm.probability(10.2, 0.1) < 1
    assert rhythm.probability(10.7, 1e-3) <= 1  # the curve has no numbers left that far out


@pytest.mark.parametrize('late_s', [0.0, 0.3])
def test_an_exactly_regular_question_is_certain_once_it_is_due_and_not_before(late_s):
    rhythm = regular(2.0)
    assert rhythm.probability(1.0, 0.9) == 0 and rhythm.probability(1.0, 1.1) == 1
    assert rhythm.probability(2.0 + late_s, 0.01) == pytest.approx(1)


@pytest.mark.parametrize('now_s', [0.0, 1.0, 2.4])
def test_within_a_whole_period_a_regular_question_is_certain(now_s):
    rhythm = asked(-8.0, -6.1, -4.0, -2.1, 0.0)
    assert rhythm.probability(now_s, 2.0) == rhythm.probability(now_s, 5.0) == 1
    assert rhythm.probability(0.0, 1.9) < 1


def test_a_random_question_is_expected_by_its_rate():
    """Five intervals in 31 s, and none since."""
    rhythm = asked(*RANDOM)
    assert rhythm.due(31.0) is None
    for now_s, within_s in ((31.0, 1.0), (31.0, 10.0), (50.0, 10.0)):
        assert rhythm.probability(now_s, within_s) == pytest.approx(1 - math.exp(-within_s * 5 / now_s))
    assert rhythm.probability(31.0, 0.0) == 0


def test_questions_at_one_moment_are_no_division_by_zero():
    rhythm = asked(5.0, 5.0)
    assert rhythm.probability(5.0, 1.0) == 1 and 0 < rhythm.probability(5.0, 1e-3) < 1
    assert rhythm.probability(5.0, 1e-3) == pytest.approx(1 - math.exp(-1))
    same = asked(*6 * [5.0])
    assert same.due(5.0) == (5.0, 5.0) and same.due(5.1) is None
    assert same.probability(5.0, 1.0) == 1
