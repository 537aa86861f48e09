"""The report's plots: static SVG by matplotlib, whose colours follow the page's light or dark scheme.

Matplotlib draws with stand-in colours; in the SVG text they become the page's CSS variables.
"""

import io
import re
from collections.abc import Callable
from itertools import groupby
from operator import itemgetter

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from vlm_reuse_node.replay.arms import POLICY, REFERENCE
from vlm_reuse_node.replay.bounds import share_bounds
from vlm_reuse_node.replay.metrics import AGES, SESSIONS, STAGES, Rows

WIDTH = 5.0
MOST_COLUMNS = 1000  # over time; more cannot be told apart, and make the page large
INK, SOFT, LINE = '#010101', '#020202', '#030303'
PAID, REUSED, CHANGED, THIRD, OTHER = '#040404', '#050505', '#060606', '#070707', '#080808'
_VARIABLES = {
    INK: 'ink',
    SOFT: 'soft',
    LINE: 'line',
    PAID: 'paid',
    REUSED: 'reused',
    CHANGED: 'changed',
    THIRD: 'third',
    OTHER: 'other',
}
STAGE_COLOURS = dict(zip(STAGES, (OTHER, PAID, REUSED, THIRD, LINE)))
LEVEL_COLOURS = {'reuse': LINE, 'patch': THIRD, 'frame': PAID, 'full': CHANGED}
_STYLE = {
    'svg.fonttype': 'none',
    'svg.hashsalt': 'replay',
    'font.family': 'sans-serif',
    'font.size': 11.5,
    'text.color': INK,
    'axes.edgecolor': LINE,
    'axes.labelcolor': SOFT,
    'xtick.color': SOFT,
    'ytick.color': SOFT,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.grid': True,
    'grid.color': LINE,
    'grid.linewidth': 0.6,
    'axes.axisbelow': True,
    'legend.frameon': False,
    'legend.fontsize': 10.5,
    'axes.titlesize': 11.5,
    'axes.titlelocation': 'left',
    'axes.titlecolor': SOFT,
}


def latency(times: dict[str, list[float]]) -> str:
    """Every answer's time as a dot, an arm a row; the median as a line. times: milliseconds by arm."""

    def draw(figure):
        axes = figure.add_subplot()
        for row, values in enumerate(times.values()):
            spread = (np.arange(len(values)) * 0.618 % 1 - 0.5) * 0.6  # dots side by side, the same every time
            axes.scatter(values, row + spread, s=9, color=REUSED, alpha=0.5, linewidths=0)
            axes.plot([np.median(values)] * 2, [row - 0.4, row + 0.4], color=PAID, linewidth=2.5)
        axes.set_xscale('log')
        axes.set_yticks(range(len(times)), list(times))
        axes.invert_yaxis()
        _plain_numbers(axes.xaxis)
        axes.set_xlabel('milliseconds, whole answer; orange: median')

    return _svg('latency', draw, 0.9 + 0.32 * len(times))


def over_time(rows: Rows, bag: str, camera: str) -> str:
    """What one camera's pictures cost the default policy: share computed, staleness, and the levels as a band."""
    looks = [row for row in rows.looks(POLICY) if (row['bag'], row['camera']) == (bag, camera)]
    seconds = np.array([row['picture_s'] for row in looks])
    shares = np.array([row['visual_tokens_refreshed'] / row['visual_tokens'] for row in looks])
    ages = [row['oldest_cell_age_s'] for row in looks]
    paid = 100 * np.cumsum(shares) / np.arange(1, len(shares) + 1)
    columns = np.arange(0, len(looks), -(-len(looks) // MOST_COLUMNS))  # each shows the most of its pictures
    highest, since, oldest = (np.maximum.reduceat(values, columns) for values in (shares, _since_computed(looks), ages))
    at_s = seconds[columns]
    asked = [row['picture_s'] for row in rows.questions if (row['bag'], row['camera']) == (bag, camera)]

    def draw(figure):
        top, middle, band = figure.subplots(3, 1, sharex=True, height_ratios=(3, 3, 1))
        top.vlines(at_s, 0, 100 * highest, color=PAID, linewidth=1.2)
        top.plot(at_s, paid[columns], color=INK, linewidth=1.2)
        top.set_ylim(0, 105)
        top.set_ylabel('%')
        top.set_title('share of each picture computed; line: of all so far')
        middle.plot(at_s, since, color=REUSED, linewidth=1.2)
        middle.plot(at_s, oldest, color=CHANGED, linewidth=1.2)
        middle.scatter(asked, np.zeros(len(asked)), marker='|', s=40, color=INK, linewidths=0.8)
        middle.set_ylim(bottom=0)
        middle.set_ylabel('s')
        middle.set_title(
            'blue: since anything was computed; red: since every\ncell was seen unchanged; marks: questions'
        )
        _draw_band(band, seconds, [row['level'] for row in looks])

    return _svg(f'time-{_plain(bag)}-{_plain(camera)}', draw, 4.6)


def _since_computed(looks) -> list[float]:
    """Seconds from the last picture of which anything was computed to each picture."""
    since, last_s = [], looks[0]['picture_s']
    for row in looks:
        last_s = row['picture_s'] if row['visual_tokens_refreshed'] else last_s
        since.append(row['picture_s'] - last_s)
    return since


def _draw_band(axes, seconds, levels):
    """A stripe of the levels over time; neighbours of one level in one piece."""
    ends = [*seconds[1:], seconds[-1] + (seconds[-1] - seconds[-2] if len(seconds) > 1 else 1.0)]
    pieces: dict[str, list] = {level: [] for level in LEVEL_COLOURS}
    for level, group in groupby(zip(levels, seconds, ends), key=itemgetter(0)):
        group = list(group)
        pieces[level].append((group[0][1], group[-1][2] - group[0][1]))
    for level, spans in pieces.items():
        if spans:
            axes.broken_barh(
                spans, (0, 1), color=LEVEL_COLOURS[level], linewidth=0, label=f'{level} {levels.count(level)}'
            )
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.set_xlabel('seconds from the first picture')
    axes.legend(ncols=4, loc='upper left', bbox_to_anchor=(-0.02, 2.1), handlelength=1, columnspacing=1.2)


def drift(groups: dict[str, dict[str, dict]], name: str, order: list[str]) -> str:
    """Share of drifted answers with its interval, a row for each group, a mark for each arm.

    groups: counts of pairs by arm and group.
    """

    def draw(figure):
        axes = figure.add_subplot()
        colours = (PAID, REUSED, CHANGED, THIRD, OTHER)
        for number, (arm, counts) in enumerate(groups.items()):
            colour, label = colours[number % len(colours)], arm
            for row, group in enumerate(order):
                each = counts.get(group)
                if not each or not each['pairs']:
                    continue
                low, high = share_bounds(each['drifted'], each['pairs'])
                at = row + (number - (len(groups) - 1) / 2) * 0.8 / len(groups)
                axes.plot([100 * low, 100 * high], [at, at], color=colour, linewidth=1.5)
                axes.scatter([100 * each['drifted'] / each['pairs']], [at], color=colour, s=28, label=label, zorder=3)
                label = None
        totals = [
            max((counts.get(group, {}).get('pairs', 0) for counts in groups.values()), default=0) for group in order
        ]
        axes.set_yticks(
            range(len(order)), [f'{group}\n(n ≤ {total})' for group, total in zip(order, totals)], parse_math=False
        )  # types are the user's words
        axes.invert_yaxis()
        axes.set_xlim(-2, 102)
        axes.set_xlabel('% of answers that drifted, 95 % interval')
        axes.legend(loc='lower center', bbox_to_anchor=(0.35, 1.0), ncols=3, columnspacing=1.0)

    return _svg(f'drift-{name}', draw, 1.5 + (0.14 * len(groups) + 0.24) * len(order))


def ages_order() -> list[str]:
    """Classes of age, newest first."""
    return [name for _, name in AGES]


def stages(times: dict[str, dict]) -> str:
    """Median time of each stage, stacked, an arm a row; a mark where the whole answer is predicted."""

    def draw(figure):
        axes = figure.add_subplot()
        left = np.zeros(len(times))
        for stage in STAGES:
            widths = np.array([max(0.0, each['stages_ms'][stage] / each['pairs']) for each in times.values()])
            axes.barh(
                range(len(times)),
                widths,
                left=left,
                height=0.6,
                color=STAGE_COLOURS[stage],
                label=stage.removesuffix('_ms'),
            )
            left += widths
        for row, each in enumerate(times.values()):
            if each['ceiling']:
                axes.plot(
                    [each['ceiling']['predicted_ms'] / each['pairs']] * 2,
                    [row - 0.42, row + 0.42],
                    color=INK,
                    linewidth=2,
                    label='predicted' if row == 0 else None,
                )
        axes.set_yticks(range(len(times)), list(times))
        axes.invert_yaxis()
        axes.set_xlabel('milliseconds an answer, mean')
        axes.legend(ncols=3, loc='lower center', bbox_to_anchor=(0.4, 1.0), handlelength=1, columnspacing=1.0)

    return _svg('stages', draw, 1.4 + 0.34 * len(times))


def sessions(times: dict[str, dict]) -> str:
    """Setup-inclusive speedup over the number of questions on one picture."""

    def draw(figure):
        axes = figure.add_subplot()
        for (arm, each), colour in zip(times.items(), (PAID, REUSED, THIRD, OTHER)):
            speedups = [session['speedup'] for session in each['sessions']]
            axes.plot(SESSIONS, speedups, marker='o', markersize=5, color=colour, label=arm)
            axes.annotate(
                f'{speedups[-1]:.1f} ×',
                (SESSIONS[-1], speedups[-1]),
                textcoords='offset points',
                xytext=(-4, 6),
                ha='right',
                color=INK,
            )
        axes.axhline(1, color=INK, linewidth=0.8, linestyle='--')
        axes.set_xscale('log')
        axes.set_xticks(SESSIONS, [str(number) for number in SESSIONS])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.set_xlabel('questions on one picture, its computation included')
        axes.set_ylabel('times as fast as cold')
        axes.legend(loc='upper left')

    return _svg('sessions', draw, 3.0)


def memory(rows: Rows) -> str:
    """What the default policy keeps, and the process as a whole, over time; bags one after the other."""
    looks = rows.looks(POLICY)
    held = [row['held_bytes'] / 1e6 for row in looks]
    process = [row['times']['peak_process_mb'] for row in looks]

    def draw(figure):
        top, bottom = figure.subplots(2, 1, sharex=True)
        top.plot(range(1, len(held) + 1), held, color=PAID, linewidth=1.5)
        top.set_title('state of a camera: cache, snapshots, features')
        bottom.plot(range(1, len(process) + 1), process, color=REUSED, linewidth=1.5)
        bottom.set_title('process, most so far: model and all arms')
        bottom.set_xlabel('pictures replayed')
        for axes, values in ((top, held), (bottom, process)):
            axes.set_ylim(0, 1.15 * max(values))
            axes.set_ylabel('MB')

    return _svg('memory', draw, 3.4)


def arms_to_show(times: dict[str, dict]) -> dict[str, dict]:
    """Arms with pairs."""
    return {arm: each for arm, each in times.items() if each['pairs']}


def with_sessions(times: dict[str, dict]) -> dict[str, dict]:
    """Arms that keep a state which has to be set up."""
    return {arm: each for arm, each in times.items() if each.get('sessions') and arm != REFERENCE}


# --- from matplotlib to the page --------------------------------------------------------------------------------------


def _svg(name: str, draw: Callable[[Figure], None], height: float) -> str:
    """Draw on a figure of the page's width; returns the <svg> element."""
    with rc_context(_STYLE):
        figure = Figure((WIDTH, height), layout='constrained')
        figure.patch.set_alpha(0)
        draw(figure)
        for axes in figure.axes:
            axes.patch.set_alpha(0)
        text = io.StringIO()
        figure.savefig(text, format='svg', metadata={'Date': None, 'Creator': None, 'Format': None, 'Type': None})
    return _inline(text.getvalue(), name)


def _inline(svg: str, name: str) -> str:
    """The element alone: colours from the page, names that no other plot on it has, no fixed size."""
    svg = svg[svg.index('<svg') :]
    svg = re.sub(r'<metadata>.*?</metadata>', '', svg, flags=re.S)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f'var(--{variable})')
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = svg.replace('href="#', f'href="#{name}-').replace('url(#', f'url(#{name}-')
    svg = re.sub(r'font: [\d.]+px [^;"]*', lambda match: _font(match.group()), svg)
    head, rest = svg.split('>', 1)
    head = re.sub(r' (width|height|xmlns(:xlink)?)="[^"]*"', '', head).replace('xlink:href', 'href')
    return f'{head} role="img">{rest}'.replace('xlink:href', 'href')


def _font(style: str) -> str:
    size = re.search(r'[\d.]+px', style).group()
    return f'font: {size} system-ui, sans-serif'


def _plain_numbers(axis):
    axis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:g}'))


def _plain(name: str) -> str:
    return re.sub(r'[^A-Za-z0-9]+', '-', name)
