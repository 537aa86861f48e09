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


"""The rows of the benchmark: what is asked, and the arms that are timed against each other."""

from collections.abc import Callable
from typing import Any

import numpy as np
from followup_case import CHOICES, ColdBuildTimer, FollowupCase, read_in_turn
from followup_floor import floor_changed, floor_draft, floor_patch, floor_questions, floor_text
from followup_noise import ColdStates, text_table
from rectangle_camera import RectangleCamera
from timing import Arm, Run, in_random_order, medians

from vlm_reuse_node.model import noise
from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.scene.refresh import Level
from vlm_reuse_node.session.answer import Answer
from vlm_reuse_node.session.turn import Turn

STANDING = 10  # questions
ARMS = ('cold', 'warm', 'warm_again', 'floor', 'in_turn', 'one_by_one')
RATIOS = {
    'speedup': ('cold', 'warm'),
    'warm_over_floor': ('warm', 'floor'),
    'in_turn_over_warm': ('in_turn', 'warm'),
    'one_by_one_over_warm': ('one_by_one', 'warm'),
    'noise': ('warm_again', 'warm'),
}
PATCH = {
    'refresh_policy': 'patch',
    'max_patches': 1000,
    'max_patch_share': 1.0,
    'min_confidence': 0.0,
    'min_text_confidence': 0.0,
}


class Rows:
    """Measures the rows of one case. Its methods follow each other in this order: later ones change the pictures.

    builds: of the cold answers.
    """

    def __init__(self, case: FollowupCase, rounds: int) -> None:
        """Run each arm in so many rounds."""
        self._case, self._rounds = case, rounds
        self.builds = ColdBuildTimer(case.session)
        self._cold = ColdStates(case)
        self._done: dict[str, tuple[dict, list[Run]]] = {}  # rows and their cold answers, by name
        self.answer: Answer | None = None  # to the text question
        self._floors: dict[bool, float] = {}

    def text(self) -> dict:
        """A text on an unchanged state."""
        case = self._case
        ask = self._asking()
        runs = self._run({'warm': ask, 'warm_again': ask, 'floor': lambda: floor_text(case, case.fresh())}, ())
        self.answer = answer = case.ask(case.question)
        tokens = floor_text(case, case.question).result
        if tokens != list(answer.token_ids):
            raise RuntimeError(f'The floor answers {tokens}, the session {answer.token_ids}.')
        tables = [text_table(case, state, answer.token_ids) for state in (case.state, self.builds.newest)]
        return self._row(
            'text',
            runs,
            answer,
            equal_to_cold=all(answer.token_ids == run.result.token_ids for run in runs['cold']),
            max_logprob_difference=noise.apart(*tables),
            noise_floor=self._noise_floor(False),
        )

    def choice(self) -> dict:
        """A choice on an unchanged state."""
        case = self._case
        ask = self._asking(CHOICES)
        arms = {
            'warm': ask,
            'warm_again': ask,
            'floor': floor_questions(case, [case.question]),
            'in_turn': self._asking_in_turn(),
        }
        runs = self._run(arms, CHOICES)
        answer = case.ask(case.question, CHOICES)
        return self._row('choice', runs, answer, **self._against_cold(answer, runs['cold']))

    def repeated_choice(self) -> dict:
        """The same choice on the same state."""
        case = self._case
        first = case.ask(case.question, CHOICES)
        ask = self._repeating(CHOICES)
        runs = in_random_order({'warm': ask, 'warm_again': ask}, self._rounds, case.chance)
        answer = runs['warm'][-1].result
        same = answer.choice_scores == first.choice_scores
        return self._repeated('choice', runs, answer, same)

    def repeated_text(self) -> dict:
        """The same text on a state that was computed again, from the same pixels."""
        case, tokens = self._case, self.answer.token_ids

        def again() -> None:
            newest = case.newest
            case.session.observe(Frame(newest.rgb.copy(), newest.stamp_ns + 1), force=True)

        def ask() -> Run:
            again()
            return case.run(lambda: case.ask(case.question))

        def floor() -> Run:
            done = floor_draft(case, case.question, tokens)
            if done.result != list(tokens):
                raise RuntimeError(f'The floor answers {done.result}, the session {tokens}.')
            return done

        runs = in_random_order({'warm': ask, 'warm_again': ask, 'floor': floor}, self._rounds, case.chance)
        answer = runs['warm'][-1].result
        same = all(run.result.token_ids == tokens for run in runs['warm'])
        return self._repeated('text', runs, answer, same)

    def _repeated(self, name: str, runs: dict[str, list[Run]], answer: Answer, same: bool) -> dict:
        """The row of a repeated question. same: whether all answers are those of the first time."""
        equal = same and self._done[name][0]['equal_to_cold']
        return self._row(f'repeated_{name}', self._like(name, runs), answer, equal_to_cold=equal)

    def standing(self) -> dict:
        """Ten questions with choices at once, against the same number one after the other."""
        case = self._case

        def texts() -> list[str]:
            return [case.fresh() for _ in range(STANDING)]

        def together() -> Run:
            asked = texts()
            return case.run(lambda: (asked, case.ask_together(asked)))

        def one_by_one() -> Run:
            asked = texts()
            return case.run(lambda: [case.ask(text, CHOICES) for text in asked])

        arms = {
            'warm': together,
            'warm_again': together,
            'one_by_one': one_by_one,
            'floor': floor_questions(case, texts()),
        }
        runs = in_random_order(arms, self._rounds, case.chance)
        asked, answers = runs['warm'][-1].result
        tokenized = [case.tokenized(text, CHOICES) for text in asked]
        outcomes = [case.answerer.choose(self.builds.newest, [each], Turn())[0] for each in tokenized]
        pairs = list(zip(answers, outcomes))
        return self._row(
            'standing_10',
            runs,
            answers[0],
            equal_to_cold=all(answer.choice_index == outcome.choice_index for answer, outcome in pairs),
            max_logprob_difference=max(_apart(answer, outcome) for answer, outcome in pairs),
            noise_floor=self._noise_floor(True),
        )

    def changed(self) -> dict:
        """A new picture, and a question with choices about it; `Level.FRAME`."""
        case = self._case
        ask = self._asking(CHOICES, case.next_picture, Level.FRAME)
        arms = {
            'warm': ask,
            'warm_again': ask,
            'floor': floor_changed(case),
            'in_turn': self._asking_in_turn(case.next_picture, Level.FRAME),
        }
        runs = in_random_order(arms, self._rounds, case.chance)
        answer = case.ask(case.question, CHOICES, frame=case.next_picture(), level=Level.FRAME)
        runs['cold'] = self._run_cold(CHOICES)
        return self._row('changed', runs, answer, **self._against_cold(answer, runs['cold']))

    def changed_patch(self, count: int) -> dict:
        """A picture of which some cells changed, and a question with choices about it; `Level.PATCH`."""
        case = self._case
        case.session.config = case.session.config.with_values(**PATCH)
        case.session.observe(case.next_picture(), force=True)  # keeps what single cells need
        camera = RectangleCamera(case.newest, case.state.live.grid, count)
        ask = self._asking(CHOICES, camera.frame, Level.PATCH)
        arms = {
            'warm': ask,
            'warm_again': ask,
            'floor': floor_patch(case, camera.numbers),
            'in_turn': self._asking_in_turn(camera.frame, Level.PATCH),
        }
        runs = in_random_order(arms, self._rounds, case.chance)
        answer = case.ask(case.question, CHOICES, frame=camera.frame(), level=Level.PATCH)
        again = read_in_turn(case.vlm, case.state, case.tokenized(case.question, CHOICES))
        return self._row(
            'changed_patch',
            self._like('changed', runs),
            answer,
            changed_cells=count,
            max_logprob_difference=noise.apart(np.log(answer.choice_scores), np.log(again)),
            noise_floor=self._noise_floor(True),
        )

    def _asking(
        self,
        choices: tuple[str, ...] = (),
        frame: Callable[[], Frame | None] = lambda: None,
        level: Level | None = None,
    ) -> Arm:
        """The arm of the session: another text each time, about a newer frame if there is one."""

        def arm() -> Run:
            text, newer = self._case.fresh(), frame()
            return self._case.run(lambda: self._case.ask(text, choices, frame=newer, level=level))

        return arm

    def _asking_in_turn(self, frame: Callable[[], Frame | None] = lambda: None, level: Level | None = None) -> Arm:
        """The arm of one pass for each step; see `FollowupCase.ask_in_turn`."""

        def arm() -> Run:
            text, newer = self._case.fresh(), frame()
            return self._case.run(lambda: self._case.ask_in_turn(text, newer, level))

        return arm

    def _repeating(self, choices: tuple[str, ...]) -> Arm:
        return lambda: self._case.run(lambda: self._case.ask(self._case.question, choices))

    def _run(self, arms: dict[str, Arm], choices: tuple[str, ...]) -> dict[str, list[Run]]:
        """Run the arms, and then the cold answers."""
        return in_random_order(arms, self._rounds, self._case.chance) | {'cold': self._run_cold(choices)}

    def _run_cold(self, choices: tuple[str, ...]) -> list[Run]:
        case = self._case
        return [case.run(lambda: case.ask(case.question, choices, cold=True)) for _ in range(case.cold_runs)]

    def _like(self, name: str, runs: dict[str, list[Run]]) -> dict[str, list[Run]]:
        """These runs, with the cold ones of another row."""
        return runs | {'cold': self._done[name][1]}

    def _against_cold(self, answer: Answer, cold: list[Run]) -> dict[str, Any]:
        """How an answer with choices compares with the cold ones."""
        return {
            'equal_to_cold': all(answer.choice_index == run.result.choice_index for run in cold),
            'max_logprob_difference': _apart(answer, cold[-1].result),
            'noise_floor': self._noise_floor(True),
        }

    def _noise_floor(self, choices: bool) -> float:
        """Of the first pictures; for new ones too."""
        if choices not in self._floors:
            self._floors[choices] = self._cold.noise_floor(choices, () if choices else self.answer.token_ids)
        return self._floors[choices]

    def _row(self, name: str, runs: dict[str, list[Run]], answer: Answer, **more: Any) -> dict[str, Any]:
        """Return a row. more: what this row has and others have not."""
        case = self._case
        row: dict[str, Any] = {
            'row': name,
            'question': 'choice' if answer.choice_scores else 'text',
            'passes': max(run.passes for each in ('warm', 'warm_again') for run in runs[each]),
            'prompt_tokens': case.state.tokens + case.question_tokens,
            'question_tokens': case.question_tokens,
            'answer_tokens': len(answer.token_ids),
            'changed_cells': None,
        }
        for arm in ARMS:
            row |= medians(arm, runs.get(arm, []))
        for ratio, (one, other) in RATIOS.items():
            times = row[f'{one}_cpu_ms'], row[f'{other}_cpu_ms']
            row[ratio] = None if None in times else times[0] / times[1]
        row |= {'equal_to_cold': None, 'max_logprob_difference': None, 'noise_floor': None, 'peers': {}} | more
        self._done[name] = row, runs.get('cold', [])
        return row


def _apart(answer: Any, other: Any) -> float:
    """Largest difference between the log-probabilities of two answers' choices."""
    return noise.apart(np.log(answer.choice_scores), np.log(other.choice_scores))
