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

"""The verdict in words: every figure with its denominator, and everything that speaks against the engine, only then."""

from copy import deepcopy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_reuse_node.replay.conclusion import conclusion
from vlm_reuse_node.replay.figures import (
    counted,
    factor,
    milliseconds,
    p_text,
    paid_text,
    seconds,
    share_text,
    span_text,
)
from vlm_reuse_node.replay.negatives import EXACT, negatives
from vlm_reuse_node.replay.support import support_lines
from vlm_reuse_node.replay.verdict import sentence, verdict
from vlm_reuse_node.session.embedded_model import MEANS_NOTHING

TIMES = {
    'pairs': 60,
    'median_ms': 12.0,
    'cold_median_ms': 36.0,
    'speedup': 3.0,
    'speedup_low': 2.5,
    'speedup_high': 3.5,
    'remembered': 0,
    'warm': 40,
    'warm_median_ms': 9.0,
    'work_ms': 1100.0,
    'upkeep_ms': 300.0,
    'cold_work_ms': 2200.0,
    'work_ratio': 0.5,
    'sessions': [{'questions': 1, 'speedup': 1.2}, {'questions': 2, 'speedup': 1.4}],
}
FLOOR = {'pairs': 60, 'ratio': 1.02, 'low': 0.9, 'high': 1.2, 'slower': 33}
COUNTS = {
    'asked': 60,
    'pairs': 60,
    'drifted': 0,
    'judged_pairs': 50,
    'lost': 0,
    'gained': 0,
    'same_pictures': 40,
    'same_pictures_drifted': 0,
    'patched_pairs': 0,
    'patched_drifted': 0,
    'statuses': {'OK': 60},
    'parse_failure': 0,
    'degenerate': 0,
    'cut': 0,
    'against_cached': {'pairs': 60, 'drifted': 0},
    'work': {'vision_tokens': 1000, 'prefill_tokens': 3000, 'decode_tokens': 60, 'upkeep_tokens': 900},
    'looks': {
        'pictures': 1200,
        'levels': {'frame': 200, 'reuse': 1000},
        'visual_tokens': 14400,
        'visual_tokens_refreshed': 2400,
    },
}
RATIOS = {
    'work_tokens_ratio': 0.4,
    'drift': {'share': 0.0, 'low': 0.0, 'high': 0.06, 'n': 60},
    'correctness_drift': {'mcnemar_p': 1.0},
}
REFERENCES = 'cold', 'cold-again', 'cold-cached'
ARMS = *REFERENCES, 'auto', 'exact', 'on-demand', 'patch', 'eager', 'newest', 'mlx-vlm'
NOTHING = ['None: no arm was slower or more work than cold-dense, none drifted, nothing was refused.']


def results(arm='auto', times=(), counts=(), ratios=(), **changes):
    """Results that nothing speaks against, but for what is changed of one arm, or of all."""
    parts = {'counts': COUNTS, 'ratios': RATIOS}
    found = {name: {each: deepcopy(value) for each in ARMS} for name, value in parts.items()}
    found |= {'times': {'arms': {each: deepcopy(TIMES) for each in ARMS}, 'floor': dict(FLOOR), 'sessions': {}}}
    found |= {'problems': [], 'notes': [], 'complete': True}
    found['times']['arms'][arm] |= dict(times)
    found['counts'][arm] |= dict(counts)
    for name, value in dict(ratios).items():
        found['ratios'][arm][name] = found['ratios'][arm][name] | value if isinstance(value, dict) else value
    found['settings'] = {'config': {'max_drift': 0.01}}
    found['bags'] = [{'cameras': [{'refresh_policy': 'exact', 'policy_reason': 'Nothing was measured.'}]}]
    return found | changes


def without(arm):
    found = results()
    for part in (found['counts'], found['ratios'], found['times']['arms']):
        del part[arm]
    return found


def figures(**changes):
    return verdict(results(**changes))


# --- the policy -------------------------------------------------------------------------------------------------------


def supported(drifted, pairs, work=0.2):
    counts = {'patched_drifted': drifted, 'patched_pairs': pairs}
    return support_lines(results(arm='patch', counts=counts, times={'work_ratio': work}))


@pytest.mark.parametrize(
    'drifted, pairs, work, begins',
    [
        (0, 400, 0.2, 'This recording supports refresh_policy patch'),
        (0, 400, 0.49, 'This recording supports refresh_policy exact'),  # exact was 0.5
        (0, 0, 0.2, 'This recording supports refresh_policy exact: no answer'),
        (0, 60, 0.2, 'Whether this recording supports refresh_policy patch cannot be told'),
        (5, 60, 0.2, 'This recording supports refresh_policy exact'),
        (9, 3000, 0.2, 'This recording supports refresh_policy patch'),
        (60, 3000, 0.2, 'This recording supports refresh_policy exact'),
    ],
)
def test_the_first_line_says_which_policy_the_recording_supports(drifted, pairs, work, begins):
    first, used = supported(drifted, pairs, work)
    assert first.startswith(begins) and (not pairs or f'{drifted} of {pairs} answers from patched states' in first)
    assert used == 'auto used exact. Nothing was measured.'


def test_what_was_not_measured_or_not_answered_supports_nothing():
    assert 'was not measured' in support_lines(without('patch'))[0]
    assert 'was not measured' in support_lines(without('exact'))[0]
    unasked = support_lines(results(arm='patch', counts={'pairs': 0}))
    assert 'no question was answered' in unasked[0]


# --- the figures ------------------------------------------------------------------------------------------------------


def test_the_total_work_comes_first_with_both_sums_and_what_was_done_between_questions():
    work = figures()[0]
    assert work['figure'] == factor(0.5)
    for text in (
        f'the total work of cold-dense: {seconds(1100)}',
        f'against {seconds(2200)} for the same 60 questions',
        f'{seconds(300)} of it was spent between questions',
        f'{factor(0.4)} its tokens (4,060 against 4,060)',
    ):
        assert text in work['label'], text
    assert figures(times={'pairs': 0})[0]['figure'] == 'no pair'


def test_the_total_work_of_a_resumed_run_is_of_the_questions_that_are_timed():
    found = results()
    found['times']['sessions'] = {'bag': {'sessions': 2, 'timed': 2, 'questions': 25, 'of': 60}}
    assert f'{seconds(2200)} for the same 25 questions' in verdict(found)[0]['label']


def test_the_speed_stands_with_both_medians_and_its_denominator():
    speed = figures()[1]
    assert speed['figure'] == factor(3.0)
    for text in ('12.0 ms', '36.0 ms', 'n = 60', 'cold-dense on the newest picture'):
        assert text in speed['label'], text


@given(remembered=st.integers(0, 60), warm=st.integers(0, 60))
def test_how_many_answers_were_remembered_is_told_apart_from_the_time_of_those_that_were_computed(remembered, warm):
    """A speedup in which answers that took no time are counted must say so."""
    found = results(times={'remembered': remembered, 'warm': warm, 'warm_median_ms': 9.0 if warm else None})
    told = verdict(found)[1]['label'].split('n = 60; ')[1]
    assert told.endswith(
        'timing floor: cold over cold-again is 1.02 × (median of 60 pairs; nine of ten from 0.90 × to 1.20 ×)'
    )
    assert told.startswith(f'{remembered} of these answers were remembered')
    assert (f'the median of the {warm} that were computed without a refresh is 9.0 ms' in told) == (warm > 0)
    assert ('none was computed without a refresh' in told) == (warm == 0)
    included = f'{counted(remembered, 60)} remembered answers included'
    assert (included in sentence(found)) == (remembered > 0) == ('remembered' in sentence(found))


@given(low=st.sampled_from([0.5, 1.0, 1.2]), high=st.sampled_from([0.8, 1.0, 1.3, 40.0]))
def test_an_interval_is_told_where_there_is_one_and_whether_chance_alone_could_make_it(low, high):
    speed = figures(times={'speedup_low': low, 'speedup_high': high})[1]
    assert f'95 % interval {factor(low)} to {factor(high)}' in speed['label']
    assert ('includes 1' in speed['label']) == (low <= 1 <= high)
    unknown = figures(times={'speedup_low': None, 'speedup_high': None})[1]
    assert 'interval' not in unknown['label'] and 'includes 1' not in unknown['label']


def test_without_a_pair_there_is_no_speed():
    found = results(times={'pairs': 0})
    speed = verdict(found)[1]
    assert speed['figure'] == 'no pair' and 'No question' in speed['label']
    assert sentence(found).startswith('Too few questions were answered')
    assert negatives(found) == NOTHING


@given(drifted=st.integers(0, 60), lost=st.integers(0, 9), gained=st.integers(0, 9), judged=st.integers(0, 50))
def test_the_drift_stands_with_its_bounds_and_what_became_of_known_truths(drifted, lost, gained, judged):
    counts = {'drifted': drifted, 'lost': lost, 'gained': gained, 'judged_pairs': judged}
    drift = figures(counts=counts, ratios={'drift': {'low': 0.01, 'high': 0.2}})[2]
    assert drift['figure'] == f'{drifted} of 60'
    assert f'{span_text(0.01, 0.2)} with 95 % confidence' in drift['label']
    changed = f'of {judged} with a known truth {lost + gained} changed between right and wrong ({lost} lost, {gained} '
    assert (changed in drift['label']) == (judged > 0) == ('known truth' in drift['label'])


@pytest.mark.parametrize('drifted', [0, 3])
def test_the_noise_floor_is_told_where_there_is_one(drifted):
    drift = verdict(results(arm='cold-again', counts={'drifted': drifted}))[2]
    assert ('noise floor' in drift['label']) == (drifted > 0)
    assert (counted(3, 60) in drift['label']) == (drifted > 0)
    assert 'noise floor' not in verdict(without('cold-again'))[2]['label']


def test_what_was_paid_is_of_all_pictures_that_were_looked_at():
    paid = figures()[3]
    assert paid['figure'] == paid_text(2400, 14400)
    assert '2,400 of 14,400 visual tokens in 1,200 pictures (frame 200, reuse 1000)' in paid['label']
    assert figures(counts={'looks': None})[3] == {'figure': 'none', 'label': 'No picture was looked at.'}


# --- the verdict in one line ------------------------------------------------------------------------------------------


@given(
    drifted=st.integers(0, 60),
    own=st.integers(0, 60),
    high=st.sampled_from([0.06, 0.3]),
    work=st.sampled_from([0.4, 1.0, 1.4]),
    speedup=st.sampled_from([0.7, 1.01, 9.9]),
    low=st.sampled_from([None, 0.9, 1.1]),
)
def test_the_first_line_begins_with_yes_only_when_nothing_speaks_against_it(drifted, own, high, work, speedup, low):
    found = results(counts={'drifted': drifted}, ratios={'drift': {'high': high}})
    found['times']['arms']['auto'] |= {'work_ratio': work, 'speedup': speedup, 'speedup_low': low}
    found['counts']['cold-again']['drifted'] = own
    line = conclusion(found)
    is_kept = drifted <= max(own, 0.01 * 60)
    pays = work < 1 and speedup > 1.02 and (low is None or low > 1)
    assert line.startswith('Yes, trust it') == (is_kept and pays and high < 0.1)
    assert line.startswith('No, do not trust it') == (not is_kept)
    assert line.startswith('No, it does not pay') == (is_kept and not pays)
    assert line.startswith('Not yet') == (is_kept and pays and high > 0.1)
    for figure in (f'{drifted} of 60', f'at most {share_text(high)}', factor(work), factor(speedup)):
        assert figure in line, figure


def test_the_first_line_says_that_there_is_none_or_that_a_part_is_missing():
    assert conclusion(results(times={'pairs': 0})).startswith('No verdict')
    assert conclusion(results(complete=False)).endswith('The replay is not complete.')
    assert conclusion(results(notes=[f'Here: {MEANS_NOTHING}'])) == f'No verdict: {MEANS_NOTHING}'


# --- the sentence -----------------------------------------------------------------------------------------------------


@given(in_time=st.sampled_from([0.2, 1.0, 1.01, 4.0]), in_tokens=st.sampled_from([0.2, 1.0, 1.01, 4.0]))
def test_the_sentence_says_whether_all_work_is_less_than_that_of_cold_dense(in_time, in_tokens):
    said = sentence(results(times={'work_ratio': in_time}, ratios={'work_tokens_ratio': in_tokens}))
    assert ('was more work than answering from nothing' in said) == (in_time > 1)
    assert (f'{factor(in_time)} its model time' in said) == (in_time > 1)
    assert (f'took {share_text(in_time)} of the model time' in said) == (in_time <= 1)
    assert ('but more tokens' in said) == (in_time <= 1 < in_tokens)


@given(speedup=st.sampled_from([0.5, 1.0, 1.01, 5.0]), low=st.sampled_from([None, 0.9, 1.0, 1.001]))
def test_the_sentence_says_whether_it_is_faster_and_whether_that_is_more_than_chance(speedup, low):
    said = sentence(results(times={'speedup': speedup, 'speedup_low': low, 'speedup_high': low and 9.0}))
    assert ('was no faster' in said) == (speedup <= 1)
    assert ('waits 12.0 ms for an answer instead of 36.0 ms' in said) == (speedup > 1)
    assert ('chance alone' in said) == (speedup > 1 and low is not None and low <= 1)


@pytest.mark.parametrize('high', [0.5, 1.0, 2.0])
def test_an_interval_that_ends_below_one_is_more_than_chance(high):
    said = sentence(results(times={'speedup': 1.5, 'speedup_low': 0.1, 'speedup_high': high}))
    assert ('chance alone' in said) == (high >= 1)


def test_no_drift_is_told_with_how_much_there_may_be_and_some_with_how_much_there_is():
    bound = share_text(0.06)
    none = sentence(results())
    assert 'none of 60 answers changed; with only 60 questions' in none and f'up to {bound} cannot be excluded' in none
    some = sentence(results(ratios={'drift': {'share': 0.02}}))
    assert f'{share_text(0.02)} of the answers differ' in some and f'up to {bound}' in some and 'none of' not in some


# --- what speaks against it -------------------------------------------------------------------------------------------


def test_nothing_speaks_against_results_that_are_all_well():
    assert negatives(results()) == NOTHING


def test_problems_and_missing_parts_are_told():
    found = negatives(results(problems=['The bag is damaged.'], complete=False))
    assert found[0] == 'The bag is damaged.' and 'not complete' in found[1] and len(found) == 2


def test_the_noise_floor_is_missed_and_told():
    (missing,) = negatives(without('cold-again'))
    assert 'noise floor was not measured' in missing
    (noisy,) = negatives(results(arm='cold-again', counts={'drifted': 3}))
    assert noisy.startswith('Cold-dense itself is not reproducible') and counted(3, 60) in noisy


def test_exactness_is_missed_and_its_lack_told():
    (missing,) = negatives(results(counts={'against_cached': None}))
    assert 'not checked (arm cold-cached)' in missing
    (inexact,) = negatives(results(counts={'against_cached': {'pairs': 60, 'drifted': 2}}))
    assert inexact.startswith('Auto is not exact') and counted(2, 60) in inexact


@pytest.mark.parametrize('arm', ARMS)
@pytest.mark.parametrize('speedup', [0.9, 1.0, 1.1])
def test_an_arm_that_is_not_faster_is_told_unless_it_is_one_to_compare_with(arm, speedup):
    found = negatives(results(arm=arm, times={'speedup': speedup}))
    if speedup > 1 or arm in (*REFERENCES, 'newest'):
        assert found == NOTHING
    else:
        (slow,) = found
        assert slow.startswith(f'{arm}: the median answer was no faster')
        assert f'{milliseconds(12.0)} ms against {milliseconds(36.0)} ms' in slow
    assert negatives(results(arm=arm, times={'speedup': speedup, 'pairs': 0})) == NOTHING


@pytest.mark.parametrize('arm', ARMS)
@given(in_time=st.sampled_from([0.5, 1.0, 1.1]), in_tokens=st.sampled_from([None, 0.5, 1.0, 1.2]))
def test_an_arm_that_keeps_a_state_and_is_more_work_is_told(arm, in_time, in_tokens):
    found = negatives(results(arm=arm, times={'work_ratio': in_time}, ratios={'work_tokens_ratio': in_tokens}))
    told = [each for each in found if 'did more work' in each]
    is_more = in_time > 1 or (in_tokens or 0) > 1
    assert len(told) == (is_more and arm not in (*REFERENCES, 'newest'))
    assert all(each.startswith(f'{arm}: ') and factor(in_time) in each for each in told)
    assert all((factor(in_tokens) in each) == (in_tokens is not None) for each in told)


@pytest.mark.parametrize(
    'questions, speedup, is_told', [(1, 0.9, True), (1, 1.0, True), (1, 1.1, False), (2, 0.9, False)]
)
def test_a_first_question_about_a_new_picture_that_is_no_faster_is_told(questions, speedup, is_told):
    found = negatives(results(times={'sessions': [{'questions': questions, 'speedup': speedup}]}))
    assert (found != NOTHING) == is_told
    assert not is_told or (found[0].startswith('auto: the first question') and factor(speedup) in found[0])


@pytest.mark.parametrize('arm', ARMS)
def test_an_arm_that_drifted_is_told_with_its_bound(arm):
    found = results(arm=arm, counts={'drifted': 2}, ratios={'drift': {'high': 0.11}})
    told = [each for each in negatives(found) if 'drifted from cold-dense' in each]
    if arm in REFERENCES:
        assert told == []
    else:
        (text,) = told
        assert text.startswith(f'{arm}: {counted(2, 60)} of its answers drifted')
        assert text.endswith(f'up to {share_text(0.11)}).')


@given(lost=st.integers(0, 3), gained=st.integers(0, 3), p=st.sampled_from([0.0001, 0.04, 1.0]))
def test_right_answers_that_were_lost_or_gained_are_told_with_their_significance(lost, gained, p):
    counts = {'drifted': 6, 'lost': lost, 'gained': gained}
    (told,) = negatives(results(counts=counts, ratios={'correctness_drift': {'mcnemar_p': p}}))
    expected = f'right answers lost: {lost}, gained: {gained} ({p_text(p)})'
    assert (expected in told) == (lost + gained > 0) == ('gained' in told)


@pytest.mark.parametrize('arm', ['auto', 'on-demand', 'eager', 'newest', 'patch', 'mlx-vlm'])
@pytest.mark.parametrize('same', [0, 2])
def test_drift_on_the_same_pictures_is_told_of_arms_that_should_be_exact(arm, same):
    (told,) = negatives(results(arm=arm, counts={'drifted': 6, 'same_pictures_drifted': same}))
    assert ('2 of them, called exact, on the very same pictures' in told) == (arm in EXACT and same > 0)


def test_what_was_not_answered_is_told_by_its_reasons():
    (told,) = negatives(results(counts={'statuses': {'BUSY': 2, 'OK': 55, 'STALE': 3}}))
    assert told == f'auto: {counted(5, 60)} questions got no answer (BUSY 2, STALE 3).'


@pytest.mark.parametrize(
    'name, what', [('parse_failure', 'none of the choices'), ('degenerate', 'empty or repetitive'), ('cut', 'cut off')]
)
def test_answers_that_are_no_good_are_told(name, what):
    (told,) = negatives(results(arm='patch', counts={name: 4}))
    assert told.startswith(f'patch: {counted(4, 60)} answers') and what in told
