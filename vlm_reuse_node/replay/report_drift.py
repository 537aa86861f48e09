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

"""The report's part on drift: whether reuse is exact, and the answers that drifted, with their pictures."""

from base64 import b64encode
from pathlib import Path
from statistics import median
from textwrap import shorten

from vlm_reuse_node.replay.arms import ARMS, PEERS, POLICY
from vlm_reuse_node.replay.figures import NO_VALUE, counted, milliseconds, span_text
from vlm_reuse_node.replay.negatives import EXACT
from vlm_reuse_node.replay.row_index import AnswerPair, RowIndex
from vlm_reuse_node.replay.rows import differs

MOST_DRIFTED = 24
LONGEST_ANSWER = 120  # characters
# Arms that keep a state.
KEEPING = tuple(arm.name for arm in ARMS.values() if arm.keeps_state)


def exactness_lines(results: dict) -> list[str]:
    """Return what the noise floor and the cached pictures say about exactness."""
    lines = []
    counts = results['counts']
    ratios = results['ratios']
    if 'cold-again' in counts:
        floor = counts['cold-again']
        lines.append(
            f'Noise floor: asked again, cold-dense differs in {counted(floor["drifted"], floor["pairs"])} answers, '
            f'{_score_text(ratios["cold-again"])}.'
        )
    if against := counts[POLICY]['against_cached']:
        drift = ratios[POLICY]['against_cached']['drift']
        lines.append(
            f'Exactness: auto differs from cold-dense on the very pictures it has cached in '
            f'{counted(against["drifted"], against["pairs"])} exact answers; with 95 % confidence the share is '
            f'{span_text(drift["low"], drift["high"])}.'
        )
    for arm in EXACT:
        if arm in counts and counts[arm]['same_pictures']:
            same = counts[arm]
            lines.append(
                f'{arm}: on the same pictures as cold-dense it differs in '
                f'{counted(same["same_pictures_drifted"], same["same_pictures"])} exact answers, '
                f'{_score_text(ratios[arm])}.'
            )
    return lines


def peer_lines(rows: RowIndex) -> list[str]:
    """Return a line for each of mlx-vlm's caches: they keep more where the same question is asked again."""
    lines = []
    for arm in PEERS:
        last: dict[tuple[str, str], str] = {}
        sorted_pairs: dict[bool, list[AnswerPair]] = {True: [], False: []}
        for pair in rows.pairs(arm):
            camera, text = (pair.answer['bag'], pair.answer['camera']), pair.question['text']
            sorted_pairs[last.get(camera) == text].append(pair)
            last[camera] = text
        told = [
            f'{len(pairs)} after {"the same" if is_same else "another"} question in {milliseconds(_median_ms(pairs))} '
            f'(median), of which {sum(differs(pair.answer, pair.reference) for pair in pairs)} differ from cold-dense'
            for is_same, pairs in sorted_pairs.items()
            if pairs
        ]
        if told:
            lines.append(f'{arm}: {"; ".join(told)}.')
    return lines


def _median_ms(pairs: list[AnswerPair]) -> float:
    return median(pair.answer['times']['total_ms'] for pair in pairs)


def drift_view(rows: RowIndex, folders: dict[str, Path]) -> dict:
    """Return the first drifted answers of arms that keep a state, those with pictures first; and how many there are.

    folders: of the bags, by name.
    """
    pairs = [pair for arm in KEEPING for pair in rows.pairs(arm) if differs(pair.answer, pair.reference)]
    answers = sorted((_answer_view(pair, folders) for pair in pairs), key=lambda view: not view['pictures'])
    return {'answers': answers[:MOST_DRIFTED], 'total': len(pairs)}


def _answer_view(pair: AnswerPair, folders: dict[str, Path]) -> dict:
    question, answer, reference = pair
    stem = folders[answer['bag']] / 'pictures' / f'{answer["question"]:04d}.{answer["arm"]}'
    files = [stem.with_name(f'{stem.name}.{name}.jpg') for name in ('newest', 'cached')]
    return {
        'arm': answer['arm'],
        'question': question['text'],
        'choices': ' / '.join(question['choices']),
        'at': f'{question["at_s"]:.1f} s, {question["kind"]}',
        'truth': question['truth'] or NO_VALUE,
        'cold': shortened(reference['text']),
        'own': shortened(answer['text']),
        'level': answer['level'],
        'newest_s': f'{reference["pictures_s"][-1]:.2f} s',
        'cached_s': f'{answer["pictures_s"][-1]:.2f} s',
        'pictures': [picture_uri(file) for file in files] if all(file.exists() for file in files) else [],
    }


def _score_text(ratios: dict) -> str:
    largest = ratios['largest_score_difference']
    if largest is None:
        return 'and has no choices to compare'
    if not largest:
        return "and the choices' probabilities are the same"
    return f"and the choices' probabilities by at most {largest:.2g}"


def shortened(text: str) -> str:
    """Return an answer as long as the page has room for."""
    return shorten(text, LONGEST_ANSWER, placeholder=' …')


def picture_uri(file: Path) -> str:
    """Return a JPEG file as part of the page."""
    return f'data:image/jpeg;base64,{b64encode(file.read_bytes()).decode()}'
