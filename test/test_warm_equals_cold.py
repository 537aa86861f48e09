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

"""The promise of the whole package, on the demo's own scene: a warm answer is the cold answer.

Every question of the demo, at its time, with its model, on pictures of its scene (4 a second; the demo shows 10).
"""

import os

import pytest
from rounding import choice_bound, choices_apart

from vlm_reuse_node.config import Config
from vlm_reuse_node.demo.bag import draw_frames, make_questions
from vlm_reuse_node.model.loading import EMBEDDED, load
from vlm_reuse_node.scene.refresh import Level
from vlm_reuse_node.session.answer import Status
from vlm_reuse_node.session.question import Question
from vlm_reuse_node.session.scene_session import SceneSession

SEED, SECONDS, RATE_HZ = 0, 30.0, 4.0
MODEL = os.environ.get('TABLETOP_MODEL', 'tabletop')  # another directory, while the embedded model is being trained
WEIGHTS = EMBEDDED['tabletop'] / 'model.safetensors'

pytestmark = pytest.mark.skipif(
    MODEL == 'tabletop' and not WEIGHTS.exists(),
    reason=f'the embedded model is missing: vlm_reuse_node/demo/{WEIGHTS.parent.name}/{WEIGHTS.name}; '
    'make train-tabletop writes it',
)


@pytest.fixture(scope='module')
def asked():
    """The demo in this process: for each question (question, warm answer, cold answer); refreshes; session."""
    spans, frames = draw_frames(SEED, SECONDS, RATE_HZ, 640, 480)
    waiting = make_questions(SEED, spans)
    session, answers, refreshes = SceneSession(load(MODEL), Config(refresh_policy='exact')), [], []
    for number, frame in enumerate(frames):
        refreshes.append(session.observe(frame))
        while waiting and waiting[0]['at_s'] < (number + 1) / RATE_HZ:
            entry = waiting.pop(0)
            question = Question(entry['question'], tuple(entry['choices']))
            answers.append((entry, *(ask(question, now_ns=frame.stamp_ns) for ask in (session.ask, session.ask_cold))))
    assert not waiting
    return answers, refreshes, session


def test_every_question_is_answered_warm_and_cold(asked):
    answers, *_ = asked
    assert len(answers) >= 20
    assert {answer.status for _, *both in answers for answer in both} == {Status.OK}


def test_warm_is_warm_and_cold_is_cold(asked):
    answers, *_ = asked
    assert all(warm.tokens_reused > 0 and cold.tokens_reused == 0 for _, warm, cold in answers)
    assert all(cold.tokens_prefilled == warm.tokens_prefilled + warm.tokens_reused for _, warm, cold in answers)


def test_states_that_were_kept_for_several_pictures_are_among_them(asked):
    answers, refreshes, _ = asked
    assert {refresh.level for refresh in refreshes} == {Level.REUSE, Level.FRAME, Level.FULL}
    assert any(warm.cached_stamp_ns < warm.stamp_ns for _, warm, _ in answers)


def test_free_answers_are_equal_token_for_token(asked):
    answers, *_ = asked
    free = [(warm.token_ids, cold.token_ids) for entry, warm, cold in answers if not entry['choices']]
    assert free and all(warm == cold for warm, cold in free)


def test_choices_have_equal_scores(asked):
    answers, _, session = asked
    questions = {(entry['question'], *entry['choices']): entry for entry, *_ in answers if entry['choices']}
    bound = choice_bound(
        session, *(Question(entry['question'], tuple(entry['choices'])) for entry in questions.values())
    )
    scored = [(warm, cold) for entry, warm, cold in answers if entry['choices']]
    assert scored and all(warm.choice_index == cold.choice_index for warm, cold in scored)
    assert max(choices_apart(warm, cold) for warm, cold in scored) < bound
