"""How often a cheap refresh changes an answer: the embedded model on held-out tabletops, paired with cold-dense.

A sequence is one tabletop on which, from picture to picture, a thing appears, leaves, moves or changes its colour (or,
where there is no room, nothing happens). Every policy is a `SceneSession` that sees all pictures of a sequence and is
asked every question with choices that the scene allows; the reference sees the same picture alone, from nothing, all of
it. Seeds are apart from those of the training. Printed and written for each policy:

questions, drifted    asked, and answered otherwise than the reference
choice_drift          their ratio, and choice_drift_upper95, the upper end of its exact two-sided 95 % interval
accuracy              exact answers, beside cold_accuracy, the reference's on the same questions
escalated             share of the questions that were answered twice
levels                how many pictures took which level
cells                 mean share of cells that a picture paid for, pictures that were reused included
refresh_ms, answer_ms processor time of looking at a picture and of one question about it, what escalation costs with
                      the latter; ms_per_question is their sum: one question on every picture
thresholds            where nothing was escalated: what a min_confidence would escalate, and the drift it would leave
"""

import time
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from tqdm import tqdm

from vlm_reuse_node.config import Config
from vlm_reuse_node.demo import questions, story, tabletop
from vlm_reuse_node.model import loading
from vlm_reuse_node.replay.bounds import share_bounds
from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.session.answer import Answer, Status
from vlm_reuse_node.session.question import Question
from vlm_reuse_node.session.scene_session import SceneSession

HELD_OUT = 990_000_011
SEQUENCES, PICTURES = 45, 9
INTERVAL_NS = 500_000_000
THRESHOLDS = 0.6, 0.7, 0.8, 0.9, 0.95, 0.99
LONG = Config(max_age_s=3600.0, timeout_s=3600.0, max_cell_age_s=3600.0)
NO_REPAIR = LONG.with_values(refresh_policy='patch', max_patches=1000, max_patch_share=1.0, min_confidence=0.0)
PATCH = Config(refresh_policy='patch', max_age_s=3600.0, timeout_s=3600.0)
POLICIES = {
    'stale': LONG,
    'exact': Config(max_age_s=3600.0, timeout_s=3600.0),
    'patch, no repair': NO_REPAIR,
    'patch, halo 1': NO_REPAIR.with_values(change_halo=1),
    'patch, frame after 4': NO_REPAIR.with_values(max_patches=4),
    'patch, escalation': NO_REPAIR.with_values(min_confidence=Config().min_confidence),
    'patch': PATCH,
}


@dataclass
class Arm:
    """One policy's session and its counts over all sequences."""

    config: Config
    refreshes_once: bool
    session: SceneSession | None = None
    answers: list[tuple[Answer, Answer, bool, bool]] = field(default_factory=list)
    levels: Counter = field(default_factory=Counter)
    cells: list[float] = field(default_factory=list)
    refresh_ms: list[float] = field(default_factory=list)
    answer_ms: list[float] = field(default_factory=list)

    def start(self, vlm, frame: Frame) -> None:
        """Begin a sequence."""
        self.session = SceneSession(vlm, self.config)
        self.session.observe(frame)

    def see(self, frame: Frame) -> None:
        """Look at the next picture, unless this arm only ever looks at the first."""
        if self.refreshes_once:
            return
        started = time.process_time()
        refresh = self.session.observe(frame)
        self.refresh_ms.append(1e3 * (time.process_time() - started))
        self.levels[str(refresh.level)] += 1
        self.cells.append(refresh.visual_tokens_refreshed / refresh.visual_tokens_total)

    def ask(self, asked: questions.Asked, reference: Answer) -> None:
        """Ask one question, and note the answer beside the reference's."""
        started = time.process_time()
        answer = answered(self.session, asked)
        self.answer_ms.append(1e3 * (time.process_time() - started))
        self.answers.append((answer, reference, answer.text == asked.answer, reference.text == asked.answer))


def answered(session: SceneSession, asked: questions.Asked) -> Answer:
    """The answer. Raises RuntimeError when there is none."""
    answer = session.ask(Question(asked.text, asked.choices), now_ns=session.newest.stamp_ns)
    if answer.status != Status.OK:
        raise RuntimeError(f'{answer.status}: {answer.message}')
    return answer


def sequence(number: int):
    """Yield the pictures of one tabletop, each with the questions that its scene allows."""
    rng = np.random.default_rng((HELD_OUT, number))
    table, sensor = tabletop.Table(rng), tabletop.Sensor()
    things = tabletop.random_things(rng, int(rng.integers(1, tabletop.MOST_THINGS + 1)))
    for index in range(PICTURES):
        if index:
            things = story.after_event(rng, things, story.EVENTS[rng.integers(len(story.EVENTS))]) or things
        asked = (questions.single_question(rng, things, kind) for kind in questions.SINGLE_KINDS)
        frame = Frame(tabletop.sense(table.picture(things), sensor, rng), index * INTERVAL_NS)
        yield frame, [question for question in asked if question and question.choices]


def play(vlm, arms: dict[str, Arm], number: int) -> None:
    """Show one sequence to all arms, and ask them."""
    for index, (frame, asked) in enumerate(sequence(number)):
        if index == 0:
            for arm in arms.values():
                arm.start(vlm, frame)
            continue
        cold = SceneSession(vlm, LONG)
        cold.observe(frame)
        references = [answered(cold, question) for question in asked]
        for arm in arms.values():
            arm.see(frame)
            for question, reference in zip(asked, references):
                arm.ask(question, reference)


def summary(name: str, arm: Arm) -> dict:
    """One row of the table."""
    count = len(arm.answers)
    drifted = [answer.choice_index != reference.choice_index for answer, reference, _, _ in arm.answers]
    escalated = [answer.escalated for answer, *_ in arm.answers]
    row = {
        'policy': name,
        'questions': count,
        'drifted': sum(drifted),
        'choice_drift': sum(drifted) / count,
        'choice_drift_upper95': share_bounds(sum(drifted), count)[1],
        'accuracy': sum(right for _, _, right, _ in arm.answers) / count,
        'cold_accuracy': sum(right for *_, right in arm.answers) / count,
        'escalated': sum(escalated) / count,
        'levels': dict(arm.levels),
        'cells': float(np.mean(arm.cells or [0.0])),
        'refresh_ms': float(np.mean(arm.refresh_ms or [0.0])),
        'answer_ms': float(np.mean(arm.answer_ms)),
    }
    row['ms_per_question'] = row['refresh_ms'] + row['answer_ms']
    if not any(escalated):
        sure = np.array([answer.confidence for answer, *_ in arm.answers])
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
    """For people."""
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
    arms = {name: Arm(config, name == 'stale') for name, config in POLICIES.items()}
    for number in tqdm(range(sequences), unit='sequence', disable=None):
        play(vlm, arms, number)
    rows = [summary(name, arm) for name, arm in arms.items()]
    print_table(rows)
    return {'rows': rows, 'default_policy': Config().refresh_policy, 'model': vlm.fingerprint}
