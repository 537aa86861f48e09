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

"""Count: additive counts of each arm. Those of a run over other bags can be added to them."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable

from vlm_reuse_node.replay.arms import POLICY
from vlm_reuse_node.replay.row_index import AnswerPair, RowIndex
from vlm_reuse_node.replay.rows import WORK_STAGES, differs

# How much older than the newest picture the kept state's picture is: upper end in seconds, and its name.
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
    'patched_pairs',
    'patched_drifted',
)
_SUMS = (
    'escalated',
    'remembered',
    'parse_failure',
    'degenerate',
    'cut',
    'tokens_reused',
    'tokens_prefilled',
    'tokens_generated',
)


def count_rows(rows: RowIndex) -> dict[str, dict]:
    """Return the counts of each arm."""
    return {arm: _arm_counts(rows, arm) for arm in rows.arms}


def age_class(question: dict, answer: dict) -> str:
    """How much older the newest picture in an answer's prompt is than the newest picture of that moment."""
    age_s = question['picture_s'] - max(answer['pictures_s'], default=question['picture_s'])
    return next(name for most_s, name in AGES if age_s <= most_s)


def _arm_counts(rows: RowIndex, arm: str) -> dict:
    pairs = rows.pairs(arm)
    answers = list(rows.of[arm].values())
    is_checked = arm == POLICY and 'cold-cached' in rows.of
    return {
        **_answer_counts(answers),
        **_pair_counts(pairs),
        'against_cached': _pair_counts(_exact(rows.pairs(arm, 'cold-cached'))) if is_checked else None,
        'by_kind': _grouped(pairs, lambda pair: pair.question['kind']),
        'by_age': _grouped(pairs, lambda pair: age_class(pair.question, pair.answer)),
        'work': _work_counts(answers, [row for row in rows.upkeep if row['arm'] == arm]),
        'looks': _look_counts(rows.seen(arm), rows.looks(arm)),
    }


def _answer_counts(answers: list[dict]) -> dict:
    computed = [row['visual_tokens_computed'] for row in answers]
    return {
        'asked': len(answers),
        'statuses': dict(sorted(Counter(row['status'] for row in answers).items())),
        'judged': sum(row['right'] is not None for row in answers),
        'right': sum(row['right'] is True for row in answers),
        **{name: sum(row[name] for row in answers) for name in _SUMS},
        'visual_tokens_computed': None if None in computed else sum(computed),
    }


def _pair_counts(pairs: Iterable[AnswerPair]) -> dict[str, int]:
    """Drift: of all, of those with choices, of free text; of correctness; of exact answers about the same pictures."""
    counts: Counter[str] = Counter()
    for _, answer, reference in pairs:
        drifted = differs(answer, reference)
        kind = 'choice' if reference['choice'] >= 0 else 'text'
        counts.update({'pairs': 1, 'drifted': drifted, f'{kind}_pairs': 1, f'{kind}_drifted': drifted})
        if answer['right'] is not None and reference['right'] is not None:
            lost = reference['right'] and not answer['right']
            gained = answer['right'] and not reference['right']
            counts.update({'judged_pairs': 1, 'lost': lost, 'gained': gained})
        if answer['exact'] and answer['pictures_s'] == reference['pictures_s']:
            counts.update({'same_pictures': 1, 'same_pictures_drifted': drifted})
        if answer['level'] and not answer['exact'] and not answer['remembered']:
            counts.update({'patched_pairs': 1, 'patched_drifted': drifted})
    return {name: int(counts[name]) for name in PAIR_COUNTS}


def _exact(pairs: Iterable[AnswerPair]) -> list[AnswerPair]:
    """Those whose answer was said to be exact."""
    return [pair for pair in pairs if pair.answer['exact']]


def _grouped(pairs: Iterable[AnswerPair], group_of: Callable[[AnswerPair], str]) -> dict[str, dict[str, int]]:
    groups = defaultdict(list)
    for pair in pairs:
        groups[group_of(pair)].append(pair)
    return {name: _pair_counts(groups[name]) for name in sorted(groups)}


def _work_counts(answers: list[dict], upkeep: list[dict]) -> dict[str, int] | None:
    """Tokens through each stage of the model, for questions and between them; None where the arm does not tell."""
    if any(row['work'] is None for row in answers):
        return None
    counts = {name: sum(row['work'][name] for row in (*answers, *upkeep)) for name in WORK_STAGES}
    return counts | {'upkeep_tokens': sum(sum(row['work'].values()) for row in upkeep)}


def _look_counts(seen: list[dict], looks: list[dict]) -> dict | None:
    """Count each picture once, but every token computed: by a rollover, or for an answer given again, too."""
    if not seen:
        return None
    return {
        'pictures': len(seen),
        'levels': dict(sorted(Counter(row['level'] for row in seen).items())),
        'visual_tokens': sum(row['visual_tokens'] for row in seen),
        'visual_tokens_refreshed': sum(row['visual_tokens_refreshed'] for row in seen),
        'visual_tokens_stale': sum(row['visual_tokens_stale'] for row in seen),
        'held_bytes_most': max(row['held_bytes'] for row in looks),
    }
