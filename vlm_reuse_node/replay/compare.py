"""What changed between two replays: settings, answers, correctness and speed, and whether more than chance would do."""

import numpy as np
from scipy import stats

from vlm_reuse_node.replay.bounds import CONFIDENCE, RESAMPLES, SEED, mcnemar_p, share_bounds
from vlm_reuse_node.replay.figures import counted, milliseconds, p_text, share_text
from vlm_reuse_node.replay.rows import differs, is_pair

SIGNIFICANT = 0.05
_FEWEST = 6  # pairs, below which an interval of times says nothing


def compare(old: dict, new: dict) -> dict:
    """Compare the questions that both have: the same bag, camera, moment and text, answered by the same arm."""
    before, after = _by_question(old), _by_question(new)
    arms = [arm for arm in new['counts'] if arm in old['counts']]
    pairs = {arm: [(before[key], after[key]) for key in after if key[-1] == arm and key in before] for arm in arms}
    digests = [{bag['bag']: bag['frames_digest'] for bag in results['bags']} for results in (old, new)]
    return {
        'settings': _changed(old['settings'], new['settings']),
        'other_pictures': sorted(
            name for name in digests[0].keys() & digests[1].keys() if digests[0][name] != digests[1][name]
        ),
        'questions_in_common': len({key[:-1] for key in before.keys() & after.keys()}),
        'arms': {arm: _answers(pairs[arm]) for arm in arms},
        'times': {arm: _times(pairs[arm]) for arm in arms},
    }


def comparison_lines(comparison: dict) -> list[str]:
    """The comparison for people."""
    lines = [f'Compared with the earlier run, on {comparison["questions_in_common"]} questions in common:']
    lines += [f'  {each["name"]}: {each["old"]} -> {each["new"]}' for each in comparison['settings']]
    if not comparison['settings']:
        lines.append('  the settings are the same')
    lines += [f"  bag '{name}' has other pictures now" for name in comparison['other_pictures']]
    return lines + [f'  {arm}: {arm_sentence(comparison, arm)}' for arm in comparison['arms']]


def arm_sentence(comparison: dict, arm: str) -> str:
    """What changed in one arm."""
    answers, times = comparison['arms'][arm], comparison['times'][arm]
    text = (
        f'{counted(answers["changed"], answers["pairs"])} answers changed (at most '
        f'{share_text(answers["high"])}); right ones lost: {answers["lost"]}, gained: {answers["gained"]} '
        f'({p_text(answers["mcnemar_p"], SIGNIFICANT)})'
    )
    if times is None:
        return f'{text}; too few for times'
    return (
        f'{text}; median {milliseconds(times["old_median_ms"])} -> {milliseconds(times["new_median_ms"])} ms, '
        f'paired ratio {times["ratio"]:.2f} ({times["low"]:.2f} to {times["high"]:.2f}, '
        f'{"significant" if times["is_significant"] else "not significant"})'
    )


def _by_question(results) -> dict:
    questions = {(row['bag'], row['camera'], row['question']): row for row in results['questions']}
    keyed = {}
    for row in results['answers']:
        question = questions[row['bag'], row['camera'], row['question']]
        keyed[row['bag'], row['camera'], question['at_s'], question['text'], row['arm']] = row
    return keyed


def _changed(old, new, prefix='') -> list[dict]:
    """Settings that are not the same, by name; those inside of others with a dot."""
    found = []
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            found += _changed(before, after, f'{prefix}{name}.')
        elif before != after:
            found.append({'name': f'{prefix}{name}', 'old': before, 'new': after})
    return found


def _answers(pairs) -> dict:
    pairs = [(before, after) for before, after in pairs if is_pair(after, before)]
    changed = sum(differs(after, before) for before, after in pairs)
    lost = sum(before['right'] is True and after['right'] is False for before, after in pairs)
    gained = sum(before['right'] is False and after['right'] is True for before, after in pairs)
    low, high = share_bounds(changed, len(pairs))
    p = mcnemar_p(lost, gained)
    return {
        'pairs': len(pairs),
        'changed': changed,
        'low': low,
        'high': high,
        'lost': lost,
        'gained': gained,
        'mcnemar_p': p,
        'is_significant': p < SIGNIFICANT,
    }


def _times(pairs) -> dict | None:
    """New over old time of the same question, the median over the questions with its bootstrap interval."""
    pairs = [
        (before['times']['total_ms'], after['times']['total_ms']) for before, after in pairs if is_pair(after, before)
    ]
    if len(pairs) < _FEWEST:
        return None
    old, new = np.array(pairs).T
    logs = np.log(new / old)
    interval = stats.bootstrap(
        (logs,),
        np.median,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method='percentile',
        rng=np.random.default_rng(SEED),
    ).confidence_interval
    low, high = float(np.exp(interval.low)), float(np.exp(interval.high))
    return {
        'pairs': len(pairs),
        'old_median_ms': float(np.median(old)),
        'new_median_ms': float(np.median(new)),
        'ratio': float(np.exp(np.median(logs))),
        'low': low,
        'high': high,
        'is_significant': not low <= 1.0 <= high,
    }
