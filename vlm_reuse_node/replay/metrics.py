"""Count, then derive: what the rows of a replay add up to. No files, no model.

`count` gives additive counts of each arm, `derive` ratios of them with their bounds, `time` everything that is timed.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from statistics import median

import numpy as np

from vlm_reuse_node.replay.arms import POLICY, REFERENCE
from vlm_reuse_node.replay.bounds import mcnemar_p, ratio_bounds, share_bounds
from vlm_reuse_node.replay.rows import differs, is_pair

SESSIONS = 1, 2, 5, 10, 50  # questions on one picture
WHOLE = 'frame', 'full'  # levels that compute the whole picture
STAGES = 'change_ms', 'vision_ms', 'prefill_ms', 'decode_ms', 'other_ms'
# Upper ends of the classes of how old a kept state's picture is when it is asked, seconds.
AGES = (
    (0.0, 'the newest picture'),
    (1.0, 'up to 1 s older'),
    (3.0, '1 to 3 s older'),
    (10.0, '3 to 10 s older'),
    (float('inf'), 'more than 10 s older'),
)
PAIR_COUNTS = (
    'pairs',
    'drifted',
    'choice_pairs',
    'choice_drifted',
    'text_pairs',
    'text_drifted',
    'judged_pairs',
    'lost',
    'gained',
    'same_pictures',
    'same_pictures_drifted',
)


class Rows:
    """The rows of all bags, by what they are about; each has the name of its bag."""

    def __init__(self, rows: Iterable[dict]):
        """Sort them."""
        kinds = defaultdict(list)
        for row in rows:
            kinds[row['row']].append(row)
        self.questions, self.pictures, self.bags = kinds['question'], kinds['picture'], kinds['bag']
        self.answers = kinds['answer']
        self.question_of = {_key(row): row for row in self.questions}
        self.of: dict[str, dict] = defaultdict(dict)
        for row in self.answers:
            self.of[row['arm']][_key(row)] = row

    @property
    def arms(self) -> list[str]:
        """Arms that answered anything, in the order of the table."""
        return list(self.of)

    def pairs(self, arm: str, reference: str = REFERENCE) -> list[tuple[dict, dict, dict]]:
        """Question, answer and the reference's answer, where both are answers."""
        there = ((self.question_of[key], row, self.of[reference].get(key)) for key, row in self.of[arm].items())
        return [each for each in there if each[2] and is_pair(each[1], each[2])]

    def looks(self, arm: str) -> list[dict]:
        """What the pictures cost an arm that looks at them."""
        return [row for row in self.pictures if row['arm'] == arm]


# --- counts -----------------------------------------------------------------------------------------------------------


def count(rows: Rows) -> dict[str, dict]:
    """Additive counts of each arm: runs over other bags can be added to them."""
    return {
        arm: _answer_counts(rows.of[arm].values())
        | _pair_counts(rows.pairs(arm))
        | {
            'against_cached': _pair_counts(rows.pairs(arm, 'cold-cached')) if _is_checked(rows, arm) else None,
            'by_kind': _grouped(rows.pairs(arm), lambda question, *_: question['kind']),
            'by_age': _grouped(rows.pairs(arm), lambda question, row, _: age_class(question, row)),
            'looks': _look_counts(rows.looks(arm), rows.of[arm].values()),
        }
        for arm in rows.arms
    }


def age_class(question: dict, row: dict) -> str:
    """How much older the newest picture in an answer's prompt is than the one that was there to be seen."""
    age_s = question['picture_s'] - max(row['pictures_s'], default=question['picture_s'])
    return next(name for most, name in AGES if age_s <= most)


def _is_checked(rows, arm):
    return arm == POLICY and 'cold-cached' in rows.of


def _answer_counts(answers) -> dict:
    answers = list(answers)
    counts = {
        name: sum(row[name] for row in answers)
        for name in (
            'escalated',
            'parse_failure',
            'degenerate',
            'cut',
            'tokens_reused',
            'tokens_prefilled',
            'tokens_generated',
        )
    }
    told = [row['visual_tokens_computed'] for row in answers]
    return {
        'asked': len(answers),
        'statuses': dict(sorted(Counter(row['status'] for row in answers).items())),
        'judged': sum(row['right'] is not None for row in answers),
        'right': sum(row['right'] is True for row in answers),
        **counts,
        'visual_tokens_computed': None if None in told else sum(told),
    }


def _pair_counts(pairs) -> dict:
    """Drift: of all, of those with choices, of free text; of correctness; and where the pictures were the same."""
    counts = Counter()
    for _, row, reference in pairs:
        drifted, kind = differs(row, reference), 'choice' if reference['choice'] >= 0 else 'text'
        counts.update({'pairs': 1, 'drifted': drifted, f'{kind}_pairs': 1, f'{kind}_drifted': drifted})
        if row['right'] is not None and reference['right'] is not None:
            counts.update(
                {
                    'judged_pairs': 1,
                    'lost': reference['right'] and not row['right'],
                    'gained': row['right'] and not reference['right'],
                }
            )
        # An arm that does not tell what it computed does not know which picture it answers from either.
        if row['visual_tokens_computed'] is not None and row['pictures_s'] == reference['pictures_s']:
            counts.update({'same_pictures': 1, 'same_pictures_drifted': drifted})
    return {name: int(counts[name]) for name in PAIR_COUNTS}


def _grouped(pairs, key) -> dict[str, dict]:
    groups = defaultdict(list)
    for each in pairs:
        groups[key(*each)].append(each)
    return {name: _pair_counts(groups[name]) for name in sorted(groups)}


def _look_counts(looks, answers) -> dict | None:
    """Each picture once; what a rollover, or an answer that was given again after a refresh, computed is paid too."""
    if not looks:
        return None
    first = {(row['bag'], row['camera'], row['picture_s']): row for row in reversed(looks)}.values()
    paid = sum(row['visual_tokens_refreshed'] for row in looks)
    paid += sum(row['visual_tokens_computed'] or 0 for row in answers)
    return {
        'pictures': len(first),
        'levels': dict(sorted(Counter(row['level'] for row in first).items())),
        'visual_tokens': sum(row['visual_tokens'] for row in first),
        'visual_tokens_refreshed': paid,
        'visual_tokens_deferred': sum(row['visual_tokens_deferred'] for row in first),
        'held_bytes_most': max(row['held_bytes'] for row in looks),
    }


# --- ratios -----------------------------------------------------------------------------------------------------------


def derive(rows: Rows, counts: dict[str, dict]) -> dict[str, dict]:
    """Ratios of the counts; None where there is nothing to divide by."""
    return {
        arm: _ratios(arm_counts)
        | {
            'against_cached': arm_counts['against_cached'] and _drift(arm_counts['against_cached']),
            'largest_score_difference': _largest_score_difference(rows.pairs(arm)),
        }
        for arm, arm_counts in counts.items()
    }


def _ratios(counts) -> dict:
    looks = counts['looks'] or {'visual_tokens': 0, 'visual_tokens_refreshed': 0, 'pictures': 0}
    paid = _share(looks['visual_tokens_refreshed'], looks['visual_tokens'])
    return {
        **_drift(counts),
        'right': _share(counts['right'], counts['judged']),
        'paid': paid,
        # Published: 1 + (N - 1)(1 - r_reuse), how many pictures' worth was computed of N.
        'effective_pictures': None if paid is None else round(1 + (looks['pictures'] - 1) * paid, 6),
    }


def _drift(counts) -> dict:
    ratios = {}
    for name, drifted, of in (
        ('drift', 'drifted', 'pairs'),
        ('choice_drift', 'choice_drifted', 'choice_pairs'),
        ('text_drift', 'text_drifted', 'text_pairs'),
        ('same_pictures_drift', 'same_pictures_drifted', 'same_pictures'),
    ):
        low, high = share_bounds(counts[drifted], counts[of])
        ratios[name] = {'share': _share(counts[drifted], counts[of]), 'low': low, 'high': high, 'n': counts[of]}
    changed = counts['lost'] + counts['gained']
    low, high = share_bounds(changed, counts['judged_pairs'])
    ratios['correctness_drift'] = {
        'share': _share(changed, counts['judged_pairs']),
        'low': low,
        'high': high,
        'n': counts['judged_pairs'],
        'mcnemar_p': mcnemar_p(counts['lost'], counts['gained']),
    }
    return ratios


def _share(part, total):
    return round(part / total, 6) if total else None


def _largest_score_difference(pairs):
    """Of any choice's probability, where both arms had the same pictures; None without such a pair."""
    differences = [
        abs(np.subtract(row['choice_scores'], reference['choice_scores'])).max()
        for _, row, reference in pairs
        if row['pictures_s'] == reference['pictures_s']
        and reference['choice_scores']
        and len(row['choice_scores']) == len(reference['choice_scores'])
    ]
    return round(float(max(differences)), 6) if differences else None


# --- times ------------------------------------------------------------------------------------------------------------


def time(rows: Rows) -> dict[str, dict]:
    """Latency of each arm with what it is compared with, stage by stage, and sessions of several questions."""
    return {arm: _arm_times(rows, arm) for arm in rows.arms}


def _arm_times(rows, arm) -> dict:
    pairs = rows.pairs(arm)
    own = [row['times']['total_ms'] for _, row, _ in pairs]
    cold = [reference['times']['total_ms'] for _, _, reference in pairs]
    if not own:
        return {'pairs': 0}
    low, high = ratio_bounds(cold, own)
    keep_up_ms = sum(sum(row['times'][stage] for stage in STAGES[:3]) for row in rows.looks(arm))
    times = {
        'pairs': len(own),
        'median_ms': median(own),
        'p95_ms': float(np.percentile(own, 95)),
        'cold_median_ms': median(cold),
        'speedup': median(cold) / median(own),
        'speedup_low': low,
        'speedup_high': high,
        'answers_ms': sum(own),
        'keep_up_ms': keep_up_ms,
        'cold_answers_ms': sum(cold),
        'whole_speedup': sum(cold) / (sum(own) + keep_up_ms),
        'stages_median_ms': {stage: median(row['times'][stage] for _, row, _ in pairs) for stage in STAGES},
        'stages_ms': {stage: sum(row['times'][stage] for _, row, _ in pairs) for stage in STAGES},
    }
    return times | {'ceiling': _ceiling(pairs), 'sessions': _sessions(rows, arm, times)}


def _ceiling(pairs) -> dict | None:
    """What the arm's answers would take if each stage cost what it does in cold-dense, in proportion to its tokens.

    Vision goes by visual tokens, prefill by prompt tokens, decode by generated tokens. residual_ms: what the answers
    take beyond that, together: the price of keeping the state, or of smaller calls.
    """
    if any(row['visual_tokens_computed'] is None for _, row, _ in pairs):
        return None
    predicted = 0.0
    for question, row, reference in pairs:
        stage, ends = reference['times'], question['choice_tokens']
        predicted += stage['vision_ms'] * row['visual_tokens_computed'] / max(1, reference['visual_tokens_computed'])
        predicted += stage['prefill_ms'] * (row['tokens_prefilled'] - ends) / (reference['tokens_prefilled'] - ends)
        both = row['tokens_generated'] and reference['tokens_generated']
        predicted += stage['decode_ms'] * (row['tokens_generated'] / reference['tokens_generated'] if both else 1.0)
    cold = sum(reference['times']['total_ms'] for *_, reference in pairs)
    own = sum(row['times']['total_ms'] for _, row, _ in pairs)
    return {
        'predicted_ms': predicted,
        'measured_ms': own,
        'residual_ms': own - predicted,
        'predicted_speedup': cold / predicted if predicted > 0 else None,
        'measured_speedup': cold / own,
    }


def _sessions(rows, arm, times) -> list[dict]:
    """Setup-inclusive: n questions on one picture that is new, from medians; setup is a whole picture's refresh."""
    setups = [sum(row['times'][stage] for stage in STAGES[:3]) for row in rows.looks(arm) if row['level'] in WHOLE]
    if not setups:
        return []
    setup_ms = median(setups)
    return [
        {
            'questions': number,
            'setup_ms': setup_ms,
            'speedup': number * times['cold_median_ms'] / (setup_ms + number * times['median_ms']),
        }
        for number in SESSIONS
    ]


def _key(row):
    return row['bag'], row['camera'], row['question']
