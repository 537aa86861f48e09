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

from collections.abc import Iterator, Sequence

from vlm_reuse_node.replay import plots
from vlm_reuse_node.replay.arms import POLICY, REFERENCE
from vlm_reuse_node.replay.counts import AGES
from vlm_reuse_node.replay.figures import NO_VALUE, factor, milliseconds
from vlm_reuse_node.replay.report_drift import KEEPING
from vlm_reuse_node.replay.row_index import RowIndex
from vlm_reuse_node.replay.time_plot import LEVEL_COLOURS, over_time
from vlm_reuse_node.replay.times import SESSIONS, STAGES
from vlm_reuse_node.replay.verdict import DENOMINATOR

MOST_CAMERAS = 6
# Arms without a mark in the plots of drift: as exact, or as approximate, as those that do less work.
EAGER = ('eager', 'eager-patch')


Rows = list[list[str]]


def plot_views(results: dict, rows: RowIndex, timed: RowIndex) -> list[dict]:
    """Return title, SVG, caption and figures of every plot for which there is something to draw.

    timed: the rows whose times may be compared.
    """
    times = {arm: each for arm, each in results['times']['arms'].items() if each['pairs']}
    views = [*_latency(timed, times), *_over_time(results, rows), *_drift(results, rows), *_stages(times)]
    return [*views, *_sessions(times), *_memory(rows)]


def _view(title: str, svg: str, caption: str, columns: Sequence[str], figures: Rows) -> dict:
    return {'title': title, 'svg': svg, 'caption': caption, 'columns': columns, 'rows': figures}


def _latency(timed: RowIndex, times: dict[str, dict]) -> Iterator[dict]:
    if times:
        title = 'How long an answer takes'
        own = {arm: [pair.answer['times']['total_ms'] for pair in timed.pairs(arm)] for arm in times}
        yield _view(
            title,
            plots.latency(own, title),
            'Each dot is an answer, a remembered one too. The axis is logarithmic.',
            ('arm', 'answers', 'median ms', '95 % below, ms'),
            [
                [arm, f'{each["pairs"]}', milliseconds(each['median_ms']), milliseconds(each['p95_ms'])]
                for arm, each in times.items()
            ],
        )


def _over_time(results: dict, rows: RowIndex) -> Iterator[dict]:
    cameras = list(dict.fromkeys((row['bag'], row['camera']) for row in rows.looks(POLICY)))
    for bag, camera in cameras[:MOST_CAMERAS]:
        title = 'What was paid for, over time' + ('' if len(cameras) == 1 else f': {bag}, {camera}')
        yield _view(
            title,
            over_time(rows, bag, camera, title),
            f'Arm {POLICY}; what was computed for questions and as upkeep. The line is the refresh ratio so far: the '
            f'share of all visual tokens that was computed. In effect 1 + (N - 1) times that ratio pictures were '
            f'computed: {results["ratios"][POLICY]["effective_pictures"]:.1f} of N = '
            f'{results["counts"][POLICY]["looks"]["pictures"]}, all bags together.',
            ('level', 'pictures', 'visual tokens computed', 'of'),
            _level_rows([row for row in rows.seen(POLICY) if (row['bag'], row['camera']) == (bag, camera)]),
        )


def _level_rows(seen: list[dict]) -> Rows:
    """Pictures and tokens by level."""
    found = []
    for level in LEVEL_COLOURS:
        own = [row for row in seen if row['level'] == level]
        tokens = [sum(row[name] for row in own) for name in ('visual_tokens_refreshed', 'visual_tokens')]
        found.append([level, f'{len(own):,}', *(f'{count:,}' for count in tokens)])
    return found


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
            title = f'Drift by {what}'
            figures = [[group, *(_drifted(counts.get(group)) for counts in groups.values())] for group in present]
            svg = plots.drift(groups, key, present, title)
            yield _view(title, svg, text, ('drifted', *groups), figures)


def _drifted(counts: dict | None) -> str:
    return f'{counts["drifted"]} of {counts["pairs"]}' if counts and counts['pairs'] else NO_VALUE


def _stages(times: dict[str, dict]) -> Iterator[dict]:
    if times:
        title = 'Where the time goes'
        yield _view(
            title,
            plots.stages(times, title),
            'Change detection, vision, prefill and decode of one answer. The mark across a bar is what the answer '
            'would take if every token cost as much as in cold-dense.',
            ('ms, mean', *(stage.removesuffix('_ms') for stage in STAGES)),
            [
                [arm, *(milliseconds(max(0.0, each['stages_ms'][stage]) / each['pairs']) for stage in STAGES)]
                for arm, each in times.items()
            ],
        )


def _sessions(times: dict[str, dict]) -> Iterator[dict]:
    keeping = {arm: each for arm, each in times.items() if each['sessions'] and arm != REFERENCE}
    if keeping:
        title = 'How many questions about one picture make it pay'
        yield _view(
            title,
            plots.sessions(keeping, title),
            'Setup-inclusive: one picture is computed and asked about n times, against n cold-dense answers; from '
            'medians, of the answers that were computed and waited for no refresh. In brackets: with '
            f'{SESSIONS[-1]} questions.',
            ('questions', *map(str, SESSIONS)),
            [[arm, *(factor(session['speedup']) for session in each['sessions'])] for arm, each in keeping.items()],
        )


def _memory(rows: RowIndex) -> Iterator[dict]:
    looks = rows.looks(POLICY)
    if looks:
        held_mb = [row['held_bytes'] / 1e6 for row in looks]
        process_mb = [row['times']['peak_process_mb'] for row in looks]
        yield _view(
            'Memory',
            plots.memory(rows, 'Memory'),
            f'Arm {POLICY}; bags one after the other.',
            ('MB', 'at first', 'most', 'at last'),
            [
                [name, *(f'{megabytes:,.1f}' for megabytes in (values[0], max(values), values[-1]))]
                for name, values in (('state of a camera', held_mb), ('process', process_mb))
            ],
        )
