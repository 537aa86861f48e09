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

"""The report's plots but the one over time (time_plot.py): latency, drift, stages, sessions and memory."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from vlm_reuse_node.replay.arms import POLICY
from vlm_reuse_node.replay.bounds import share_bounds
from vlm_reuse_node.replay.row_index import RowIndex
from vlm_reuse_node.replay.svg import CHANGED, INK, LINE, OTHER, PAID, REUSED, THIRD, svg_of
from vlm_reuse_node.replay.times import SESSIONS, STAGES

# Of the arms in a plot: there are more arms than colours.
MARKERS = 'osD^vPX'
STAGE_COLOURS = dict(zip(STAGES, (OTHER, PAID, REUSED, THIRD, LINE)))


def latency(times: dict[str, list[float]], title: str) -> str:
    """Draw every answer's time as a dot, an arm a row; the median as a line. times: milliseconds by arm."""

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for row, values in enumerate(times.values()):
            spread = (np.arange(len(values)) * 0.618 % 1 - 0.5) * 0.6  # dots side by side, the same every time
            axes.scatter(values, row + spread, s=9, color=REUSED, alpha=0.5, linewidths=0)
            axes.plot([np.median(values)] * 2, [row - 0.4, row + 0.4], color=PAID, linewidth=2.5)
        axes.set_xscale('log')
        axes.set_yticks(range(len(times)), list(times))
        axes.invert_yaxis()
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:g}'))
        axes.set_xlabel('milliseconds, whole answer; orange: median')

    return svg_of('latency', title, draw, 0.9 + 0.32 * len(times))


def drift(groups: dict[str, dict[str, dict]], name: str, order: Sequence[str], title: str) -> str:
    """Draw the share of drifted answers with its interval, a row for each group, a mark for each arm.

    groups: counts of pairs by arm and group. name: of the grouping. order: of the groups.
    """
    colours = (PAID, REUSED, CHANGED, THIRD, OTHER, INK)
    sizes = [max((counts.get(group, {}).get('pairs', 0) for counts in groups.values()), default=0) for group in order]

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for number, (arm, counts) in enumerate(groups.items()):
            colour, marker = colours[number % len(colours)], MARKERS[number % len(MARKERS)]
            shift = (number - (len(groups) - 1) / 2) * 0.8 / len(groups)
            label: str | None = arm  # once for each arm
            for row, group in enumerate(order):
                each = counts.get(group)
                if not each or not each['pairs']:
                    continue
                bounds = share_bounds(each['drifted'], each['pairs'])
                interval = [100 * bound for bound in bounds if bound is not None]
                share = 100 * each['drifted'] / each['pairs']
                axes.plot(interval, [row + shift] * 2, color=colour, linewidth=1.5)
                axes.scatter([share], [row + shift], color=colour, marker=marker, s=28, label=label, zorder=3)
                label = None
        titles = [f'{group}\n(n ≤ {size})' for group, size in zip(order, sizes)]
        axes.set_yticks(range(len(order)), titles, parse_math=False)  # types of questions are the user's words
        axes.invert_yaxis()
        axes.set_xlim(-2, 102)
        axes.set_xlabel('% of answers that drifted, 95 % interval')
        axes.legend(loc='lower center', bbox_to_anchor=(0.35, 1.0), ncols=3, columnspacing=1.0)

    return svg_of(f'drift-{name}', title, draw, 1.5 + (0.14 * len(groups) + 0.24) * len(order))


def stages(times: dict[str, dict], title: str) -> str:
    """Draw the mean time of each stage, stacked, an arm a row; a mark where the whole answer is predicted."""

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        left = np.zeros(len(times))
        for stage in STAGES:
            widths = np.array([max(0.0, each['stages_ms'][stage] / each['pairs']) for each in times.values()])
            label = stage.removesuffix('_ms')
            axes.barh(range(len(times)), widths, left=left, height=0.6, color=STAGE_COLOURS[stage], label=label)
            left += widths
        for row, each in enumerate(times.values()):
            if each['ceiling']:
                predicted_ms = each['ceiling']['predicted_ms'] / each['pairs']
                mark = 'predicted' if row == 0 else None  # once in the legend
                axes.plot([predicted_ms] * 2, [row - 0.42, row + 0.42], color=INK, linewidth=2, label=mark)
        axes.set_yticks(range(len(times)), list(times))
        axes.invert_yaxis()
        axes.set_xlabel('milliseconds an answer, mean')
        axes.legend(ncols=3, loc='lower center', bbox_to_anchor=(0.4, 1.0), handlelength=1, columnspacing=1.0)

    return svg_of('stages', title, draw, 1.4 + 0.34 * len(times))


def sessions(times: dict[str, dict], title: str) -> str:
    """Draw the setup-inclusive speedup over the number of questions on one picture."""

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for (arm, each), colour in zip(times.items(), (PAID, REUSED, THIRD, OTHER, CHANGED, INK)):
            speedups = [session['speedup'] for session in each['sessions']]
            label = f'{arm} ({speedups[-1]:.1f} ×)'  # in the legend, because lines lie on one another
            axes.plot(SESSIONS, speedups, marker='o', markersize=5, color=colour, label=label)
        axes.axhline(1, color=INK, linewidth=0.8, linestyle='--')
        axes.set_xscale('log')
        axes.set_xticks(SESSIONS, [str(number) for number in SESSIONS])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.set_xlabel('questions on one picture, its computation included')
        axes.set_ylabel('times as fast as cold')
        axes.legend(ncols=2, loc='lower center', bbox_to_anchor=(0.45, 1.0), columnspacing=1.0)

    return svg_of('sessions', title, draw, 3.0 + 0.11 * len(times))


def memory(rows: RowIndex, title: str) -> str:
    """Draw what auto keeps, and the process as a whole, over time; bags one after the other."""
    looks = rows.looks(POLICY)
    kept_mb = [row['held_bytes'] / 1e6 for row in looks]
    process_mb = [row['times']['peak_process_mb'] for row in looks]

    def draw(figure: Figure) -> None:
        top, bottom = figure.subplots(2, 1, sharex=True)
        top.plot(range(1, len(kept_mb) + 1), kept_mb, color=PAID, linewidth=1.5)
        top.set_title('state of a camera: cache, snapshots, features')
        bottom.plot(range(1, len(process_mb) + 1), process_mb, color=REUSED, linewidth=1.5)
        bottom.set_title('process, most so far: model and all arms')
        bottom.set_xlabel('pictures replayed')
        for axes, values in ((top, kept_mb), (bottom, process_mb)):
            axes.set_ylim(0, 1.15 * max(values))
            axes.set_ylabel('MB')

    return svg_of('memory', title, draw, 3.4)
