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

"""The drift audit: evenly chosen, counted with bounds; drift takes the trust away, and a while gives it back."""

import math
import random

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from vlm_reuse_node.session.drift_audit import UNLIKELY, AuditCounts, DriftAudit
from vlm_reuse_node.session.drift_bounds import DriftCount, answers_needed, share_bounds

MAX_DRIFT = 0.01


def audited(results, exact=False, audit=None):
    audit = audit or DriftAudit()
    for drifted in results:
        audit.add(drifted, exact, True, MAX_DRIFT)
    return audit


@given(share=st.floats(0, 1), answers=st.integers(0, 300))
def test_the_chosen_share_is_the_wanted_one(share, answers):
    audit = DriftAudit()
    chosen = sum(audit.chooses(share, MAX_DRIFT) for _ in range(answers))
    assert -1e-9 <= share * answers - chosen <= 1 + 1e-9  # never more, and less than one is owed


def test_a_share_of_all_is_every_answer():
    audit = DriftAudit()
    assert all(audit.chooses(1.0, MAX_DRIFT) for _ in range(20))


def test_nothing_is_known_without_answers():
    assert DriftCount().bounds == (0.0, 1.0) and DriftCount().share == 0
    assert DriftAudit().counts == AuditCounts() and AuditCounts().is_trusted


@given(st.integers(1, 1000), st.data())
def test_the_bounds_are_those_of_the_binomial_test(answers, data):
    count = DriftCount(answers, data.draw(st.integers(0, answers)))
    exact = binomtest(count.drifted, answers).proportion_ci(0.95, method='exact')
    assert count.bounds == pytest.approx((exact.low, exact.high), abs=1e-9)
    assert count.bounds[0] <= count.share <= count.high


@given(st.floats(0, 0.02), st.floats(0.001, 0.05))
def test_so_many_answers_are_needed_and_not_many_fewer(share, limit):
    needed = answers_needed(share, limit)
    if math.isinf(needed):
        assert limit - share < 1e-4
    else:
        assert share_bounds(round(share * needed), needed)[1] <= limit
        fewer = needed - 1
        assert fewer == 0 or share_bounds(round(share * fewer), fewer)[1] > limit


def test_choices_and_texts_are_counted_apart_and_trusted_together():
    audit = DriftAudit()
    for has_choices, drifted in ((True, False), (True, False), (False, True)):
        audit.add(drifted, False, has_choices, MAX_DRIFT)
    assert (audit.counts.choices, audit.counts.texts) == (DriftCount(2), DriftCount(1, 1))
    assert audit.counts.patched == DriftCount(3, 1)


def test_a_rate_within_the_limit_keeps_the_trust_and_one_above_it_takes_it():
    assert audited([False] * 500 + [True] + [False] * 500).counts.is_trusted
    shaken = audited([False] * 20 + [True] * 3)
    assert not shaken.counts.is_trusted
    assert shaken.counts.fallbacks == 1


@given(st.lists(st.booleans(), max_size=60), st.floats(0.001, 0.6))
def test_the_trust_goes_with_the_first_answer_that_chance_does_not_explain(results, max_drift):
    """Chance is a binomial's tail, here SciPy's; what comes after that answer is not counted."""
    audit, count, drifted = DriftAudit(), 0, 0
    for result in results:
        if audit.counts.is_trusted:
            count, drifted = count + 1, drifted + result
        audit.add(result, False, count % 2 == 0, max_drift)
        by_chance = binom.sf(drifted - 1, count, max_drift)
        assume(abs(by_chance - UNLIKELY) > 1e-9)
        assert audit.counts.is_trusted == (by_chance > UNLIKELY)
        assert audit.counts.patched == DriftCount(count, drifted)


def test_exact_answers_say_nothing_about_approximate_ones():
    counts = audited([False] * 99 + [True], exact=True).counts
    assert (counts.patched.answers, counts.exact_answers, counts.exact_drifted) == (0, 100, 1)
    assert counts.is_trusted


def test_the_trust_comes_back_after_a_while_that_is_longer_every_time():
    audit, stretches = DriftAudit(), []
    for _ in range(3):
        audited([True] * 3, audit=audit)
        assert not audit.counts.is_trusted
        given = 0
        while not audit.counts.is_trusted:
            audit.chooses(0.0, MAX_DRIFT)
            given += 1
        stretches.append(given)
        assert audit.counts.patched.answers == 0  # what was counted before is of another time
    assert stretches == [300, 600, 1200]


def test_one_drifted_answer_among_few_is_no_proof():
    assert audited([True]).counts.is_trusted and audited([False] * 8 + [True]).counts.is_trusted


@pytest.mark.parametrize('rate, most', [(0.002, 0.02), (0.005, 0.06)])
def test_a_rate_within_the_limit_is_rarely_taken_for_one_above_it(rate, most):
    rng, falls = random.Random(1), 0
    for _ in range(200):
        falls += not audited([rng.random() < rate for _ in range(300)]).counts.is_trusted
    assert falls / 200 <= most
