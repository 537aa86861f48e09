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

"""What a follow-up question costs: cold, from the kept state, through mlx-vlm, and at the least.

One process, one set of weights (random, `shapes.py`), one arm after the other, on the same pictures and questions:

cold   image processor, vision tower, prefill of everything, decode (`SceneSession.ask_cold`)
warm   the kept state, the whole call (`SceneSession.ask`)
floor  forward of the question's tokens, then of the answer's, on a ready cache, nothing else. That cache is a copy
       which no snapshot shares, so that the first write behind a snapshot, which copies, counts against warm. A choice
       has as many forward calls as `Vlm.score` makes: one for all, or one for each where the model takes no mask
peers  mlx-vlm's `generate` cold; with `PromptCacheState`; with APC. For the last two, one untimed run has answered
       another question about the same pictures and filled their caches. Their follow-ups are checked, and timed until
       one is slow, at most three times

A question has 12 tokens behind the snapshot, the end of the chat template included; a text has 8 tokens, chosen
greedily. Warm and floor alternate and are medians. Cold is the median of three runs at one or two pictures, and one run
where it takes longer. Peers answer in text only: mlx-vlm does not score choices, so choice rows have no peers.

Written as JSON, times in milliseconds, `null` for what was not measured:
rows    a question on a state: cold_ms, warm_ms, floor_ms, speedup (cold / warm), warm_over_floor, snapshot_restore_ms
        (`kv_cache.take` and `restore`) and its share of warm_ms, equal_to_cold (the answer's tokens; of a choice the
        index), max_logprob_difference (between warm and cold), noise_floor (the largest difference between cold runs
        that only rounding explains, see `model/noise.py`: the pictures' features moved by one unit in the last place,
        and two chunk grids: the state's own, and half a picture's tokens; noise_grids). peers: by name ms,
        tokens_reused, answer_right (equal to generate's cold tokens), answer_right_after_new_picture (the newest
        picture replaced by another one of its size, and the other question asked again), and a reason where something
        is missing
states  a number of pictures: frame_ms (a new picture in the newest one's place, `Level.FRAME`), full_ms (everything
        from nothing), held_bytes (cache and snapshots, after questions; flat layers grow by 256 tokens at a time, which
        shows at few pictures), needed_bytes (K and V that the prompt's tokens need; of a sliding layer at most its
        window), ring_bytes (the sliding layers' part of that), features_bytes (of the pictures, beside the cache)
shapes  parameters, cells of a picture
worst   the worst value of each promise over all rows, as printed at the end
"""

import argparse
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from followup_case import (
    FEW_RUNS,
    QUESTION_TOKENS,
    SIDE_PX,
    ColdBuildTimer,
    FollowupCase,
    make_case,
    replace_newest,
    state_bytes,
)
from followup_floor import floor_choice, floor_text, log_probabilities, noise_floor, snapshot_restore_ms
from followup_peers import PEERS, Peers
from results import publish
from shapes import SHAPES, parameter_count
from timing import timed
from tiny_model import picture

from vlm_reuse_node.model import loading, noise
from vlm_reuse_node.model import vlm as vlms
from vlm_reuse_node.model.vlm import Vlm
from vlm_reuse_node.session.answer import Answer

OUTPUT = Path(__file__).parents[1] / 'out' / 'bench' / 'followup.json'
CHOICES = ('red', 'green', 'blue', 'yellow')


def time_warm_and_floor(case: FollowupCase, choices: tuple[str, ...], repeats: int) -> tuple[float, float, Answer]:
    """Return medians of both in milliseconds, and the warm answer. Raises RuntimeError when the answers differ."""
    warm_times = []
    floor_times = []
    for _ in range(repeats + 1):
        warm_ms, answer = timed(lambda: case.ask(case.question, choices))
        warm_times.append(warm_ms)
        if choices:
            floor_times.append(floor_choice(case, choices))
            continue
        floor_ms, tokens = floor_text(case)
        floor_times.append(floor_ms)
        if tokens != list(answer.token_ids):
            raise RuntimeError(f'The floor answers {tokens}, the session {answer.token_ids}.')
    return median(warm_times[1:]), median(floor_times[1:]), answer  # the first one warms up


def measure_question(
    case: FollowupCase, choices: tuple[str, ...], builds: ColdBuildTimer, grids: list[int], repeats: int
) -> dict:
    """Return one row. grids: most tokens of a call, as usual and for another cold run."""
    warm_ms, floor_ms, answer = time_warm_and_floor(case, choices, repeats)
    cold = [timed(lambda: case.ask(case.question, choices, cold=True)) for _ in range(case.cold_runs)]
    cold_ms = median(ms for ms, _ in cold)
    if builds.newest is None:
        raise RuntimeError('The cold answers computed no state.')
    warm_table = log_probabilities(case, case.state, answer, choices)
    cold_table = log_probabilities(case, builds.newest, answer, choices)
    kept_ms = median(snapshot_restore_ms(case) for _ in range(repeats))
    return {
        'question': 'choice' if choices else 'text',
        'prompt_tokens': case.state.tokens + QUESTION_TOKENS,
        'question_tokens': answer.tokens_prefilled - sum(map(len, case.state.template.choices(choices))),
        'answer_tokens': answer.tokens_generated,
        'cold_ms': cold_ms,
        'warm_ms': warm_ms,
        'floor_ms': floor_ms,
        'speedup': cold_ms / warm_ms,
        'warm_over_floor': warm_ms / floor_ms,
        'equal_to_cold': all(
            (answer.token_ids, answer.choice_index) == (each.token_ids, each.choice_index) for _, each in cold
        ),
        'max_logprob_difference': noise.apart(warm_table, cold_table),
        'noise_floor': noise_floor(case, answer, choices, grids),
        'snapshot_restore_ms': kept_ms,
        'snapshot_restore_share': kept_ms / warm_ms,
        'peers': {},
    }


def measure(vlm: Vlm, frames: int, repeats: int) -> tuple[dict, list[dict]]:
    """Return one state and its rows."""
    case = make_case(vlm, frames)
    grids = [vlms.PREFILL_CHUNK, case.state.live.grid.cells // 2]
    builds = ColdBuildTimer(case.session)
    rows = [measure_question(case, choices, builds, grids, repeats) for choices in ((), CHOICES)]
    state = {'frames': frames, **state_bytes(case.state), 'full_ms': median(builds.times_ms)}
    ours = case.ask(case.question)
    old = [kept.frame for kept in case.state.frames]
    frame_ms, told_apart = replace_newest(case, FEW_RUNS)
    new = [kept.frame for kept in case.state.frames]
    rows[0]['peers'] = Peers(case, old, new, told_apart).measure(ours)
    return state | {'frame_ms': frame_ms}, [{'frames': frames, **row, 'noise_grids': grids} for row in rows]


def worst(result: dict) -> dict:
    """Return the worst value of each promise over all rows, named with its limit."""
    rows = result['rows']
    states = result['states']
    most = max(state['frames'] for state in states)
    at_8 = [state['frame_ms'] / state['full_ms'] for state in states if state['frames'] == 8]
    return {
        'answers equal to cold, share of rows (limit 1)': sum(row['equal_to_cold'] for row in rows) / len(rows),
        f'log-prob difference warm-cold / its noise floor, largest (limit {noise.FACTOR:g})': max(
            row['max_logprob_difference'] / row['noise_floor'] for row in rows
        ),
        'warm / floor, largest (limit 1.10)': max(row['warm_over_floor'] for row in rows),
        'snapshot + restore / warm, largest (limit 0.01)': max(row['snapshot_restore_share'] for row in rows),
        'frame / full at 8 pictures, largest (limit 0.167)': max(at_8, default=None),
        f'held / (1.1 x K and V the tokens need + rings) at {most} pictures, largest (limit 1)': max(
            state['held_bytes'] / (1.1 * state['needed_bytes'] + state['ring_bytes'])
            for state in states
            if state['frames'] == most
        ),
    }


COLUMNS = (
    ('shape', 11),
    ('pictures', 8),
    ('question', 8),
    ('cold ms', 9),
    ('warm ms', 9),
    ('floor ms', 9),
    ('cold/warm', 9),
    ('warm/floor', 10),
    ('equal', 5),
    *((f'{name}/warm', len(name) + 9) for name in PEERS),
)


def line(row: dict) -> str:
    """Return a row of the table. A peer is marked wrong or, after the newest picture was replaced, stale."""

    def peer(name: str) -> str:
        entry = row['peers'].get(name)
        if entry is None:
            return 'no choices'
        if entry['ms'] is None:
            return 'cannot'
        wrong = '' if entry['answer_right'] else ' wrong'
        stale = ' stale' if entry['answer_right_after_new_picture'] is False else ''
        return f'{entry["ms"] / row["warm_ms"]:.1f}{wrong}{stale}'

    values = (
        row['shape'],
        row['frames'],
        row['question'],
        f'{row["cold_ms"]:.1f}',
        f'{row["warm_ms"]:.1f}',
        f'{row["floor_ms"]:.1f}',
        f'{row["speedup"]:.1f}',
        f'{row["warm_over_floor"]:.2f}',
        'yes' if row['equal_to_cold'] else 'NO',
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
    parser.add_argument('--repeats', type=int, default=5, help='warm and floor runs of each; default: %(default)s')
    parser.add_argument('--tiny', action='store_true', help="the tests' models: to try this program, not to time")
    parser.add_argument('--output', type=Path, default=OUTPUT, help='the JSON file; default: %(default)s')
    return parser


def main(argv: list[str] | None = None) -> int:
    """Measure, print the table and the JSON line, and write the file."""
    arguments = build_parser().parse_args(argv)
    result: dict[str, Any] = {'rows': [], 'states': [], 'shapes': {}}
    print('  '.join(title.rjust(width) for title, width in COLUMNS), flush=True)
    for shape in arguments.shapes:
        with tempfile.TemporaryDirectory() as folder:
            vlm = loading.load(str(SHAPES[shape](Path(folder) / shape, arguments.tiny)))
        for frames in arguments.frames:
            state, rows = measure(vlm, frames, arguments.repeats)
            result['states'].append({'shape': shape, **state})
            result['rows'] += [{'shape': shape, **row} for row in rows]
            print(*(line({'shape': shape, **row}) for row in rows), sep='\n', flush=True)
        result['shapes'][shape] = {
            'parameters': parameter_count(vlm),
            'cells': vlm.see(picture(0, size=(SIDE_PX, SIDE_PX)).rgb)[1].cells,
        }
    result['worst'] = worst(result)
    for name, value in result['worst'].items():
        print(f'{name}: {"not measured" if value is None else f"{value:.4g}"}')
    publish(result, arguments.output)
    return 0


if __name__ == '__main__':
    sys.exit(main())
