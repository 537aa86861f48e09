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

"""Total work and latency against cold-dense, over changing pictures and patterns of questions.

Every row is one stream of pictures and questions, played to a session in simulated time (economy_stream.py). Each
question, or 16 of a longer stream, is answered cold-dense beside it, on the same pictures in the same run. The rows are
played in random order.

policy      exact and patch: refresh_policy, with max_lag_s; eager and eager_patch: every changed picture at once,
            asked or not; cold: cold-dense itself
work_ratio  processor time of the model, divided by that of cold-dense on the same questions
work_tokens_ratio  tokens through all stages, divided likewise: the same in every run, up to when upkeep fits in
latency_ms  from the question to the answer, waiting included, in processor time
warm_share  answers within half of cold-dense's median latency
choice_drift  share of these answers that differ from cold-dense on the newest picture
remembered_share  answers to a question that the same state had answered before. They cost nothing and are in all other
            figures. There are few: the planners have 36 questions, and ask them in turn
"""

import argparse
import random
import sys
import time
from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path
from statistics import median

import numpy as np
from economy_stream import Stream, Tally, question_times, timed_frames
from results import publish

from vlm_reuse_node.config import Config
from vlm_reuse_node.demo.bag import draw_frames
from vlm_reuse_node.demo.tabletop import SHAPES, Sensor, Tabletop, random_things, sense
from vlm_reuse_node.demo.words import ANY, WORDINGS, names
from vlm_reuse_node.model import loading
from vlm_reuse_node.model.vlm import Vlm
from vlm_reuse_node.replay.bag import Bag
from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.session.question import Question

OUTPUT = Path(__file__).parents[1] / 'out' / 'bench' / 'economy.json'
RATES = (0.1, 0.5, 1.0, 5.0)
CAMERAS_HZ = (10.0, 30.0)
HISTORIES = (0, 8)
POLICIES = (
    ('exact', 0.0),
    ('exact', 2.0),
    ('patch', 0.0),
    ('patch', 2.0),
    ('eager', 0.0),
    ('eager_patch', 0.0),
)


def _questions(number: int) -> tuple[Question, ...]:
    """A question of each of three kinds, another one for each number below 12."""
    count, colour = (WORDINGS[topic][number % len(WORDINGS[topic])] for topic in ('count all', 'colour'))
    return (
        Question(f'{count.format(any=ANY[number // len(WORDINGS["count all"])])} ?', choices=('1', '2', '3', '4')),
        Question(f'is there a {names()[2 * number]} ?', choices=('yes', 'no')),
        Question(f'{colour.format(SHAPES[number % len(SHAPES)])} ?', choices=('red', 'green', 'blue', 'yellow')),
    )


QUESTIONS = tuple(question for number in range(12) for question in _questions(number))
FEWEST_QUESTIONS = 6  # expected in a stream; one of rare questions is longer than the others
SIZE = (480, 640)
COLUMNS = ('recording', 'camera_hz', 'questions_per_s', 'pattern', 'history_frames', 'policy', 'max_lag_s')
FIGURES = (
    'work_ratio',
    'work_tokens_ratio',
    'latency_ms_p50',
    'latency_ms_p95',
    'warm_share',
    'choice_drift',
    'remembered_share',
)


def moving_scene(seconds: float, rate_hz: float) -> list[Frame]:
    """A scene that changes all the time: one thing circles over the table."""
    rng = np.random.default_rng(1)
    table, things = Tabletop(rng, SIZE[1], SIZE[0]), random_things(rng, 3)
    frames = []
    for number in range(round(seconds * rate_hz)):
        angle = 2 * np.pi * number / rate_hz / 6
        mover = things[0].__class__(**{**vars(things[0]), 'x': 168 + 90 * np.cos(angle), 'y': 126 + 60 * np.sin(angle)})
        rgb = sense(table.picture((*things[1:], mover)), Sensor(), np.random.default_rng((7, number)))
        frames.append(Frame(rgb, round(number / rate_hz * 1e9)))
    return frames


def recordings(paths: Iterable[Path], seconds: float, rate_hz: float) -> dict[str, list[Frame]]:
    """The built-in scenes, and the first camera of each recording."""
    _, story = draw_frames(5, seconds, rate_hz, SIZE[1], SIZE[0])
    found = {'tabletop': list(story), 'moving': moving_scene(seconds, rate_hz)}
    for path in paths:
        bag = Bag(path)
        try:
            camera = bag.topics[0].camera
            frames = []
            for frame in bag.frames():
                if bag.at_s(frame) > seconds:
                    break
                if frame.camera == camera:
                    frames.append(frame)
        finally:
            bag.close()
        found[path.stem] = frames
    return found


def config_of(policy: str, max_lag_s: float, history: int) -> Config:
    """The configuration of a policy."""
    return Config(
        refresh_policy='patch' if 'patch' in policy else 'exact',
        max_lag_s=max_lag_s,
        history_frames=history,
    )


def row_of(cell: dict, tally: Tally, wall_s: float) -> dict:
    """The figures of one stream."""
    latencies = tally.latencies_ms
    return cell | {
        'work_ratio': tally.work.ms / tally.cold_ms,
        'work_tokens_ratio': tally.work.tokens / tally.cold_tokens,
        'latency_ms_p50': median(latencies),
        'latency_ms_p95': float(np.percentile(latencies, 95)),
        'warm_share': tally.warm_share,
        'choice_drift': tally.drifted / len(tally.cold_latencies_ms),
        'remembered_share': tally.remembered / len(latencies),
        'questions': len(latencies),
        'cold_latency_ms_p50': median(tally.cold_latencies_ms),
        'lag_s_mean': sum(tally.lags_s) / len(latencies),
        'work_ms': tally.work.ms,
        'cold_ms': tally.cold_ms,
        'compared': len(tally.cold_latencies_ms),
        'change_ms_per_look': tally.change_ms / max(1, tally.looks),
        'wall_s': wall_s,
    }


def cold_row(cell: dict, tally: Tally) -> dict:
    """The row of cold-dense, from the answers beside a policy."""
    latencies = tally.cold_latencies_ms
    return cell | {
        'policy': 'cold',
        'work_ratio': 1.0,
        'work_tokens_ratio': 1.0,
        'latency_ms_p50': median(latencies),
        'latency_ms_p95': float(np.percentile(latencies, 95)),
        'warm_share': 0.0,
        'choice_drift': 0.0,
        'remembered_share': 0.0,
        'questions': len(latencies),
    }


def length_s(seconds: float, rate: float) -> float:
    """Length of a stream: long enough for some questions."""
    return max(seconds, FEWEST_QUESTIONS / rate)


def measure(
    vlm: Vlm, sources: dict[float, dict[str, list[Frame]]], cells: Sequence[dict], seconds: float, seed: int
) -> list[dict]:
    """Play every cell, in random order."""
    vlm.meter.clock = time.process_time
    order = list(cells)
    random.Random(seed).shuffle(order)
    rows = []
    for number, cell in enumerate(order):
        frames = list(timed_frames(sources[cell['camera_hz']][cell['recording']], cell['camera_hz']))
        frames = [(at_s, frame) for at_s, frame in frames if at_s <= length_s(seconds, cell['questions_per_s'])]
        rng = np.random.default_rng((seed, round(10 * cell['questions_per_s'])))  # the same questions for each policy
        times = question_times(cell['pattern'], cell['questions_per_s'], frames[-1][0], rng)
        questions = [(at_s, QUESTIONS[index % len(QUESTIONS)]) for index, at_s in enumerate(times)]
        if not questions:
            continue
        config = config_of(cell['policy'], cell['max_lag_s'], cell['history_frames'])
        started_s = time.perf_counter()
        tally = Stream(vlm, config, is_eager='eager' in cell['policy']).play(frames, questions)
        row = row_of(cell, tally, time.perf_counter() - started_s)
        rows.append(row)
        if cell['policy'] == 'exact' and not cell['max_lag_s']:
            rows.append(cold_row(cell, tally))
        print(f'{number + 1}/{len(order)}', line_of(row), file=sys.stderr, flush=True)
    return sorted(rows, key=lambda row: [str(row[column]) for column in COLUMNS])


def line_of(row: dict) -> str:
    """One row of the table, for people."""
    what = [f'{row[column]!s:>9}' for column in COLUMNS]
    return ' '.join((*what, *(f'{row[figure]:9.3f}' for figure in FIGURES), f'{row["questions"]:6d}'))


def build_parser() -> argparse.ArgumentParser:
    """Arguments of the program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('recordings', nargs='*', type=Path, help='bags to play beside the built-in scenes')
    parser.add_argument('--model', default='tabletop', help='a model directory, or tabletop')
    parser.add_argument('--seconds', type=float, default=20.0, help='length of a stream, longer at rare questions')
    parser.add_argument('--rates', type=float, nargs='+', default=RATES, help='questions a second')
    parser.add_argument('--cameras', type=float, nargs='+', default=CAMERAS_HZ, help='pictures a second')
    parser.add_argument('--histories', type=int, nargs='+', default=HISTORIES, help='keyframes')
    parser.add_argument('--patterns', nargs='+', default=('poisson',), choices=('steady', 'poisson', 'burst'))
    parser.add_argument(
        '--policies', nargs='+', default=[name for name, _ in POLICIES], help='exact, patch, eager, ...'
    )
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--out', type=Path, default=OUTPUT)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Measure, print the table, and write the rows."""
    arguments = build_parser().parse_args(argv)
    vlm = loading.load(arguments.model)
    longest_s = length_s(arguments.seconds, min(arguments.rates))
    sources = {hz: recordings(arguments.recordings, longest_s, hz) for hz in arguments.cameras}
    names = sources[arguments.cameras[0]]
    cells = [
        dict(zip(COLUMNS, (name, hz, rate, pattern, history, policy, lag_s)))
        for name, hz, rate, pattern, history, (policy, lag_s) in product(
            names, arguments.cameras, arguments.rates, arguments.patterns, arguments.histories, POLICIES
        )
        if policy in arguments.policies
    ]
    rows = measure(vlm, sources, cells, arguments.seconds, arguments.seed)
    print(' '.join(f'{name[:9]:>9}' for name in (*COLUMNS, *FIGURES)), 'questions')
    print('\n'.join(map(line_of, rows)))
    publish({'seconds': arguments.seconds, 'model': vlm.name, 'rows': rows}, arguments.out)
    return 0


if __name__ == '__main__':
    sys.exit(main())
