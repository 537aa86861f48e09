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

"""One self-contained page about a run of the demo: Python computes everything, the template only places it."""

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten

from vlm_reuse_node.demo.stills import Still
from vlm_reuse_node.demo.summary import Look, Row, Summary
from vlm_reuse_node.demo.table import DENOMINATOR, NO_VALUE, TIME_MEANT, WORK_MEANT, conclusion, equality, number_cells
from vlm_reuse_node.replay.figures import factor, paid_text, seconds, share_text
from vlm_reuse_node.replay.page import render_page

TEMPLATE = Path(__file__).with_name('report.html')
LEVELS = ('OK', 'WARN', 'ERROR', 'STALE')
COLUMNS = ('Right', 'Image age, s', 'Level', 'Tokens reused', 'Tokens prefilled', 'Warm, ms', 'Cold, ms')
LONGEST_ANSWER = 100
STRIP_WIDTH, STRIP_HEIGHT = 1000, 100


@dataclass(frozen=True)
class Bar:
    """One picture in the strip, in its units: left edge, width and height."""

    x: float
    width: float
    height: float
    title: str


def render(
    summary: Summary,
    *,
    settings: Sequence[tuple[str, str]],
    stills: Sequence[Still] = (),
    video: str = '',
    diagnostics: Sequence[dict] = (),
) -> str:
    """Return the page as HTML; every text in it is escaped. video: the overlay beside the page, '' without one."""
    return render_page(
        TEMPLATE,
        conclusion=conclusion(summary),
        verdicts=_verdicts(summary),
        sentence=_sentence(summary),
        columns=COLUMNS,
        time_meant=TIME_MEANT,
        rows=[_row_view(row) for row in summary.rows],
        pairs=len(summary.pairs),
        strip=_strip(summary),
        costs=_costs(summary),
        stills=[_still_view(still) for still in stills],
        video=video,
        settings=settings,
        diagnostics=[_diagnostic_view(status) for status in diagnostics],
    )


def _verdicts(summary: Summary) -> list[dict]:
    """The figures of the first screen, each with its unit and what it is a share of."""
    return [_work_verdict(summary), _speed_verdict(summary), _answer_verdict(summary), _share_verdict(summary)]


def _work_verdict(summary: Summary) -> dict:
    if summary.work_ratio is None:
        return {'figure': 'none', 'label': 'The node has answered nothing, so there is no work to compare.'}
    totals = summary.totals
    return {
        'figure': factor(summary.work_ratio),
        'label': (
            f'the total work of cold-dense: {seconds(totals.work_ms)} against {seconds(totals.cold_ms)}; {WORK_MEANT}, '
            'refreshes and upkeep included'
        ),
    }


def _speed_verdict(summary: Summary) -> dict:
    if summary.speedup is None:
        return {'figure': 'no pair', 'label': 'No question has both a warm and a cold time.'}
    return {
        'figure': f'{summary.speedup:.1f} ×',
        'label': (
            f'as fast as {DENOMINATOR}: median {summary.warm_ms_median:.1f} ms warm, {summary.cold_ms_median:.1f} ms '
            f'cold (vision, whole prompt, answer), {len(summary.pairs)} pairs, {summary.remembered} of them '
            f'remembered; {TIME_MEANT}'
        ),
    }


def _answer_verdict(summary: Summary) -> dict:
    label = f'right, of {summary.answered} answered of {summary.questions} asked'
    if summary.judged < summary.answered:
        label += f' ({summary.judged} can be judged)'
    return {'figure': f'{summary.correct} of {summary.judged}', 'label': f'{label}; {equality(summary)}'}


def _share_verdict(summary: Summary) -> dict:
    levels = ', '.join(f'{name} {count}' for name, count in summary.refresh_levels.items()) or 'none'
    return {
        'figure': paid_text(summary.tokens_paid, summary.tokens) if summary.tokens else 'none',
        'label': (
            f'of the picture paid for: {summary.tokens_paid:,} of {summary.tokens:,} visual tokens in '
            f'{len(summary.looks)} pictures looked at ({levels})'
        ),
    }


def _sentence(summary: Summary) -> str:
    """What the figures mean, good or bad."""
    if summary.speedup is None or summary.work_ratio is None:
        return 'Nothing can be compared.'
    if summary.work_ratio > 1:
        text = (
            f'Keeping the state was more work than answering from nothing: {factor(summary.work_ratio)} its model time.'
        )
    else:
        text = f'All work together took {share_text(summary.work_ratio)} of the model time of cold-dense.'
    if summary.speedup <= 1:
        text += ' A warm answer took as long as one computed from nothing.'
    else:
        text += (
            f' A planner waits {summary.warm_ms_median:.0f} ms for an answer from the newest picture instead of '
            f'{summary.cold_ms_median:.0f} ms ({TIME_MEANT}): only a picture that has changed is computed for it.'
        )
    return text


def _row_view(row: Row) -> dict:
    right, *figures = number_cells(row)
    reply = row.warm
    return {
        'at': f'{row.question.at_s:.1f} s',
        'question': row.question.text,
        'kind': row.question.kind,
        'choices': ' / '.join(row.question.choices),
        'answer': shorten(reply.text, LONGEST_ANSWER, placeholder=' …') if reply.is_answer else reply.status,
        'remembered': reply.remembered,
        'message': '' if reply.is_answer else reply.message,
        'truth': row.truth or NO_VALUE,
        'cold': row.cold.text if row.cold and row.is_equal is False else '',
        'right': right.lower(),
        'figures': list(zip(COLUMNS[1:], figures)),
    }


def _strip(summary: Summary) -> dict:
    """The share of each picture that was paid for, over time, and when questions were asked."""
    looks = summary.looks
    times = [look.picture_s for look in looks] or [0.0]
    # The shortest gap between pictures, because dropped pictures leave longer ones.
    pace_s = min((later - sooner for sooner, later in zip(times, times[1:])), default=1.0)
    end_s = times[-1] + pace_s
    computed = [look for look in looks if look.tokens_paid]
    bars = [
        Bar(
            STRIP_WIDTH * look.picture_s / end_s,
            STRIP_WIDTH * pace_s / end_s,
            STRIP_HEIGHT * min(1.0, look.tokens_paid / look.tokens),
            _look_title(look),
        )
        for look in computed
    ]
    asked = [STRIP_WIDTH * row.warm.picture_s / end_s for row in summary.rows if row.warm.picture_s is not None]
    return {
        'computed': [
            [f'{look.picture_s:.1f} s', look.level, f'{look.tokens_paid} of {look.tokens}', f'{look.refresh_ms:.0f}']
            for look in computed
        ],
        'bars': bars,
        'asked': asked,
        'width': STRIP_WIDTH,
        'height': STRIP_HEIGHT,
        'times': [f'{round(share * end_s, 1):g} s' for share in (0, 0.25, 0.5, 0.75, 1)],
    }


def _look_title(look: Look) -> str:
    return (
        f'{look.picture_s:.1f} s: {look.level}, {look.tokens_paid} of {look.tokens} visual tokens, '
        f'{look.refresh_ms:.0f} ms ({look.reason})'
    )


def _costs(summary: Summary) -> list[tuple[str, str]]:
    """Where the time of the whole run went: the latency of answers is not the whole cost."""
    pairs, refreshed = len(summary.pairs), sum(look.refresh_ms > 0 for look in summary.looks)
    waited_ms = sum(row.warm.refresh_ms for row in summary.rows)
    return [
        (
            'All work',
            f'{seconds(summary.totals.work_ms)}; cold-dense: {seconds(summary.totals.cold_ms)} ({WORK_MEANT})',
        ),
        (
            'Refreshes',
            f'{seconds(summary.refresh_ms)} for {refreshed} of {len(summary.looks)} pictures; warm questions waited '
            f'for {seconds(waited_ms)} of it',
        ),
        ('Warm answers', f'{seconds(summary.warm_ms)} for {pairs} questions, with the refreshes that they waited for'),
        ('Cold answers', f'{seconds(summary.cold_ms)} for the same questions, {DENOMINATOR}'),
        ('Looking', f'{seconds(summary.look_ms)} of a processor to find changes, without the model'),
        ('Answers', f'counted in {TIME_MEANT}'),
    ]


def _still_view(still: Still) -> dict:
    look = still.look
    done = 'nothing computed'
    if look.tokens_paid:
        share = paid_text(look.tokens_paid, look.tokens)
        done = f'level {look.level}, {share} of the cells computed in {look.refresh_ms:.1f}\u00a0ms'
    return {
        'uri': f'data:image/jpeg;base64,{b64encode(still.jpeg).decode()}',
        'caption': f'{look.picture_s:.1f} s: {done} ({look.reason})',
    }


def _diagnostic_view(status: dict) -> dict:
    level = status['level']
    return {
        'name': status['name'],
        'message': status['message'],
        'level': LEVELS[level] if level in range(len(LEVELS)) else f'{level}',
        'details': ', '.join(f'{key}: {value}' for key, value in status['values'].items()),
    }
