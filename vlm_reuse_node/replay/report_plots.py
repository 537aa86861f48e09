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

"""The report's plots with titles and captions, in the order of the page."""

from collections.abc import Iterator

from vlm_reuse_node.replay import plots
from vlm_reuse_node.replay.arms import POLICY, REFERENCE
from vlm_reuse_node.replay.counts import AGES
from vlm_reuse_node.replay.report_drift import KEEPING
from vlm_reuse_node.replay.row_index import RowIndex
from vlm_reuse_node.replay.time_plot import over_time
from vlm_reuse_node.replay.verdict import DENOMINATOR

MOST_CAMERAS = 6
# Arms without a mark in the plots of drift: as exact, or as approximate, as those that do less work.
EAGER = ('eager', 'eager-patch')


def plot_views(results: dict, rows: RowIndex) -> list[dict]:
    """Return title, SVG and caption of every plot for which there is something to draw."""
    times = {arm: each for arm, each in results['times']['arms'].items() if each['pairs']}
    views = [*_latency(rows, list(times)), *_over_time(results, rows), *_drift(results, rows), *_stages(times)]
    return [*views, *_sessions(times), *_memory(rows)]


def _view(title: str, svg: str, caption: str) -> dict:
    return {'title': title, 'svg': svg, 'caption': caption}


def _latency(rows: RowIndex, arms: list[str]) -> Iterator[dict]:
    if arms:
        times = {arm: [pair.answer['times']['total_ms'] for pair in rows.pairs(arm)] for arm in arms}
        yield _view(
            'How long an answer takes',
            plots.latency(times),
            'Each dot is an answer, a remembered one too. The axis is logarithmic.',
        )


def _over_time(results: dict, rows: RowIndex) -> Iterator[dict]:
    cameras = list(dict.fromkeys((row['bag'], row['camera']) for row in rows.looks(POLICY)))
    for bag, camera in cameras[:MOST_CAMERAS]:
        name = '' if len(cameras) == 1 else f': {bag}, {camera}'
        yield _view(
            f'What was paid for, over time{name}',
            over_time(rows, bag, camera),
            f'Arm {POLICY}; what was computed for questions and as upkeep. The line is the refresh ratio so far: the '
            f'share of all visual tokens that was computed. In effect 1 + (N - 1) times that ratio pictures were '
            f'computed: {results["ratios"][POLICY]["effective_pictures"]:.1f} of N = '
            f'{results["counts"][POLICY]["looks"]["pictures"]}, all bags together.',
        )


def _drift(results: dict, rows: RowIndex) -> Iterator[dict]:
    keeping = {arm: results['counts'][arm] for arm in KEEPING if arm in results['counts'] and arm not in EAGER}
    caption = f'Against {DENOMINATOR}; exact 95 % intervals.'
    of_age = f'{caption} mlx-vlm does not tell which picture it answers from, so it counts as the newest.'
    kinds = sorted({row['kind'] for row in rows.questions})
    for what, key, order, text in (
        ('age of the picture behind the answer', 'by_age', [name for _, name in AGES], of_age),
        ('type of question', 'by_kind', kinds, caption),
    ):
        groups = {arm: counts[key] for arm, counts in keeping.items()}
        present = [group for group in order if any(group in counts for counts in groups.values())]
        if present:
            yield _view(f'Drift by {what}', plots.drift(groups, key, present), text)


def _stages(times: dict[str, dict]) -> Iterator[dict]:
    if times:
        yield _view(
            'Where the time goes',
            plots.stages(times),
            'Change detection, vision, prefill and decode of one answer. Black: what it would take if every token cost '
            'as much as in cold-dense.',
        )


def _sessions(times: dict[str, dict]) -> Iterator[dict]:
    keeping = {arm: each for arm, each in times.items() if each['sessions'] and arm != REFERENCE}
    if keeping:
        yield _view(
            'How many questions about one picture make it pay',
            plots.sessions(keeping),
            'Setup-inclusive: one picture is computed and asked about n times, against n cold-dense answers; from '
            'medians, of the answers that were computed and waited for no refresh.',
        )


def _memory(rows: RowIndex) -> Iterator[dict]:
    if rows.looks(POLICY):
        yield _view('Memory', plots.memory(rows), f'Arm {POLICY}; bags one after the other.')
