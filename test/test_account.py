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

"""What a camera's questions have earned and what upkeep may spend."""

import math

import pytest

hypothesis = pytest.importorskip('hypothesis', reason='hypothesis is missing: pip install hypothesis')
from hypothesis import given
from hypothesis import strategies as st

from vlm_reuse_node.model.work import Work
from vlm_reuse_node.scene.refresh import Totals
from vlm_reuse_node.session.account import MOST_ANSWERS, Account

NOTHING = Work()
ANSWER = Work(12, 40, 8, 100.0)  # 60 tokens
AMOUNTS = st.builds(Work, *3 * [st.integers(0, 50)], st.integers(0, 200).map(float))
SHARES = st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.0, 3.0])
BOOKINGS = st.lists(st.tuples(st.booleans(), AMOUNTS, AMOUNTS, SHARES), max_size=12)


def tokens(count):
    return Work(prefill_tokens=count)


def ms(count):
    return Work(ms=float(count))


def booked(bookings, **given):
    account = Account(**given)
    for is_question, spent, cold, share in bookings:
        if is_question:
            account.book_questions(spent, [cold], share)
        else:
            account.book_upkeep(spent)
    return account


def most_patched(account):
    """The most tokens that a patch may cost more than cold-dense."""
    return max((count for count in range(-1, 2000) if count < 0 or account.covers_patch(tokens(count))), default=-1)


def most_tokens(account, **given):
    """The largest number of tokens that the credit covers; -1: not even none."""
    return max(
        (count for count in range(-1, 2000) if count < 0 or account.covers_upkeep(tokens(count), **given)), default=-1
    )


@given(BOOKINGS)
def test_all_work_is_counted_once_and_so_is_that_of_cold_dense(bookings):
    account, questions = booked(bookings), [booking for booking in bookings if booking[0]]
    assert account.spent == sum((spent for _, spent, _, _ in bookings), NOTHING)
    assert account.cold == sum((cold for _, _, cold, _ in questions), NOTHING)
    assert account.totals.work_ms == account.spent.ms and account.totals.cold_ms == account.cold.ms


@given(BOOKINGS)
def test_the_credit_is_never_more_than_three_of_the_dearest_answers(bookings):
    account, dearest, most_share = booked(bookings), NOTHING, 1.0
    for is_question, _, cold, share in bookings:
        if is_question:
            dearest, most_share = max(dearest, cold, key=lambda work: work.tokens), max(most_share, share)
    assert MOST_ANSWERS == 3
    assert most_tokens(account) <= 3 * most_share * dearest.tokens
    assert account.totals.credit_ms <= 3 * most_share * dearest.ms or dearest.tokens == 0
    assert not account.covers_upkeep(tokens(int(3 * most_share * dearest.tokens) + 1))


@given(BOOKINGS, st.integers(0, 200), st.integers(0, 200))
def test_what_the_credit_covers_it_covers_in_part(bookings, count, took_ms):
    account = booked(bookings)
    if account.covers_upkeep(Work(0, count, 0, took_ms)):
        assert account.covers_upkeep(Work(0, count // 2, 0, took_ms / 2)) and account.covers_upkeep(NOTHING)
        assert account.covers_patch(Work(0, count, 0, took_ms))


@given(BOOKINGS)
def test_upkeep_within_the_credit_keeps_all_work_within_its_share(bookings):
    """With one share for all questions; questions themselves may cost more than cold-dense."""
    account = Account()
    for is_question, spent, cold, _ in bookings:
        if is_question:
            account.book_questions(min(spent, cold, key=lambda work: work.tokens), [cold], 0.5)
        elif account.covers_upkeep(spent):
            account.book_upkeep(spent)
            assert account.spent.tokens <= 0.5 * account.cold.tokens and account.spent.ms <= 0.5 * account.cold.ms


def test_nothing_is_covered_before_the_first_question():
    account = Account()
    assert account.covers_upkeep(NOTHING) and not account.covers_upkeep(tokens(1)) and not account.covers_upkeep(ms(1))
    assert not account.covers_patch(tokens(1)) and account.share(tokens(1)) == math.inf
    assert account.totals == Totals(0.0, 0.0, 0.0)


@pytest.mark.parametrize('share, most', [(0.0, -1), (0.5, 20), (1.0, 50), (3.0, 170)])
def test_a_question_earns_the_share_of_its_cold_dense_work_less_its_own(share, most):
    account = Account()
    account.book_questions(tokens(10), [tokens(60)], share)
    assert most_tokens(account) == most
    account.book_upkeep(tokens(7))
    assert most_tokens(account) == max(-1, most - 7)


@pytest.mark.parametrize('share, most', [(0.5, 180), (1.0, 180), (2.0, 360), (3.0, 540)])
def test_however_many_follow_the_credit_ends_at_three_answers_or_at_that_many_shares_of_them(share, most):
    account = Account()
    for count in (60, *10 * [20], *100 * [60]):  # the dearest of all counts, not the newest
        account.book_questions(NOTHING, [Work(0, count, 0, float(count))], share)
    assert most_tokens(account, answers_left=0) == most and account.totals.credit_ms == most
    account.book_questions(NOTHING, [tokens(1)], share)
    assert most_tokens(account) == most
    assert not account.covers_upkeep(tokens(most + 1)) and not account.covers_upkeep(ms(most + 1))


@pytest.mark.parametrize('measures_time', [True, False])
def test_the_credit_must_cover_tokens_and_where_time_is_measured_that_too(measures_time):
    account = Account(measures_time)
    account.book_questions(Work(0, 10, 0, 10.0), [Work(0, 60, 0, 110.0)], 1.0)
    assert account.covers_upkeep(Work(0, 50, 0, 100.0)) and not account.covers_upkeep(Work(0, 51, 0, 100.0))
    assert account.covers_upkeep(Work(0, 50, 0, 101.0)) != measures_time
    assert account.totals.credit_ms == 100.0
    account.book_upkeep(Work(0, 20, 0, 30.0))
    assert account.covers_upkeep(Work(0, 30, 0, 70.0)) and not account.covers_upkeep(Work(0, 31, 0, 0.0))
    assert account.covers_upkeep(Work(0, 0, 0, 71.0)) != measures_time and account.totals.credit_ms == 70.0


def test_time_is_measured_unless_it_is_not_wanted():
    account = Account()
    account.book_questions(NOTHING, [tokens(60)], 1.0)
    assert account.covers_upkeep(tokens(60)) and not account.covers_upkeep(ms(1))


def test_what_must_be_left_is_counted_in_the_dearest_answers():
    account = Account()
    for count in (10, 60, 30):
        account.book_questions(NOTHING, [Work(0, count, 0, 2.0 * count)], 1.0)
    for left, most in ((0, 100), (0.5, 70), (1, 40)):
        assert most_tokens(account, answers_left=left) == most
        assert account.covers_upkeep(ms(2 * most), answers_left=left) and not account.covers_upkeep(
            ms(2 * most + 1), answers_left=left
        )
    assert not account.covers_upkeep(NOTHING, answers_left=2)


def test_only_what_is_taken_on_trust_may_overdraw_and_by_the_first_questions_work_alone():
    account = Account()
    account.book_questions(tokens(0), [Work(0, 60, 0, 90.0)], 1.0)
    account.book_questions(tokens(0), [Work(0, 200, 0, 300.0)], 1.0)
    account.book_upkeep(Work(0, 260, 0, 390.0))
    assert account.covers_upkeep(NOTHING) and not account.covers_upkeep(tokens(1)) and not account.covers_upkeep(ms(1))
    assert most_patched(account) == 60
    assert account.covers_patch(ms(90)) and not account.covers_patch(ms(91))
    account.book_upkeep(Work(0, 60, 0, 90.0))
    assert account.covers_patch(NOTHING) and not account.covers_patch(tokens(1))


def test_a_question_that_ended_before_any_work_is_not_the_first_one():
    account = Account()
    account.book_questions(NOTHING, [NOTHING], 1.0)
    account.book_questions(ANSWER, [ANSWER], 1.0)
    assert most_patched(account) == 60 and account.covers_patch(ms(100))


@pytest.mark.parametrize('measures_time, share', [(True, 0.25), (False, 0.5)])
def test_a_share_is_of_the_dearest_answer_in_the_measure_that_counts(measures_time, share):
    account = Account(measures_time)
    for answer in (ANSWER, tokens(1)):
        account.book_questions(answer, [answer], 1.0)
    assert account.share(Work(10, 15, 5, 25.0)) == share
