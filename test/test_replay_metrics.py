"""Counts add up, bounds are the exact ones, and no share is written as nothing or all unless it is."""

import numpy as np
import pytest

from vlm_reuse_node.replay.bounds import mcnemar_p, ratio_bounds, share_bounds
from vlm_reuse_node.replay.compare import compare
from vlm_reuse_node.replay.counts import PAIR_COUNTS, age_class, count_rows
from vlm_reuse_node.replay.figures import counted, factor, percent, share_text
from vlm_reuse_node.replay.ratios import derive_ratios
from vlm_reuse_node.replay.row_index import RowIndex
from vlm_reuse_node.replay.times import measure_times

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
        'escalated': False,
        'pictures_s': list(pictures_s),
        'visual_tokens_computed': 0 if arm == 'default' else 12,
        'tokens_reused': 1,
        'tokens_prefilled': 20,
        'tokens_generated': 1,
        'times': {'total_ms': total_ms, **STAGES, 'decode_ms': total_ms},
    }


def picture(arm, refreshed, level='frame', bag='a'):
    return {
        'row': 'picture',
        'bag': bag,
        'camera': 'camera',
        'arm': arm,
        'picture_s': 0.0,
        'level': level,
        'visual_tokens': 12,
        'visual_tokens_refreshed': refreshed,
        'visual_tokens_deferred': 0,
        'held_bytes': 5,
        'times': {'change_ms': 1.0, 'vision_ms': 2.0, 'prefill_ms': 3.0},
    }


def some_rows(bag='a', drifted=2, questions=6):
    """Rows of cold and default, of which some drifted to a wrong answer."""
    rows = [question(number, bag) for number in range(questions)]
    for number in range(questions):
        rows.append(answer(number, 'cold', bag=bag, total_ms=10.0 + number))
        rows.append(answer(number, 'default', 'blue' if number < drifted else 'red', bag=bag, total_ms=2.0))
    return [*rows, picture('default', 12, 'full', bag), picture('default', 0, 'reuse', bag) | {'picture_s': 1.0}]


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


def test_the_speedup_has_an_interval_that_is_the_same_every_time():
    times = np.random.default_rng(1).uniform(1, 2, 40)
    low, high = ratio_bounds(10 * times, times)
    assert low < 10 < high or low == pytest.approx(10) == high
    assert ratio_bounds(10 * times, times) == (low, high)
    assert ratio_bounds([1.0], [1.0]) == (None, None)


def test_counts_of_two_bags_add_up():
    apart = [count_rows(RowIndex(some_rows(bag, drifted)))['default'] for bag, drifted in (('a', 2), ('b', 1))]
    together = count_rows(RowIndex(some_rows('a', 2) + some_rows('b', 1)))['default']
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
    looks = [picture('x', 3, 'patch'), picture('x', 12, 'full'), picture('x', 0, 'reuse') | {'picture_s': 1.0}]
    counts = count_rows(RowIndex([question(0), answer(0, 'x') | {'visual_tokens_computed': 6}, *looks]))['x']['looks']
    assert (counts['pictures'], counts['visual_tokens'], counts['visual_tokens_refreshed']) == (2, 24, 21)
    assert counts['levels'] == {'patch': 1, 'reuse': 1}


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
    times = measure_times(RowIndex(some_rows()))['default']
    assert times['speedup'] == 12.5 / 2.0 and times['keep_up_ms'] == 12.0
    assert times['whole_speedup'] == 75.0 / (12.0 + 12.0)
    assert times['sessions'][0] == {'questions': 1, 'setup_ms': 6.0, 'speedup': 12.5 / 8.0}
    # As many tokens as cold-dense computed: the prediction is cold-dense, the residual what is missing to it.
    assert times['ceiling']['predicted_ms'] == 75.0 and times['ceiling']['residual_ms'] == -63.0


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
    assert all(times['ratio'] == 1.0 and not times['is_significant'] for times in found['times'].values())


def test_a_change_is_significant_only_when_chance_would_hardly_do_it():
    few = compare(results_of(some_rows(drifted=0, questions=20)), results_of(some_rows(drifted=3, questions=20), 'n'))
    many = compare(results_of(some_rows(drifted=0, questions=20)), results_of(some_rows(drifted=9, questions=20)))
    assert few['settings'] == [{'name': 'model', 'old': 'm', 'new': 'n'}]
    assert (few['arms']['default']['lost'], few['arms']['default']['is_significant']) == (3, False)
    assert (many['arms']['default']['lost'], many['arms']['default']['is_significant']) == (9, True)
    assert many['arms']['cold']['changed'] == 0


def test_a_slower_arm_is_told():
    slow = [
        row | {'times': row['times'] | {'total_ms': 2 * row['times']['total_ms']}}
        if row.get('arm') == 'default' and row['row'] == 'answer'
        else row
        for row in some_rows()
    ]
    times = compare(results_of(some_rows()), results_of(slow))['times']
    assert times['default']['ratio'] == pytest.approx(2.0) and times['default']['is_significant']
    assert not times['cold']['is_significant']
