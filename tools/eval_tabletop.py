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

"""How well the embedded model sees: exact answers on held-out scenes, by question type, and under perturbations.

Pictures are drawn at 640 x 480 and go through the model's own image processor. Answers are decoded greedily by the code
that the node runs. The seeds are not those of the training.

  python tools/eval_tabletop.py [--model tabletop] [--scenes 170] [--out out/eval_tabletop.json]
"""

import argparse
import json
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from tqdm import tqdm

from vlm_reuse_node.demo import story, tabletop
from vlm_reuse_node.demo.questions import TabletopQuestion, single_question, window_question
from vlm_reuse_node.demo.words import SINGLE_KINDS, WINDOW_KINDS
from vlm_reuse_node.model import loading
from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.session import state as states
from vlm_reuse_node.session.encoded_frame import EncodedFrame

HELD_OUT = 990_000_007
PLAIN = tabletop.Sensor()
PERTURBED = {
    'noise 8': tabletop.Sensor(noise=8.0),
    'jpeg 60': tabletop.Sensor(jpeg_quality=60),
    'brightness -15 %': tabletop.Sensor(brightness=0.85),
    'brightness +15 %': tabletop.Sensor(brightness=1.15),
}
MAX_TOKENS = 24


@dataclass(frozen=True)
class ExamAnswer:
    """One question, asked in a prompt of `frames` pictures, and whether its answer was exactly right."""

    group: str
    kind: str
    frames: int
    text: str
    wanted: str
    given: str

    @property
    def is_right(self) -> bool:
        """Word for word."""
        return self.given == self.wanted


def draw(
    rng: np.random.Generator, frames: int, sensor: tabletop.Sensor
) -> tuple[list[Frame], list[tuple[tabletop.Thing, ...]]]:
    """Return pictures of one table over time, and the things in each; one or two events happen within a window."""
    table = tabletop.Tabletop(rng)
    scenes = [tabletop.random_things(rng, int(rng.integers(1, tabletop.MOST_THINGS + 1)))]
    changes = rng.integers(1, max(frames, 2), size=2)
    for number in range(1, frames):
        things = scenes[-1]
        for _ in range(int((changes == number).sum())):
            things = story.after_event(rng, things, story.EVENTS[rng.integers(3)]) or things
        scenes.append(things)
    return [Frame(tabletop.sense(table.picture(things), sensor, rng)) for things in scenes], scenes


class Examiner:
    """Asks one model about scenes, and keeps every answer.

    rows: the answers so far.
    """

    def __init__(self, model: str) -> None:
        """Load the model."""
        self.vlm = loading.load(model)
        self.template_for = cache(lambda pictures: self.vlm.template('', pictures))
        self.rows: list[ExamAnswer] = []

    def examine(self, group: str, frames: list[Frame], asked: list[TabletopQuestion]) -> None:
        """Ask all questions about these pictures, each from the same restored state."""
        state = states.build(self.vlm, self.template_for, [EncodedFrame.see(self.vlm, frame) for frame in frames])
        for question in asked:
            tokens = state.template.question(question.text)
            start = state.next_position
            logits = self.vlm.run(state.cache, tokens, self.vlm.family.text_positions(start, len(tokens)))
            ids = self.vlm.decode(state.cache, logits, start + len(tokens), MAX_TOKENS)
            state.restore()
            self.rows.append(
                ExamAnswer(group, question.kind, len(frames), question.text, question.answer, self.vlm.text(ids))
            )


def singles(rng: np.random.Generator, things: tuple[tabletop.Thing, ...]) -> list[TabletopQuestion]:
    """Return one question of every kind that the scene allows."""
    asked = [single_question(rng, things, kind) for kind in SINGLE_KINDS]
    return [question for question in asked if question]


def windows(
    rng: np.random.Generator, first: tuple[tabletop.Thing, ...], last: tuple[tabletop.Thing, ...]
) -> list[TabletopQuestion]:
    """Return one question of every kind about what changed."""
    asked = [window_question(rng, first, last, kind) for kind in WINDOW_KINDS]
    return [question for question in asked if question]


def examine_all(examiner: Examiner, scenes: int) -> None:
    """Ask about single pictures, windows of 2 to 4, the newest of 8, and perturbed single pictures."""
    plan: list[tuple[str, int | None, tabletop.Sensor, int]] = [
        ('single', 1, PLAIN, scenes),
        ('window', None, PLAIN, scenes),
        ('newest of 8', 8, PLAIN, scenes // 8),
    ]
    plan += [(name, 1, sensor, scenes // 3) for name, sensor in PERTURBED.items()]
    with tqdm(total=sum(number for *_, number in plan), unit='scene', disable=None) as progress:
        for group, frames, sensor, number in plan:
            for index in range(number):
                # The perturbed pictures show the same scenes as the plain ones.
                rng = np.random.default_rng((HELD_OUT, index, 1 if frames == 1 else 2 if frames is None else 3))
                drawn, told = draw(rng, frames or int(rng.integers(2, 5)), sensor)
                asked = windows(rng, told[0], told[-1]) if group == 'window' else singles(rng, told[-1])
                examiner.examine(group, drawn, asked)
                progress.update()


def count(rows: list[ExamAnswer]) -> dict:
    """Return the number of questions, and the share that was answered exactly right."""
    right = sum(row.is_right for row in rows)
    return {'n': len(rows), 'right': right, 'accuracy': right / len(rows) if rows else None}


def summarise(rows: list[ExamAnswer]) -> dict:
    """Return the figures of `out/eval_tabletop.json`; by_type has single pictures and windows, unperturbed."""
    group: dict[str, list[ExamAnswer]] = defaultdict(list)
    kinds: dict[str, list[ExamAnswer]] = defaultdict(list)
    for row in rows:
        group[row.group].append(row)
        if row.group in ('single', 'window'):
            kinds[row.kind].append(row)
    return {
        'single': count(group['single']),
        'window': count(group['window']),
        'newest_of_8': count(group['newest of 8']),
        'by_type': {kind: count(kinds[kind]) for kind in kinds},
        'perturbed': {name: count(group[name]) for name in PERTURBED},
        'questions': len(rows),
    }


def lines_of(summary: dict) -> list[tuple[str, dict, str]]:
    """Return name, counts and share in percent, in the order of the table."""
    lines = [
        ('single picture', summary['single']),
        ('window of 2 to 4 pictures', summary['window']),
        ('newest of 8 pictures', summary['newest_of_8']),
    ]
    lines += [(f'  {kind}', counted) for kind, counted in summary['by_type'].items()]
    lines += [(f'with {name}', counted) for name, counted in summary['perturbed'].items()]
    return [(name, counted, _percent(counted)) for name, counted in lines]


def _percent(counted: dict) -> str:
    """One digit behind the point; 0 and 100 % only where they are exact."""
    if not counted['n']:
        return '-'
    exact = counted['right'] in (0, counted['n'])
    return f'{counted["accuracy"] * 100 if exact else min(99.9, max(0.1, counted["accuracy"] * 100)):.1f} %'


def print_table(summary: dict) -> None:
    """Print the figures for people."""
    print(f'{"":30}{"right":>7}{"asked":>7}{"exact":>9}')
    for name, counted, share in lines_of(summary):
        print(f'{name:30}{counted["right"]:7}{counted["n"]:7}{share:>9}')


def write_card(summary: dict, card: Path) -> None:
    """Put the figures into the model card, between its two marks."""
    before, rest = card.read_text().split('<!-- accuracy -->')
    _, after = rest.split('<!-- /accuracy -->')
    rows = [
        f'| {name.strip()} | {counted["n"]} | {counted["right"]} | {share} |'
        for name, counted, share in lines_of(summary)
    ]
    table = '\n'.join(['| questions | asked | right | exact |', '|---|---|---|---|', *rows])
    card.write_text(f'{before}<!-- accuracy -->\n{table}\n<!-- /accuracy -->{after}')


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--model', default='tabletop', help="'tabletop' or a model directory")
    parser.add_argument('--scenes', type=int, default=170, help='scenes of single pictures; the rest in proportion')
    parser.add_argument('--out', type=Path, default=Path('out/eval_tabletop.json'))
    parser.add_argument('--card', type=Path, help='a model card to put the figures into')
    parser.add_argument('--show-wrong', type=int, default=0, metavar='N', help='print N wrong answers')
    return parser


def main(argv: list[str] | None = None) -> int:
    """Examine, print the table, write the figures."""
    args = build_parser().parse_args(argv)
    examiner = Examiner(args.model)
    started = time.perf_counter()
    examine_all(examiner, args.scenes)
    summary = summarise(examiner.rows)
    print_table(summary)
    wrong = [row for row in examiner.rows if not row.is_right]
    for row in wrong[: args.show_wrong]:
        print(f'  {row.group}, {row.kind}: {row.text}? given: {row.given!r}, right: {row.wanted!r}')
    if args.card:
        write_card(summary, args.card)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(summary, indent=1) + '\n')
    print(f'{len(examiner.rows)} questions in {time.perf_counter() - started:.0f} s; figures in {args.out}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
