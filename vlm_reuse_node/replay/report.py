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

"""One self-contained page about a replay: everything is computed in Python, the template only places it."""

from pathlib import Path

from vlm_reuse_node.replay.arms import POLICY
from vlm_reuse_node.replay.compare import arm_sentence
from vlm_reuse_node.replay.conclusion import conclusion, floor_sentence, why_no_verdict
from vlm_reuse_node.replay.figures import factor, share_text
from vlm_reuse_node.replay.keep_up import keep_up_lines
from vlm_reuse_node.replay.negatives import negatives
from vlm_reuse_node.replay.page import render_page
from vlm_reuse_node.replay.report_drift import drift_view, exactness_lines, peer_lines
from vlm_reuse_node.replay.report_plots import plot_views
from vlm_reuse_node.replay.report_sample import sample_view
from vlm_reuse_node.replay.row_index import RowIndex
from vlm_reuse_node.replay.sessions import session_lines, timed_rows
from vlm_reuse_node.replay.support import support_lines
from vlm_reuse_node.replay.table import COLUMNS, cells
from vlm_reuse_node.replay.times import STAGES
from vlm_reuse_node.replay.verdict import DENOMINATOR, sentence, verdict

TEMPLATE, NOTHING = (Path(__file__).with_name(name) for name in ('report.html', 'nothing.html'))
CEILING_COLUMNS = (
    'arm',
    *(stage.removesuffix('_ms') for stage in STAGES),
    'predicted speedup',
    'measured',
    'residual, ms an answer',
)


def write_report(results: dict, path: Path, folders: dict[str, Path], videos: list[str]) -> None:
    """Write the page. folders: where each bag's pictures are. videos: names of the overlays beside the page."""
    path.write_text(render(results, folders, videos), encoding='utf-8')


def write_nothing(why: str, lines: list[str], path: Path) -> None:
    """Write the page of a replay without an answer. lines: sentences on what was found in the bags."""
    path.write_text(render_page(NOTHING, why=why, lines=lines), encoding='utf-8')


def render(results: dict, folders: dict[str, Path], videos: list[str]) -> str:
    """Return the page as HTML; every text in it is escaped."""
    rows = RowIndex(row for kind in ('questions', 'answers', 'pictures', 'upkeep', 'bags') for row in results[kind])
    sessions = results['times']['sessions']
    return render_page(
        TEMPLATE,
        conclusion=conclusion(results),
        has_verdict=not why_no_verdict(results),
        denominator=DENOMINATOR,
        support=support_lines(results),
        resumed=session_lines(sessions),
        verdicts=verdict(results),
        sentence=sentence(results),
        about=_about(results),
        floor=floor_sentence(results['times']['floor']),
        columns=[name for name, _ in COLUMNS],
        arms=[_arm_view(results, arm) for arm in results['counts']],
        figures=plot_views(results, rows, timed_rows(rows, sessions)),
        ceiling_columns=CEILING_COLUMNS,
        ceilings=_ceilings(results),
        exactness=exactness_lines(results) + peer_lines(rows),
        drift=drift_view(rows, folders),
        sample=sample_view(rows, folders),
        comparison=_comparison(results['comparison']),
        keep_up=keep_up_lines(results),
        negatives=negatives(results),
        notes=results['notes'],
        videos=videos,
        settings=_settings(results),
    )


def _about(results: dict) -> str:
    """What was replayed, in one line."""
    looks = [row for row in results['pictures'] if row['arm'] == POLICY]
    pictures = {(row['bag'], row['camera'], row['picture_s']) for row in looks}
    last_s: dict[str, float] = {}  # by bag, from rows, which a stopped run has too
    for bag, _, picture_s in pictures:
        last_s[bag] = max(last_s.get(bag, 0.0), picture_s)
    cameras = {(bag, camera) for bag, camera, _ in pictures}
    text = (
        f'{_number(len(last_s), "bag")}, {_number(len(cameras), "camera")}, {len(pictures):,} pictures over '
        f'{sum(last_s.values()):,.0f} s, {len(results["questions"])} questions, model {results["settings"]["model"]}'
    )
    return text if results['complete'] else f'{text}. Not complete'


def _number(count: int, noun: str) -> str:
    return f'{count} {noun}' if count == 1 else f'{count} {noun}s'


def _arm_view(results: dict, arm: str) -> dict:
    titles = [name for name, _ in COLUMNS]
    return {
        'name': arm,
        'sees': results['arms'][arm]['sees'],
        'cells': list(zip(titles, cells(results, arm)))[1:],
    }


def _ceilings(results: dict) -> list[list[str]]:
    """Of each arm, the shares of its stages, and the predicted and the measured speedup."""
    rows = []
    for arm, times in results['times']['arms'].items():
        if not times['pairs'] or not times['ceiling']:
            continue
        stages = times['stages_ms']
        ceiling = times['ceiling']
        total_ms = sum(stages.values())
        rows.append(
            [
                arm,
                *(share_text(max(0.0, stages[stage]) / total_ms) for stage in STAGES),
                factor(ceiling['predicted_speedup']),
                factor(ceiling['measured_speedup']),
                f'{ceiling["residual_ms"] / times["pairs"]:+,.1f}',
            ]
        )
    return rows


def _comparison(comparison: dict | None) -> dict | None:
    if not comparison:
        return None
    return {
        'questions': comparison['questions_in_common'],
        'settings': comparison['settings'],
        'other_pictures': comparison['other_pictures'],
        'arms': [(arm, arm_sentence(comparison, arm)) for arm in comparison['arms']],
    }


def _settings(results: dict) -> list[tuple[str, str]]:
    """With what the figures were measured."""
    settings = results['settings']
    times = results['times']
    lines = [
        ('model', f'{settings["model"]}, fingerprint {settings["model_fingerprint"]}'),
        ('part', _part(settings['selection'])),
        ('window of low-rate', f'{settings["window_s"]:g} s'),
        ('order of the arms', f'random, seed {settings["order_seed"]}'),
        *((f'bag {bag["bag"]}', _bag_line(bag)) for bag in results['bags']),
        *((name, str(number)) for name, number in settings['versions'].items()),
        *((name, times[name]) for name in ('made', 'machine') if name in times),
    ]
    if 'wall_s' in times:
        took = f'{times["wall_s"]:,.0f} s, {times["cpu_s"]:,.0f} s of processor time in this process'
        lines.append(('took', took))
    parameters = ', '.join(f'{name} {value}' for name, value in settings['config'].items() if value != '')
    return [*lines, ('parameters', parameters)]


def _part(selection: dict) -> str:
    """Which part of each bag was replayed."""
    duration_s = selection['duration_s']
    text = f'from {selection["start_s"]:g} s on, ' + ('to the end' if duration_s == 'inf' else f'{duration_s} s long')
    if selection['rate_limit_hz']:
        text += f', at most {selection["rate_limit_hz"]:g} pictures a second'
    return text


def _bag_line(bag: dict) -> str:
    cameras = [
        f'{each["topic"]}: {each["pictures_used"]} of {each["pictures_read"]} pictures replayed'
        + ''.join(f', {count} {why}' for why, count in each['pictures_left_out'].items())
        + ''.join(f', {count} refused ({why})' for why, count in each['pictures_refused'].items())
        for each in bag['cameras']
    ]
    return f'{"; ".join(cameras)}; {bag["seconds"]:.1f} s; digest {bag["frames_digest"]}'
