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

"""Counts add up, bounds are the exact ones, and no share is written as nothing or all unless it is."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_reuse_node.replay.bounds import mcnemar_p, ratio_bounds, share_bounds
from vlm_reuse_node.replay.compare import compare
from vlm_reuse_node.replay.counts import AGES, PAIR_COUNTS, age_class, count_rows
from vlm_reuse_node.replay.figures import counted, factor, percent, share_text
from vlm_reuse_node.replay.ratios import derive_ratios
from vlm_reuse_node.replay.row_index import RowIndex
from vlm_reuse_node.replay.sessions import choose_sessions, session_lines, timed_rows
from vlm_reuse_node.replay.times import measure_times, timing_floor

AGE_NAMES = [name for _, name in AGES]
STAGES = {'change_ms': 0.0, 'vision_ms': 0.0, 'prefill_ms': 0.0, 'decode_ms': 1.0, 'other_ms': 0.0}


def question(number, bag='a', truth='red', picture_s=1.0):
    return {
        'row': 'question',
        'bag': bag,
        'camera': 'camera',
        'question': number,
        'at_s': float(number),
        'kind': 'k',
        'text': f'question {number}',
        'choices': [],
        'truth': truth,
        'choice_tokens': 0,
        'picture_s': picture_s,
    }


def answer(number, arm, text='red', choice=-1, bag='a', status='OK', pictures_s=(1.0,), total_ms=1.0, scores=()):
    right = text == 'red' if status == 'OK' else None
    return {
        'row': 'answer',
        'bag': bag,
        'camera': 'camera',
        'question': number,
        'arm': arm,
        'status': status,
        'text': text,
        'choice': choice,
        'choice_scores': list(scores),
        'right': right,
        'parse_failure': False,
        'degenerate': False,
        'cut': False,
        'level': 'reuse',
        'exact': True,
        'escalated': False,
        'remembered': False,
        'pictures_s': list(pictures_s),
        'visual_tokens_computed': 0 if arm == 'auto' else 12,
        'tokens_reused': 1,
        'tokens_prefilled': 20,
        'tokens_generated': 1,
        'work': {'vision_tokens': 0 if arm == 'auto' else 12, 'prefill_tokens': 20, 'decode_tokens': 1},
        'times': {'total_ms': total_ms, **STAGES, 'decode_ms': total_ms, 'work_ms': total_ms, 'session': 1},
    }


def upkeep(arm, tokens=32, ms=12.0, bag='a'):
    return {
        'row': 'upkeep',
        'bag': bag,
        'camera': 'camera',
        'arm': arm,
        'picture_s': 0.0,
        'work': {'vision_tokens': 0, 'prefill_tokens': tokens, 'decode_tokens': 0},
        'times': {'work_ms': ms, 'session': 1},
    }


def picture(arm, refreshed, level='frame', bag='a'):
    return {
        'row': 'picture',
        'bag': bag,
        'camera': 'camera',
        'arm': arm,
        'picture_s': 0.0,
        'question': None,
        'level': level,
        'visual_tokens': 12,
        'visual_tokens_refreshed': refreshed,
        'visual_tokens_stale': 0,
        'held_bytes': 5,
        'times': {'change_ms': 1.0, 'vision_ms': 2.0, 'prefill_ms': 3.0, 'session': 1},
    }


def some_rows(bag='a', drifted=2, questions=6):
    """Rows of cold and default, of which some drifted to a wrong answer."""
    rows = [question(number, bag) for number in range(questions)]
    for number in range(questions):
        rows.append(answer(number, 'cold', bag=bag, total_ms=10.0 + number))
        rows.append(answer(number, 'auto', 'blue' if number < drifted else 'red', bag=bag, total_ms=2.0))
    looks = [picture('auto', 12, 'full', bag), picture('auto', 0, 'reuse', bag) | {'picture_s': 1.0}]
    return [*rows, *looks, upkeep('auto', bag=bag)]


@pytest.mark.parametrize('total', [1, 3, 60, 2000])
def test_a_counted_share_is_nothing_or_all_only_when_it_is(total):
    texts = [percent(number, total) for number in range(total + 1)]
    assert texts[0] == '0 %' and texts[-1] == '100 %'
    assert not {'0 %', '100 %'} & set(texts[1:-1])


@pytest.mark.parametrize('share', [1e-9, 0.0004, 0.00051, 0.04999, 0.5, 0.9999, 0.99951, 1 - 1e-9])
def test_a_share_that_is_no_count_is_nothing_or_all_only_when_it_is(share):
    assert share_text(share) not in ('0 %', '0.0 %', '100 %', '100.0 %')
    assert (share_text(0.0), share_text(1.0), share_text(None)) == ('0 %', '100 %', '–')


def test_figures_say_what_they_are_shares_of():
    assert counted(2, 60) == '2 of 60 (3 %)' and counted(0, 0) == 'none to count' and factor(5.04) == '5.0 ×'


@pytest.mark.parametrize('total', [1, 93, 480])
def test_bounds_are_the_exact_ones(total):
    # Without any drift the Clopper-Pearson bound has a closed form.
    assert share_bounds(0, total) == (0.0, pytest.approx(1 - 0.025 ** (1 / total), abs=1e-6))
    low, high = share_bounds(total, total)
    assert (low, high) == (pytest.approx(0.025 ** (1 / total), abs=1e-6), 1.0)
    assert share_bounds(0, 0) == (None, None)


def test_mcnemar_looks_at_what_changed_only():
    assert mcnemar_p(0, 0) == 1.0 and mcnemar_p(3, 3) == 1.0
    assert mcnemar_p(6, 0) == pytest.approx(2 / 2**6, abs=1e-6) == mcnemar_p(0, 6)


@given(total=st.integers(1, 500), data=st.data())
def test_a_share_is_within_its_bounds_which_have_six_decimals(total, data):
    count = data.draw(st.integers(0, total))
    low, high = share_bounds(count, total)
    assert low <= count / total <= high
    assert (low, high) == (round(low, 6), round(high, 6))


def test_the_speedup_has_an_interval_that_is_the_same_every_time():
    times = np.random.default_rng(1).uniform(0.1, 2, (2, 40))
    low, high = ratio_bounds(10 * times[0], times[1])
    assert low < 10 * np.median(times[0]) / np.median(times[1]) < high
    assert ratio_bounds(10 * times[0], times[1]) == (low, high)


@given(st.lists(st.floats(0.01, 100), min_size=3, max_size=20))
@settings(max_examples=10)
def test_pairs_that_all_have_one_ratio_leave_no_doubt_about_it(times):
    assert ratio_bounds([10 * each for each in times], times) == pytest.approx((10.0, 10.0))


def test_less_than_three_pairs_or_a_time_of_nothing_have_no_interval():
    assert ratio_bounds([1.0, 2.0], [1.0, 2.0]) == (None, None)
    assert ratio_bounds([5.0] * 5, [0.0, 1.0, 1.0, 1.0, 1.0]) == (None, None)


def test_counts_of_two_bags_add_up():
    apart = [count_rows(RowIndex(some_rows(bag, drifted)))['auto'] for bag, drifted in (('a', 2), ('b', 1))]
    together = count_rows(RowIndex(some_rows('a', 2) + some_rows('b', 1)))['auto']
    assert together['drifted'] == 3 and together['lost'] == 3 and together['gained'] == 0
    assert all(together[name] == sum(each[name] for each in apart) for name in (*PAIR_COUNTS, 'asked', 'right'))
    assert together['looks']['levels'] == {'full': 2, 'reuse': 2}


def test_drift_is_of_choices_where_there_are_any_and_else_of_text():
    rows = RowIndex(
        [
            question(0),
            question(1),
            answer(0, 'cold', 'red', 0),
            answer(0, 'x', 'red', 1),
            answer(1, 'cold', 'red'),
            answer(1, 'x', 'red'),
        ]
    )
    counts = count_rows(rows)['x']
    assert (counts['choice_pairs'], counts['choice_drifted']) == (1, 1)
    assert (counts['text_pairs'], counts['text_drifted']) == (1, 0)


def test_what_was_not_answered_is_in_no_pair():
    rows = RowIndex([question(0), answer(0, 'cold'), answer(0, 'x', status='MODEL_ERROR')])
    counts = count_rows(rows)['x']
    assert counts['pairs'] == 0 and counts['asked'] == 1 and counts['statuses'] == {'MODEL_ERROR': 1}
    assert derive_ratios(rows, count_rows(rows))['x']['drift'] == {'share': None, 'low': None, 'high': None, 'n': 0}


def test_the_same_pictures_are_told_from_older_ones():
    rows = RowIndex(
        [
            question(0),
            question(1),
            answer(0, 'cold', scores=(0.5, 0.5)),
            answer(0, 'x', 'blue', scores=(0.25, 0.75)),
            answer(1, 'cold'),
            answer(1, 'x', 'blue', pictures_s=(0.5,)),
        ]
    )
    counts = count_rows(rows)['x']
    assert (counts['same_pictures'], counts['same_pictures_drifted'], counts['drifted']) == (1, 1, 2)
    assert derive_ratios(rows, count_rows(rows))['x']['largest_score_difference'] == 0.25
    assert list(counts['by_age']) == ['the newest picture', 'up to 1 s older']


def test_a_picture_is_counted_once_and_whatever_was_computed_is_paid():
    looks = [picture('x', 0, 'reuse'), picture('x', 3, 'patch'), picture('x', 12, 'full') | {'question': 0}]
    looks.append(picture('x', 0, 'reuse') | {'picture_s': 1.0})
    counts = count_rows(RowIndex([question(0), answer(0, 'x') | {'visual_tokens_computed': 12}, *looks]))['x']['looks']
    assert (counts['pictures'], counts['visual_tokens'], counts['visual_tokens_refreshed']) == (2, 24, 15)
    assert counts['levels'] == {'full': 1, 'reuse': 1}


@pytest.mark.parametrize(
    'age_s, name',
    [
        (0.0, 'the newest picture'),
        (0.2, 'up to 1 s older'),
        (1.5, '1 to 3 s older'),
        (10.0, '3 to 10 s older'),
        (99.0, 'more than 10 s older'),
    ],
)
def test_ages_are_sorted_into_classes(age_s, name):
    assert age_class(question(0, picture_s=100.0), answer(0, 'x', pictures_s=(0.0, 100.0 - age_s))) == name


def test_times_name_what_they_are_compared_with():
    times = measure_times(RowIndex(some_rows()))['auto']
    assert times['speedup'] == 12.5 / 2.0 and times['upkeep_ms'] == 12.0
    assert times['work_ms'] == 12.0 + 12.0 and times['work_ratio'] == (12.0 + 12.0) / 75.0
    assert times['sessions'][0] == {'questions': 1, 'setup_ms': 6.0, 'speedup': 12.5 / 8.0}
    # As many tokens as cold-dense computed: the prediction is cold-dense, the residual what is missing to it.
    assert times['ceiling']['predicted_ms'] == 75.0 and times['ceiling']['residual_ms'] == -63.0


def random_rows(seed, bags=('a', 'b'), questions=12):
    """Rows of two bags and four arms, of which everything that is counted differs from row to row."""
    rng, work_rng, rows = np.random.default_rng(seed), np.random.default_rng(100 + seed), []

    def number(most):
        return int(rng.integers(0, most))

    def one_of(*values):
        return values[number(len(values))]

    for bag in bags:
        for asked in range(questions):
            rows.append(
                question(asked, bag, picture_s=5.0) | {'kind': one_of('k', 'l', 'm'), 'choice_tokens': number(4)}
            )
            for arm in ('cold', 'cold-cached', 'auto', 'x'):
                row = answer(
                    asked, arm, one_of('red', 'blue'), one_of(-1, -1, 0, 1), bag, one_of('OK', 'OK', 'OK', 'BUSY')
                )
                rows.append(
                    row
                    | {name: one_of(True, False) for name in FLAGS}
                    | {name: 10 + number(90) for name in TOKENS}
                    | {
                        'right': one_of(True, False, None) if row['status'] == 'OK' else None,
                        'pictures_s': [one_of(5.0, 5.0, 4.5, 3.0)],
                        'exact': arm != 'x' or bool(work_rng.integers(2)),
                        'visual_tokens_computed': None
                        if arm == 'x' and seed % 2
                        else number(30) * int(work_rng.integers(2)),
                        'work': None
                        if arm == 'x' and seed % 2
                        else {name: int(work_rng.integers(30)) for name in WORK},
                        'times': {'total_ms': 1.0 + number(50), **{name: float(number(20)) for name in STAGES}}
                        | {'work_ms': float(work_rng.integers(1, 50))},
                    }
                )
        for shown in range(8):
            look = picture('auto', number(12), one_of('full', 'reuse', 'patch'), bag)
            look |= {'picture_s': float(shown // 2), 'visual_tokens_stale': number(5), 'held_bytes': number(1000)}
            rows.append(look | {'visual_tokens': 12 + number(5), 'times': {name: float(number(9)) for name in STAGES}})
        rows += [upkeep('auto', *work_rng.integers(50, size=2).tolist(), bag) for _ in range(3)]
    return rows


FLAGS = 'escalated', 'remembered', 'parse_failure', 'degenerate', 'cut'
WORK = 'vision_tokens', 'prefill_tokens', 'decode_tokens'
TOKENS = 'tokens_reused', 'tokens_prefilled', 'tokens_generated'
seeds = pytest.mark.parametrize('seed', range(4))


def is_warm(row):
    """Whether an answer was computed, and waited for no refresh."""
    return not row['visual_tokens_computed'] and not row['remembered']


def of_arm(rows, arm):
    return [row for row in rows if row['row'] == 'answer' and row['arm'] == arm]


def paired(rows, arm, reference='cold'):
    """Question, answer and the reference's, of those that both answered."""
    keyed = {(row['bag'], row['question']): row for row in of_arm(rows, reference)}
    asked = {(row['bag'], row['question']): row for row in rows if row['row'] == 'question'}
    three = [(asked[key], row, keyed[key]) for row in of_arm(rows, arm) for key in [(row['bag'], row['question'])]]
    return [each for each in three if each[1]['status'] == each[2]['status'] == 'OK']


@seeds
def test_the_counts_of_an_arm_are_those_of_its_answers(seed):
    rows = random_rows(seed)
    for arm, counts in count_rows(RowIndex(rows)).items():
        answers = of_arm(rows, arm)
        told = [row['visual_tokens_computed'] for row in answers]
        assert {name: counts[name] for name in (*FLAGS, *TOKENS)} == {
            name: sum(row[name] for row in answers) for name in (*FLAGS, *TOKENS)
        }
        assert counts['asked'] == len(answers) == sum(counts['statuses'].values())
        assert counts['right'] == [row['right'] for row in answers].count(True)
        assert counts['judged'] == counts['right'] + [row['right'] for row in answers].count(False)
        assert counts['visual_tokens_computed'] == (None if None in told else sum(told))
        assert list(counts['statuses']) == ['BUSY', 'OK']


@seeds
def test_the_pairs_of_an_arm_are_those_that_both_answered(seed):
    rows = random_rows(seed)
    for arm, counts in count_rows(RowIndex(rows)).items():
        pairs = paired(rows, arm)
        judged = [(row['right'], cold['right']) for _, row, cold in pairs if None not in (row['right'], cold['right'])]
        same = [row for _, row, cold in pairs if row['pictures_s'] == cold['pictures_s']]
        assert counts['pairs'] == len(pairs) == counts['choice_pairs'] + counts['text_pairs']
        assert counts['choice_pairs'] == sum(cold['choice'] >= 0 for *_, cold in pairs)
        assert counts['drifted'] == counts['choice_drifted'] + counts['text_drifted']
        assert counts['judged_pairs'] == len(judged)
        assert (counts['lost'], counts['gained']) == (judged.count((False, True)), judged.count((True, False)))
        assert counts['same_pictures'] == sum(row['exact'] for row in same)
        assert counts['same_pictures_drifted'] <= min(counts['same_pictures'], counts['drifted'])
        patched = [(row, cold) for _, row, cold in pairs if not row['exact'] and not row['remembered']]
        assert counts['patched_pairs'] == len(patched) and counts['patched_drifted'] <= counts['drifted']


@seeds
def test_an_arm_does_not_drift_from_itself(seed):
    counts = count_rows(RowIndex(random_rows(seed)))['cold']
    assert counts['pairs'] > counts['judged_pairs'] > 0 and counts['same_pictures'] == counts['pairs']
    names = 'drifted', 'choice_drifted', 'text_drifted', 'same_pictures_drifted', 'lost', 'gained'
    assert not any(counts[name] for name in names)


@seeds
def test_the_groups_of_an_arms_pairs_add_up_to_all_of_them(seed):
    rows = random_rows(seed)
    for arm, counts in count_rows(RowIndex(rows)).items():
        for groups in (counts['by_kind'], counts['by_age']):
            assert list(groups) == sorted(groups) and len(groups) == 3
            assert all(counts[name] == sum(each[name] for each in groups.values()) for name in PAIR_COUNTS)
        kinds = [asked['kind'] for asked, *_ in paired(rows, arm)]
        assert {kind: each['pairs'] for kind, each in counts['by_kind'].items()} == dict(Counter(kinds))


def test_only_the_exact_answers_of_auto_are_compared_with_cold_dense_on_its_own_pictures():
    rows = random_rows(0)
    for number, row in enumerate(rows):
        row |= {'exact': number % 3 > 0} if row.get('arm') == 'auto' and 'exact' in row else {}
    counts = count_rows(RowIndex(rows))
    assert [arm for arm, each in counts.items() if each['against_cached']] == ['auto']
    against = counts['auto']['against_cached']
    exact = [pair for pair in paired(rows, 'auto', 'cold-cached') if pair[1]['exact']]
    assert 0 < against['pairs'] == len(exact) < len(paired(rows, 'auto', 'cold-cached'))
    assert against['drifted'] == sum(
        row['choice'] != cold['choice'] if max(row['choice'], cold['choice']) >= 0 else row['text'] != cold['text']
        for _, row, cold in exact
    )
    ratios = derive_ratios(RowIndex(rows), counts)
    assert ratios['auto']['against_cached']['drift']['n'] == against['pairs'] and not ratios['x']['against_cached']
    apart = [row for row in rows if row.get('arm') != 'cold-cached']
    assert count_rows(RowIndex(apart))['auto']['against_cached'] is None


@seeds
def test_what_an_arm_looked_at_is_counted_once_and_paid_as_often_as_it_was(seed):
    rows = random_rows(seed)
    looks = [row for row in rows if row['row'] == 'picture']
    first, second = looks[::2], looks[1::2]  # each picture has two rows
    counts = count_rows(RowIndex(rows))
    assert [arm for arm, each in counts.items() if each['looks']] == ['auto']
    dearest = [
        max(one['level'], other['level'], key=['reuse', 'patch', 'frame', 'full'].index)
        for one, other in zip(first, second)
    ]
    assert counts['auto']['looks'] == {
        'pictures': len(first),
        'levels': dict(sorted(Counter(dearest).items())),
        'visual_tokens': sum(row['visual_tokens'] for row in first),
        'visual_tokens_refreshed': sum(row['visual_tokens_refreshed'] for row in looks),
        'visual_tokens_stale': sum(row['visual_tokens_stale'] for row in first),
        'held_bytes_most': max(row['held_bytes'] for row in looks),
    }


@seeds
def test_the_work_of_an_arm_is_that_of_its_answers_and_of_its_upkeep(seed):
    rows = random_rows(seed)
    counts, times = count_rows(RowIndex(rows)), measure_times(RowIndex(rows))
    ratios = derive_ratios(RowIndex(rows), counts)
    totals = {}
    for arm in counts:
        own = [row for row in rows if row['row'] in ('answer', 'upkeep') and row['arm'] == arm]
        between = [row for row in own if row['row'] == 'upkeep']
        work_ms = sum(row['times']['work_ms'] for row in own)
        assert times[arm]['work_ms'] == work_ms
        assert times[arm]['upkeep_ms'] == sum(row['times']['work_ms'] for row in between)
        assert times[arm]['work_ratio'] == pytest.approx(work_ms / times['cold']['work_ms'])
        if own[0]['work'] is None:
            assert counts[arm]['work'] is ratios[arm]['work_tokens_ratio'] is None
            continue
        assert {name: counts[arm]['work'][name] for name in WORK} == {
            name: sum(row['work'][name] for row in own) for name in WORK
        }
        assert counts[arm]['work']['upkeep_tokens'] == sum(sum(row['work'].values()) for row in between)
        totals[arm] = sum(sum(row['work'].values()) for row in own)
        assert ratios[arm]['work_tokens_ratio'] == round(totals[arm] / totals['cold'], 6)
    assert times['cold']['work_ratio'] == ratios['cold']['work_tokens_ratio'] == 1.0


@seeds
def test_ratios_are_shares_of_their_counts_with_six_decimals(seed):
    rows = RowIndex(random_rows(seed))
    counts = count_rows(rows)
    for arm, ratios in derive_ratios(rows, counts).items():
        each = counts[arm]
        for name, part, total in (
            ('drift', each['drifted'], each['pairs']),
            ('choice_drift', each['choice_drifted'], each['choice_pairs']),
            ('text_drift', each['text_drifted'], each['text_pairs']),
            ('same_pictures_drift', each['same_pictures_drifted'], each['same_pictures']),
            ('correctness_drift', each['lost'] + each['gained'], each['judged_pairs']),
        ):
            low, high = share_bounds(part, total)
            expected = {'share': round(part / total, 6) if total else None, 'low': low, 'high': high, 'n': total}
            assert {key: ratios[name][key] for key in expected} == expected
        assert ratios['correctness_drift']['mcnemar_p'] == mcnemar_p(each['lost'], each['gained'])
        assert ratios['right'] == round(each['right'] / each['judged'], 6)
        assert (ratios['paid'] is None) == (arm != 'auto') == (ratios['effective_pictures'] is None)


@given(st.lists(st.sampled_from([0, 3, 12]), min_size=1, max_size=9))
def test_all_of_every_picture_is_worth_as_many_pictures_and_nothing_is_worth_one(refreshed):
    looks = [picture('x', number) | {'picture_s': float(at)} for at, number in enumerate(refreshed)]
    rows = RowIndex([question(0), answer(0, 'x') | {'visual_tokens_computed': 0}, *looks])
    ratios = derive_ratios(rows, count_rows(rows))['x']
    assert ratios['paid'] == pytest.approx(np.mean(refreshed) / 12, abs=1e-6)
    assert 1 <= ratios['effective_pictures'] <= len(refreshed)
    if set(refreshed) in ({0}, {12}):
        assert ratios['effective_pictures'] == (len(refreshed) if refreshed[0] else 1)
    assert {ratios[name] for name in ('paid', 'effective_pictures')} == {
        round(ratios[name], 6) for name in ('paid', 'effective_pictures')
    }


def test_pictures_without_tokens_have_no_share_that_was_paid():
    rows = RowIndex([question(0), answer(0, 'x'), picture('x', 0) | {'visual_tokens': 0}])
    ratios = derive_ratios(rows, count_rows(rows))['x']
    assert ratios['paid'] is None and ratios['effective_pictures'] is None


def test_every_row_is_found_by_its_kind():
    rows = [*random_rows(0), {'row': 'bag', 'bag': 'a'}]
    index = RowIndex(rows)
    kinds = {'question': index.questions, 'answer': index.answers, 'picture': index.pictures, 'bag': index.bags}
    for kind, found in kinds.items():
        assert found == [row for row in rows if row['row'] == kind] != []


@pytest.mark.parametrize(
    'scores, cold_scores, pictures_s, largest',
    [
        ((0.2, 0.8), (0.5, 0.5), (1.0,), 0.3),
        ((0.9, 0.1), (0.2, 0.8), (1.0,), 0.7),
        ((0.2, 0.8, 0.0), (0.5, 0.5, 0.0), (1.0,), 0.3),
        ((0.2, 0.8), (0.5, 0.5), (0.5,), None),  # of another picture
        ((0.2, 0.8), (0.5, 0.3, 0.2), (1.0,), None),  # of other choices
        ((), (), (1.0,), None),
    ],
)
def test_scores_are_compared_where_pictures_and_choices_are_the_same(scores, cold_scores, pictures_s, largest):
    rows = [question(0), answer(0, 'cold', scores=cold_scores), answer(0, 'x', scores=scores, pictures_s=pictures_s)]
    assert derive_ratios(RowIndex(rows), count_rows(RowIndex(rows)))['x']['largest_score_difference'] == largest


def test_the_largest_of_all_score_differences_is_told_with_six_decimals():
    rows = [question(0), question(1)]
    for number, score in enumerate((1 / 3, 1 / 7)):
        rows += [answer(number, 'cold', scores=(0.0, 1.0)), answer(number, 'x', scores=(score, 1 - score))]
    assert derive_ratios(RowIndex(rows), count_rows(RowIndex(rows)))['x']['largest_score_difference'] == round(1 / 3, 6)


@pytest.mark.parametrize('limit_s, within, beyond', list(zip((0, 1, 3, 10), AGE_NAMES, AGE_NAMES[1:])))
def test_an_age_at_a_classs_end_is_within_it(limit_s, within, beyond):
    ages_s = limit_s, limit_s + 0.001
    found = [age_class(question(0, picture_s=99.0), answer(0, 'x', pictures_s=(99.0 - age_s,))) for age_s in ages_s]
    assert found == [within, beyond]


def test_an_answer_without_pictures_is_of_the_newest():
    assert age_class(question(0, picture_s=99.0), answer(0, 'x', pictures_s=())) == AGE_NAMES[0]


@seeds
def test_times_are_those_of_the_pairs(seed):
    rows = random_rows(seed)
    for arm, times in measure_times(RowIndex(rows)).items():
        pairs = paired(rows, arm)
        own, cold = (np.array([each[side]['times']['total_ms'] for each in pairs]) for side in (1, 2))
        stages = {name: [row['times'][name] for _, row, _ in pairs] for name in STAGES}
        assert times['pairs'] == len(pairs)
        assert (times['median_ms'], times['cold_median_ms']) == (np.median(own), np.median(cold))
        assert times['p95_ms'] == np.percentile(own, 95)
        assert times['remembered'] == sum(row['remembered'] for _, row, _ in pairs)
        warm = [row['times']['total_ms'] for _, row, _ in pairs if is_warm(row)]
        assert times['warm'] == len(warm) and times['warm_median_ms'] == (np.median(warm) if warm else None)
        assert (times['answers_ms'], times['cold_answers_ms']) == (own.sum(), cold.sum())
        assert times['speedup'] == np.median(cold) / np.median(own)
        assert (times['speedup_low'], times['speedup_high']) == ratio_bounds(list(cold), list(own))
        assert times['stages_median_ms'] == {name: np.median(values) for name, values in stages.items()}
        assert times['stages_ms'] == {name: sum(values) for name, values in stages.items()}


@pytest.mark.parametrize('more', [{'visual_tokens_computed': 12}, {'visual_tokens_computed': 0, 'remembered': True}])
def test_without_an_answer_that_was_computed_and_waited_for_nothing_there_are_no_sessions(more):
    rows = [question(0), answer(0, 'cold'), answer(0, 'x') | more, picture('x', 12)]
    assert measure_times(RowIndex(rows))['x']['sessions'] == []


def test_an_arm_without_pairs_has_no_times():
    assert measure_times(RowIndex([question(0), answer(0, 'x')]))['x'] == {'pairs': 0}


@seeds
def test_a_session_of_many_questions_hides_what_its_picture_cost(seed):
    rows = random_rows(seed)
    times = measure_times(RowIndex(rows))
    whole = [row for row in rows if row['row'] == 'picture' and row['level'] in ('full', 'frame')]
    default, setup_ms = times['auto'], np.median([sum(list(row['times'].values())[:3]) for row in whole])
    warm = [row for _, row, _ in paired(rows, 'auto') if is_warm(row)]
    warm_ms = np.median([row['times']['total_ms'] for row in warm])
    assert times['x']['sessions'] == []
    for each in default['sessions']:
        assert each['setup_ms'] == setup_ms
        # n questions take n medians and the set-up; cold-dense takes n of its own medians.
        spent_ms = setup_ms + each['questions'] * warm_ms
        assert each['speedup'] * spent_ms == pytest.approx(each['questions'] * default['cold_median_ms'])
    asked, speedups = zip(*((each['questions'], each['speedup']) for each in default['sessions']))
    assert asked[0] == 1 and list(asked) == sorted(set(asked)) and list(speedups) == sorted(speedups)


def pair_of(row=(), cold=(), choice_tokens=0):
    """A question, a cold answer of 65 ms and another arm's of 40 ms that computed as much."""
    rows = [question(0) | {'choice_tokens': choice_tokens}]
    for arm, total_ms, changes in (('cold', 65.0, dict(cold)), ('x', 40.0, dict(row))):
        times = {
            'total_ms': total_ms,
            **STAGES,
            'vision_ms': 10.0,
            'prefill_ms': 20.0,
            'decode_ms': 30.0,
            'work_ms': 60.0,
        }
        tokens = {'visual_tokens_computed': 12, 'tokens_prefilled': 50, 'tokens_generated': 8, 'times': times}
        rows.append(answer(0, arm) | tokens | changes)
    return rows


def ceiling_of(*pairs):
    rows = [row | {'question': number} for number, pair in enumerate(pairs) for row in pair]
    return measure_times(RowIndex(rows))['x']['ceiling']


@pytest.mark.parametrize(
    'row, choice_tokens, stages_ms',
    [
        ({}, 0, (10, 20, 30)),
        ({'visual_tokens_computed': 24}, 0, (10 * 2, 20, 30)),
        ({'visual_tokens_computed': 3}, 0, (10 / 4, 20, 30)),
        ({'visual_tokens_computed': 0, 'tokens_prefilled': 10}, 0, (0, 20 / 5, 30)),
        ({'tokens_prefilled': 30}, 10, (10, 20 / 2, 30)),  # those of the choices are scored, not prefilled
        ({'tokens_generated': 4}, 0, (10, 20, 30 / 2)),
        ({'tokens_generated': 0}, 0, (10, 20, 30)),
        ({'remembered': True, 'visual_tokens_computed': 0, 'tokens_prefilled': 0}, 10, (0, 0, 0)),
    ],
)
def test_the_ceiling_is_what_each_stage_costs_cold_dense_in_proportion_to_its_own_tokens(row, choice_tokens, stages_ms):
    ceiling = ceiling_of(pair_of(row, choice_tokens=choice_tokens))
    assert ceiling['predicted_ms'] == pytest.approx(sum(stages_ms))
    assert ceiling['residual_ms'] == pytest.approx(40 - sum(stages_ms))
    assert ceiling['measured_ms'] == 40 and ceiling['measured_speedup'] == 65 / 40
    assert ceiling['predicted_speedup'] == (pytest.approx(65 / sum(stages_ms)) if sum(stages_ms) else None)


def test_the_ceiling_of_several_answers_is_that_of_each_together():
    few, all_of_them = pair_of({'visual_tokens_computed': 3}), pair_of()
    alone = [ceiling_of(pair) for pair in (few, all_of_them)]
    together = ceiling_of(few, all_of_them)
    for name in ('predicted_ms', 'measured_ms', 'residual_ms'):
        assert together[name] == pytest.approx(sum(each[name] for each in alone))
    assert together['predicted_speedup'] == pytest.approx(2 * 65 / together['predicted_ms'])
    assert together['measured_speedup'] == 65 / 40


def test_a_ceiling_needs_to_know_what_was_computed_and_something_that_takes_time():
    assert ceiling_of(pair_of({'visual_tokens_computed': None}), pair_of()) is None
    # Nothing was seen and nothing generated by cold-dense either.
    nothing = {'visual_tokens_computed': 0, 'tokens_generated': 0}
    assert ceiling_of(pair_of(nothing, nothing))['predicted_ms'] == 20 + 30
    one = {'visual_tokens_computed': 1}
    assert ceiling_of(pair_of(one, one))['predicted_ms'] == 10 + 20 + 30
    quick = {'times': {'total_ms': 65.0, **STAGES, 'decode_ms': 0.5, 'work_ms': 0.5}}
    assert ceiling_of(pair_of(cold=quick))['predicted_speedup'] == 65 / 0.5
    idle = {'times': {'total_ms': 65.0, **STAGES, 'decode_ms': 0.0, 'work_ms': 0.0}}
    assert ceiling_of(pair_of(cold=idle))['predicted_speedup'] is None


def results_of(rows, model='m'):
    sorted_rows = RowIndex(rows)
    return {
        'settings': {'model': model, 'config': {'seed': 0}},
        'counts': count_rows(sorted_rows),
        'bags': [{'bag': 'a', 'frames_digest': 'd'}],
        'questions': sorted_rows.questions,
        'answers': sorted_rows.answers,
    }


def test_a_run_compared_with_itself_has_not_changed():
    found = compare(results_of(some_rows()), results_of(some_rows()))
    assert found['settings'] == [] and found['other_pictures'] == [] and found['questions_in_common'] == 6
    assert all(arm['changed'] == 0 and not arm['is_significant'] for arm in found['arms'].values())
    assert found['times']['auto']['ratio'] == 1.0 and not found['times']['auto']['is_significant']
    assert found['times']['cold'] is None  # it is what times are compared with


def test_a_change_is_significant_only_when_chance_would_hardly_do_it():
    few = compare(results_of(some_rows(drifted=0, questions=20)), results_of(some_rows(drifted=3, questions=20), 'n'))
    many = compare(results_of(some_rows(drifted=0, questions=20)), results_of(some_rows(drifted=9, questions=20)))
    assert few['settings'] == [{'name': 'model', 'old': 'm', 'new': 'n'}]
    assert (few['arms']['auto']['lost'], few['arms']['auto']['is_significant']) == (3, False)
    assert (many['arms']['auto']['lost'], many['arms']['auto']['is_significant']) == (9, True)
    assert many['arms']['cold']['changed'] == 0


def test_a_slower_arm_is_told():
    slow = [
        row | {'times': row['times'] | {'total_ms': 2 * row['times']['total_ms']}}
        if row.get('arm') == 'auto' and row['row'] == 'answer'
        else row
        for row in some_rows()
    ]
    times = compare(results_of(some_rows()), results_of(slow))['times']
    assert times['auto']['ratio'] == pytest.approx(2.0) and times['auto']['is_significant']


def with_times(rows, change):
    """The rows with the times of each answer changed."""
    return [row | {'times': row['times'] | change(row)} if row['row'] == 'answer' else row for row in rows]


@given(factor=st.floats(0.01, 100))
@settings(max_examples=10)
def test_a_slower_machine_is_no_difference_between_two_runs(factor):
    slower = with_times(some_rows(), lambda row: {'total_ms': factor * row['times']['total_ms']})
    times = compare(results_of(some_rows()), results_of(slower))['times']['auto']
    assert times['ratio'] == pytest.approx(1.0) and not times['low'] > 1.001 and not times['high'] < 0.999


def test_times_of_two_sessions_are_in_no_ratio():
    resumed = with_times(some_rows(), lambda row: {'session': 1 + (row['arm'] == 'auto' and row['question'] < 3)})
    assert compare(results_of(some_rows()), results_of(resumed))['times']['auto'] is None  # three pairs are too few
    later = with_times(some_rows(questions=9), lambda row: {'session': 1 + (row['question'] < 3)})
    slow = with_times(later, lambda row: {'total_ms': 1000.0 * row['times']['total_ms']} if row['question'] < 3 else {})
    rows = RowIndex(slow)
    sessions = choose_sessions(rows)
    assert sessions == {'a': {'sessions': 2, 'timed': 1, 'questions': 6, 'of': 9}}
    times = measure_times(timed_rows(rows, sessions))
    assert times['auto']['pairs'] == 6 and times['cold']['median_ms'] < 100 and session_lines(sessions)
    assert session_lines(choose_sessions(RowIndex(some_rows()))) == []


@given(ratio=st.floats(0.5, 2), pairs=st.integers(1, 20))
@settings(max_examples=20)
def test_the_timing_floor_is_the_ratio_of_two_measurements_of_the_same(ratio, pairs):
    rows = [question(number) for number in range(pairs)]
    for number in range(pairs):
        rows += [
            answer(number, 'cold', total_ms=ratio * (5 + number)),
            answer(number, 'cold-again', total_ms=5 + number),
        ]
    floor = timing_floor(RowIndex(rows))
    assert floor['pairs'] == pairs and floor['slower'] in (0, pairs)
    assert [floor[name] for name in ('low', 'ratio', 'high')] == pytest.approx([ratio] * 3)
    assert timing_floor(RowIndex(some_rows())) is None
