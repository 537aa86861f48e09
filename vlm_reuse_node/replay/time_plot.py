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

"""The plot of one camera over time: what its pictures cost, how old the state was, and which levels were taken."""

from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vlm_reuse_node.replay.arms import POLICY
from vlm_reuse_node.replay.row_index import RowIndex
from vlm_reuse_node.replay.svg import CHANGED, INK, LINE, PAID, REUSED, THIRD, svg_of

MOST_COLUMNS = 1000  # over time; more cannot be told apart, and make the page large
HEIGHT = 5.4  # inches
LEVEL_COLOURS = {'reuse': LINE, 'patch': THIRD, 'frame': PAID, 'full': CHANGED}


def over_time(rows: RowIndex, bag: str, camera: str, title: str) -> str:
    """Draw what one camera's pictures cost auto: share computed, staleness, and levels as a band."""
    looks = [row for row in rows.seen(POLICY) if (row['bag'], row['camera']) == (bag, camera)]
    seconds = np.array([row['picture_s'] for row in looks])
    shares = np.array([row['visual_tokens_refreshed'] / row['visual_tokens'] for row in looks])
    paid_percent = 100 * np.cumsum(shares) / np.arange(1, len(shares) + 1)
    asked_s = [row['picture_s'] for row in rows.questions if (row['bag'], row['camera']) == (bag, camera)]
    # Each column stands for several pictures, and shows the most of them.
    columns = np.arange(0, len(looks), -(-len(looks) // MOST_COLUMNS))
    column_s = seconds[columns]
    highest_percent = 100 * np.maximum.reduceat(shares, columns)
    since_s = np.maximum.reduceat(_since_computed(looks), columns)
    oldest_s = np.maximum.reduceat([row['oldest_cell_age_s'] for row in looks], columns)

    def draw(figure: Figure) -> None:
        top, middle, band = figure.subplots(3, 1, sharex=True, height_ratios=(3, 3, 1))
        top.vlines(column_s, 0, highest_percent, color=PAID, linewidth=1.2, label='of this picture')
        top.plot(column_s, paid_percent[columns], color=INK, linewidth=1.2, label='of all so far')
        top.set_ylim(0, 105)
        top.set_ylabel('%')
        _legend(top, 'share computed')
        middle.plot(column_s, since_s, color=REUSED, linewidth=1.2, label='computed')
        middle.plot(column_s, oldest_s, color=CHANGED, linewidth=1.2, label='all seen unchanged')
        middle.scatter(asked_s, np.zeros(len(asked_s)), marker='|', s=40, color=INK, linewidths=0.8, label='question')
        middle.set_ylim(bottom=0)
        middle.set_ylabel('s')
        _legend(middle, 'time since cells were')
        _draw_band(band, seconds, [row['level'] for row in looks])

    return svg_of(f'time-{bag}-{camera}', title, draw, HEIGHT)


def _since_computed(looks: Sequence[dict]) -> list[float]:
    """Seconds from the last picture of which anything was computed to each picture."""
    since = []
    last_s = looks[0]['picture_s']
    for row in looks:
        last_s = row['picture_s'] if row['visual_tokens_refreshed'] else last_s
        since.append(row['picture_s'] - last_s)
    return since


def _draw_band(axes: Axes, seconds: np.ndarray, levels: list[str]) -> None:
    """A stripe of the levels over time; neighbours of one level in one piece."""
    last_s = seconds[-1] - seconds[-2] if len(seconds) > 1 else 1.0
    ends = [*seconds[1:], seconds[-1] + last_s]
    pieces: dict[str, list[tuple[float, float]]] = {level: [] for level in LEVEL_COLOURS}
    for level, group in groupby(zip(levels, seconds, ends), key=itemgetter(0)):
        stretch = list(group)
        begin_s = stretch[0][1]
        end_s = stretch[-1][2]
        pieces[level].append((begin_s, end_s - begin_s))
    for level, bars in pieces.items():
        if bars:
            label = f'{level} {levels.count(level)}'
            axes.broken_barh(bars, (0, 1), color=LEVEL_COLOURS[level], linewidth=0, label=label)
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.set_xlabel('seconds from the first picture')
    _legend(axes, 'level, pictures')


def _legend(axes: Axes, title: str) -> None:
    """A title above the plot, and between both the legend."""
    axes.set_title(title, pad=20)
    axes.legend(ncols=4, loc='lower left', bbox_to_anchor=(-0.02, 0.97), handlelength=1, columnspacing=1.2, borderpad=0)
