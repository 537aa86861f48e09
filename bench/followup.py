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


"""What a question costs: cold, from the kept state, in turn, through mlx-vlm, and at the least.

One process, one set of weights for each shape (random, `shapes.py`). The arms of a row follow each other in random
order, in rounds, after one round that does not count. Figures are medians of the rounds:

cold        image processor, vision tower, prefill of everything, answer (`SceneSession.ask_cold`). It takes long: three
            runs behind the others at one or two pictures, else one run. A repeated question and a patch have those of
            the same question, and of `changed`
warm        the kept state, the whole call (`SceneSession.ask`); `warm_again` is the same once more, and `noise` the
            ratio of the two
floor       forward calls on a ready cache and nothing else; with a new picture the call of the vision tower, too. The
            cache is a copy that no snapshot shares. Questions with choices take one call, a text one for each token, a
            text that only has to be verified one
in_turn     the way without shared passes: what changed, the question and the choices each in a pass of their own
one_by_one  ten questions one after the other
peers       mlx-vlm's `generate` cold; with `PromptCacheState`; with APC. For the last two, one untimed run has answered
            another question about the same pictures and filled their caches. Their follow-ups are checked, and timed
            until one is slow, at most three times

The rows of a shape and a number of pictures:

text             8 tokens, chosen greedily, on an unchanged state
choice           one of 4 choices, on an unchanged state
standing_10      ten such questions at once (`ask_together`)
repeated_choice  the same question on the same state
repeated_text    the same question on a state that was computed again from the same pixels
changed          a new picture and a question with choices: look, vision and pass; level `frame`
changed_patch    the same with a picture of which `changed_cells` cells have changed; level `patch`, approximate

Each run asks another question of equally many tokens, because the same one on the same state would be remembered; a
question has 12 tokens, the end of the chat template included, in the shape `weight_bound` 5. Peers answer in text only.
mlx-vlm does not score choices, so only text rows have peers.

Written as JSON, times in milliseconds, `null` for what was not measured. Each arm has `_ms` and `_cpu_ms`, the
processor time of this program, which other programs of the machine hardly disturb. Ratios are of processor times.

rows    row, passes (calls of the language model, the most of any run), speedup (cold / warm), warm_over_floor,
        in_turn_over_warm, one_by_one_over_warm, noise, equal_to_cold (the answer's tokens; of a choice the index;
        `null` after a patch), max_logprob_difference (between warm and cold; after a patch between one pass and in
        turn), noise_floor (the largest difference between cold runs that only rounding explains, see
        `model/noise.py`: the first pictures' features moved by one unit in the last place, and two chunk grids: the
        state's own, and half a picture's tokens). peers: by name ms, cpu_ms (of a question after another one),
        same_question_ms, same_question_cpu_ms (of it once more), tokens_reused, answer_right (equal to
        generate's cold tokens), answer_right_after_new_picture (the newest picture replaced by another one of its
        size, and the other question asked again), and a reason where something is missing
states  a number of pictures: snapshot_restore_ms (`kv_cache.take` and `restore`), frame_ms (a new picture in the
        newest one's place, `Level.FRAME`), full_ms (everything from nothing), held_bytes (cache and snapshots, after
        questions; flat layers grow by 256 tokens at a time, which shows at few pictures), needed_bytes (K and V that
        the prompt's tokens need; of a sliding layer at most its window), ring_bytes (the sliding layers' part of
        that), features_bytes (of the pictures, beside the cache)
shapes  parameters, cells of a picture, text_bytes (of the language model's parameters), passes (of so many tokens,
        behind one picture)
machine wall_over_processor (the median ratio of both times of a warm call: how busy the machine was), the settings of
        the BLAS, minutes (of the run)
worst   the worst value of each promise over all rows, as printed at the end
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import cv2
from followup_case import FEW_RUNS, SIDE_PX, make_case, replace_newest, snapshot_restore_ms, state_bytes
from followup_floor import pass_times
from followup_peers import PEERS, Peers
from followup_rows import Rows
from results import publish
from shapes import SHAPES, Shape, parameter_count, text_bytes
from timing import medians
from tiny_model import picture

from vlm_reuse_node.model import loading, noise
from vlm_reuse_node.model.vlm import Vlm

OUTPUT = Path(__file__).parents[1] / 'out' / 'bench' / 'followup.json'
CHANGED_CELLS = (1, 3)


def measure(vlm: Vlm, shape: Shape, frames: int, rounds: int) -> tuple[dict, list[dict]]:
    """Return one state and its rows."""
    case = make_case(vlm, shape, frames)
    rows = Rows(case, rounds)
    done = [rows.text(), rows.choice(), rows.standing(), rows.repeated_choice(), rows.repeated_text()]
    state = {
        'frames': frames,
        **state_bytes(case.state),
        **medians('full', rows.builds.runs),
        'snapshot_restore_ms': median(snapshot_restore_ms(case) for _ in range(rounds)),
    }
    old = [kept.frame for kept in case.state.frames]
    refreshes, told_apart = replace_newest(case, FEW_RUNS)
    new = [kept.frame for kept in case.state.frames]
    done[0]['peers'] = Peers(case, old, new, told_apart).measure(rows.answer)
    state |= medians('frame', refreshes)
    done += [rows.changed(), *map(rows.changed_patch, CHANGED_CELLS)]
    return state, [{'frames': frames, **row} for row in done]


def worst(result: dict) -> dict:
    """Return the worst value of each promise over all rows, named with its limit."""
    states = result['states']
    most = max(state['frames'] for state in states)

    def rows(*names: str, **fields: Any) -> list[dict]:
        return [
            row
            for row in result['rows']
            if (not names or row['row'] in names) and all(row[name] == value for name, value in fields.items())
        ]

    def extreme(best: Any, field: str, chosen: list[dict]) -> Any:
        return best((row[field] for row in chosen if row[field] is not None), default=None)

    one_pass = rows('choice', 'changed', 'changed_patch', 'standing_10')
    compared = [row for row in result['rows'] if row['equal_to_cold'] is not None]
    differences = [row for row in result['rows'] if row['noise_floor'] is not None]
    choice_ms = {(row['shape'], row['frames']): row['warm_ms'] for row in rows('choice')}
    at_8 = [state['frame_cpu_ms'] / state['full_cpu_ms'] for state in states if state['frames'] == 8]
    weighty = {'shape': 'weight_bound'}
    return {
        'passes of a choice, changed, changed_patch or standing_10, most (limit 1)': extreme(max, 'passes', one_pass),
        'passes of repeated_text, most (limit 1)': extreme(max, 'passes', rows('repeated_text')),
        'passes of repeated_choice, most (limit 0)': extreme(max, 'passes', rows('repeated_choice')),
        'answers equal to cold, share of rows (limit 1)': sum(row['equal_to_cold'] for row in compared) / len(compared),
        f'log-prob difference / its noise floor, largest (limit {noise.FACTOR:g})': max(
            row['max_logprob_difference'] / row['noise_floor'] for row in differences
        ),
        **{
            f'warm / floor of {name}, largest (limit 1.10)': extreme(max, 'warm_over_floor', rows(name))
            for name in ('text', 'choice', 'standing_10', 'repeated_text', 'changed', 'changed_patch')
        },
        **{
            f'cold / warm of choice, {shape} at {frames} pictures (limit at least {limit})': extreme(
                min, 'speedup', rows('choice', shape=shape, frames=frames)
            )
            for shape, frames, limit in (('gemma4', 8, 25), ('gemma4', 32, 80), ('qwen2_5_vl', 20, 80))
        },
        'in turn / warm of changed_patch, weight_bound, least (limit at least 2.5)': extreme(
            min, 'in_turn_over_warm', rows('changed_patch', **weighty)
        ),
        'one by one / warm of standing_10, weight_bound (limit at least 6)': extreme(
            min, 'one_by_one_over_warm', rows('standing_10', **weighty)
        ),
        'snapshot + restore / warm choice, largest (limit 0.01)': max(
            state['snapshot_restore_ms'] / choice_ms[state['shape'], state['frames']] for state in states
        ),
        'frame / full at 8 pictures, largest (limit 0.167)': max(at_8, default=None),
        f'held / (1.1 x K and V the tokens need + rings) at {most} pictures, largest (limit 1)': max(
            state['held_bytes'] / (1.1 * state['needed_bytes'] + state['ring_bytes'])
            for state in states
            if state['frames'] == most
        ),
        'noise: the same arm twice, least ratio': extreme(min, 'noise', result['rows']),
        'noise: the same arm twice, largest ratio': extreme(max, 'noise', result['rows']),
    }


COLUMNS = (
    ('shape', 12),
    ('pictures', 8),
    ('row', 15),
    ('passes', 6),
    ('cold', 8),
    ('in turn', 8),
    ('warm', 8),
    ('floor', 8),
    ('cold/warm', 9),
    ('turn/warm', 9),
    ('warm/floor', 10),
    ('noise', 6),
    ('equal', 5),
    *((f'{name}/warm', len(name) + 9) for name in PEERS),
)


def line(row: dict) -> str:
    """Return a row of the table: processor times. A peer is marked wrong or, after a new picture, stale."""

    def peer(name: str) -> str:
        entry = row['peers'].get(name)
        if entry is None:
            return ''
        if entry['ms'] is None:
            return 'cannot'
        wrong = '' if entry['answer_right'] else ' wrong'
        stale = ' stale' if entry['answer_right_after_new_picture'] is False else ''
        return f'{entry["cpu_ms"] / row["warm_cpu_ms"]:.1f}{wrong}{stale}'

    def number(value: float | None, digits: int) -> str:
        return '' if value is None else f'{value:.{digits}f}'

    in_turn = 'one_by_one' if row['row'] == 'standing_10' else 'in_turn'
    cells = f' {row["changed_cells"]}' if row['changed_cells'] else ''
    values = (
        row['shape'],
        row['frames'],
        row['row'] + cells,
        row['passes'],
        *(number(row[f'{arm}_cpu_ms'], 2) for arm in ('cold', in_turn, 'warm', 'floor')),
        number(row['speedup'], 1),
        number(row[f'{in_turn}_over_warm'], 2),
        number(row['warm_over_floor'], 2),
        number(row['noise'], 2),
        {True: 'yes', False: 'NO', None: ''}[row['equal_to_cold']],
        *map(peer, PEERS),
    )
    return '  '.join(str(value).rjust(width) for value, (_, width) in zip(values, COLUMNS))


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--shapes', nargs='+', choices=SHAPES, default=list(SHAPES), help='default: all')
    parser.add_argument(
        '--frames', nargs='+', type=int, default=[1, 8, 20, 32], help='pictures in the state; default: %(default)s'
    )
    parser.add_argument('--rounds', type=int, default=9, help='runs of each arm; default: %(default)s')
    parser.add_argument('--tiny', action='store_true', help="the tests' models: to try this program, not to time")
    parser.add_argument('--output', type=Path, default=OUTPUT, help='the JSON file; default: %(default)s')
    return parser


def main(argv: list[str] | None = None) -> int:
    """Measure, print the table and the JSON line, and write the file."""
    arguments = build_parser().parse_args(argv)
    started_s = time.perf_counter()
    cv2.setNumThreads(1)
    result: dict[str, Any] = {'rows': [], 'states': [], 'shapes': {}}
    print('processor milliseconds\n' + '  '.join(title.rjust(width) for title, width in COLUMNS), flush=True)
    for name in arguments.shapes:
        shape = SHAPES[name]
        with tempfile.TemporaryDirectory() as folder:
            vlm = loading.load(str(shape.write(Path(folder) / name, arguments.tiny)))
        for frames in shape.frames or arguments.frames:
            state, rows = measure(vlm, shape, frames, arguments.rounds)
            result['states'].append({'shape': name, **state})
            result['rows'] += [{'shape': name, **row} for row in rows]
            print(*(line({'shape': name, **row}) for row in rows), sep='\n', flush=True)
        result['shapes'][name] = {
            'parameters': parameter_count(vlm),
            'text_bytes': text_bytes(vlm),
            'cells': vlm.see(picture(0, size=(SIDE_PX, SIDE_PX)).rgb)[1].cells,
            'passes': pass_times(make_case(vlm, shape, 1), arguments.rounds),
        }
    result['machine'] = {
        'wall_over_processor': median(row['warm_ms'] / row['warm_cpu_ms'] for row in result['rows']),
        **{name: os.environ.get(name) for name in ('OPENBLAS_NUM_THREADS', 'OPENBLAS_CORETYPE')},
        'minutes': (time.perf_counter() - started_s) / 60,
    }
    result['worst'] = worst(result)
    for name, value in result['worst'].items():
        print(f'{name}: {"not measured" if value is None else f"{value:.4g}"}')
    publish(result, arguments.output)
    return 0


if __name__ == '__main__':
    sys.exit(main())
