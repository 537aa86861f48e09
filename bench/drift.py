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

"""How often a cheap refresh changes an answer: the embedded model on held-out tabletops, paired with cold-dense.

A sequence is one tabletop. From picture to picture a thing appears, leaves, moves or changes its colour; where there is
no room, nothing happens. Every policy is a `SceneSession` that sees all pictures of a sequence and is asked every
question with choices that the scene allows. The reference computes the same picture alone, whole and from nothing. The
seeds are not those of the training. Printed and written for each policy:

questions, drifted    number asked, and number answered otherwise than by the reference
choice_drift          their ratio, and choice_drift_upper95, the upper end of its exact two-sided 95 % interval
accuracy              share of right answers, beside cold_accuracy, that of the reference on the same questions
escalated             share of the questions that were answered twice
remembered            share that the same state had answered before, for an unchanged picture; they cost nothing
levels                how many pictures took which level
cells                 mean share of cells that a picture paid for; 0 for reused pictures
refresh_ms, answer_ms processor time of looking at a picture, and of one question about it, escalation included;
                      ms_per_question is their sum: one question on every picture
thresholds            where nothing was escalated: what each min_confidence would escalate, and the drift it would leave
"""

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from vlm_reuse_node.config import Config
from vlm_reuse_node.demo import story, tabletop
from vlm_reuse_node.demo.questions import TabletopQuestion, single_question
from vlm_reuse_node.demo.words import SINGLE_KINDS
from vlm_reuse_node.model import loading
from vlm_reuse_node.model.vlm import Vlm
from vlm_reuse_node.replay.bounds import share_bounds
from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.session.answer import Answer, Status
from vlm_reuse_node.session.question import Question
from vlm_reuse_node.session.scene_session import SceneSession

HELD_OUT = 990_000_011
SEQUENCES = 45
PICTURES = 9  # of each
INTERVAL_NS = 500_000_000
THRESHOLDS = (0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
PATIENT = Config(max_age_s=3600.0, timeout_s=3600.0)
LONG = PATIENT.with_values(refresh_policy='exact', max_cell_age_s=3600.0)
NO_REPAIR = LONG.with_values(
    refresh_policy='patch', max_patches=1000, max_patch_share=1.0, min_confidence=0.0, min_text_confidence=0.0
)
PATCH = PATIENT.with_values(refresh_policy='patch')
POLICIES = {
    'stale': LONG,
    'exact': PATIENT.with_values(refresh_policy='exact'),
    'patch, no repair': NO_REPAIR,
    'patch, halo 1': NO_REPAIR.with_values(change_halo=1),
    'patch, frame after 4': NO_REPAIR.with_values(max_patches=4),
    'patch, escalation': NO_REPAIR.with_values(
        min_confidence=Config().min_confidence, min_text_confidence=Config().min_text_confidence
    ),
    'patch': PATCH,
    'auto': PATIENT,
}


class GradedAnswer(NamedTuple):
    """A policy's answer and the reference's, and whether each is right."""

    answer: Answer
    reference: Answer
    is_right: bool
    is_reference_right: bool


@dataclass
class PolicyRun:
    """One policy's session and its counts over all sequences. refreshes_once: it looks only at the first picture."""

    config: Config
    refreshes_once: bool
    session: SceneSession | None = None
    answers: list[GradedAnswer] = field(default_factory=list)
    levels: Counter[str] = field(default_factory=Counter)
    cells: list[float] = field(default_factory=list)
    refresh_ms: list[float] = field(default_factory=list)
    answer_ms: list[float] = field(default_factory=list)

    def start(self, vlm: Vlm, frame: Frame) -> None:
        """Begin a sequence."""
        self.session = SceneSession(vlm, self.config)
        self.session.observe(frame)

    def see(self, frame: Frame) -> None:
        """Look at the next picture."""
        if self.refreshes_once:
            return
        session = self._started_session()
        started = time.process_time()
        refresh = session.observe(frame)
        self.refresh_ms.append(1e3 * (time.process_time() - started))
        self.levels[str(refresh.level)] += 1
        self.cells.append(refresh.visual_tokens_refreshed / refresh.visual_tokens_total)

    def ask(self, question: TabletopQuestion, reference: Answer) -> None:
        """Ask one question, and keep the answer beside the reference's."""
        session = self._started_session()
        started = time.process_time()
        answer = ask(session, question)
        self.answer_ms.append(1e3 * (time.process_time() - started))
        is_right = answer.text == question.answer
        self.answers.append(GradedAnswer(answer, reference, is_right, reference.text == question.answer))

    def _started_session(self) -> SceneSession:
        if self.session is None:
            raise RuntimeError('There is no session; call start first.')
        return self.session


def ask(session: SceneSession, question: TabletopQuestion) -> Answer:
    """Return the session's answer at the time of its newest picture. Raises RuntimeError when there is none."""
    if session.newest is None:
        raise RuntimeError('The session has seen no picture.')
    answer = session.ask(Question(question.text, question.choices), now_ns=session.newest.stamp_ns)
    if answer.status != Status.OK:
        raise RuntimeError(f'{answer.status}: {answer.message}')
    return answer


def sequence(number: int) -> Iterator[tuple[Frame, list[TabletopQuestion]]]:
    """Yield the pictures of one tabletop, each with the questions that its scene allows."""
    rng = np.random.default_rng((HELD_OUT, number))
    table = tabletop.Tabletop(rng)
    sensor = tabletop.Sensor()
    things = tabletop.random_things(rng, int(rng.integers(1, tabletop.MOST_THINGS + 1)))
    for index in range(PICTURES):
        if index:
            things = story.after_event(rng, things, story.EVENTS[rng.integers(len(story.EVENTS))]) or things
        frame = Frame(tabletop.sense(table.picture(things), sensor, rng), index * INTERVAL_NS)
        questions = [single_question(rng, things, kind) for kind in SINGLE_KINDS]
        yield frame, [question for question in questions if question and question.choices]


def play(vlm: Vlm, runs: Iterable[PolicyRun], number: int) -> None:
    """Show one sequence to all policies, and ask them."""
    runs = list(runs)
    for index, (frame, questions) in enumerate(sequence(number)):
        if index == 0:
            for run in runs:
                run.start(vlm, frame)
            continue
        cold = SceneSession(vlm, LONG)
        cold.observe(frame)
        references = [ask(cold, question) for question in questions]
        for run in runs:
            run.see(frame)
            for question, reference in zip(questions, references):
                run.ask(question, reference)


def summary(name: str, run: PolicyRun) -> dict:
    """Return one row of the table."""
    count = len(run.answers)
    drifted = [each.answer.choice_index != each.reference.choice_index for each in run.answers]
    escalated = [each.answer.escalated for each in run.answers]
    refresh_ms = float(np.mean(run.refresh_ms or [0.0]))
    answer_ms = float(np.mean(run.answer_ms))
    row: dict[str, Any] = {
        'policy': name,
        'questions': count,
        'drifted': sum(drifted),
        'choice_drift': sum(drifted) / count,
        'choice_drift_upper95': share_bounds(sum(drifted), count)[1],
        'accuracy': sum(each.is_right for each in run.answers) / count,
        'cold_accuracy': sum(each.is_reference_right for each in run.answers) / count,
        'escalated': sum(escalated) / count,
        'remembered': sum(each.answer.remembered for each in run.answers) / count,
        'levels': dict(run.levels),
        'cells': float(np.mean(run.cells or [0.0])),
        'refresh_ms': refresh_ms,
        'answer_ms': answer_ms,
        'ms_per_question': refresh_ms + answer_ms,
    }
    if not any(escalated):
        sure = np.array([each.answer.confidence for each in run.answers])
        row['thresholds'] = [
            {
                'min_confidence': each,
                'escalated': float((sure < each).mean()),
                'drift_left': float(((sure >= each) & drifted).mean()),
            }
            for each in THRESHOLDS
        ]
    return row


def print_table(rows: list[dict]) -> None:
    """Print the rows for people."""
    print(
        f'{"policy":22}{"asked":>7}{"drift":>9}{"upper 95":>10}{"accuracy":>10}{"cold":>8}{"asked twice":>13}'
        f'{"cells":>8}{"ms/question":>13}'
    )
    for row in rows:
        print(
            f'{row["policy"]:22}{row["questions"]:7}{row["choice_drift"]:9.2%}{row["choice_drift_upper95"]:10.2%}'
            f'{row["accuracy"]:10.2%}{row["cold_accuracy"]:8.2%}{row["escalated"]:13.1%}{row["cells"]:8.1%}'
            f'{row["ms_per_question"]:13.1f}'
        )


def measure(model: str, sequences: int) -> dict:
    """Play all sequences, print the table, and return what is written."""
    vlm = loading.load(model)
    runs = {name: PolicyRun(config, name == 'stale') for name, config in POLICIES.items()}
    for number in tqdm(range(sequences), unit='sequence', disable=None):
        play(vlm, runs.values(), number)
    rows = [summary(name, run) for name, run in runs.items()]
    print_table(rows)
    return {'rows': rows, 'default_policy': Config().refresh_policy, 'model': vlm.fingerprint}
