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

"""A question costs one pass through the language model, whatever has to be computed before it can be answered."""

from dataclasses import replace

import numpy as np
import pytest
from credit import give_credit
from rounding import choice_bound, choices_apart
from tiny_gemma4 import write_tiny_gemma4
from tiny_generic import write_tiny_generic
from tiny_model import SECOND_NS, picture, write_tiny_model
from tiny_qwen3 import write_tiny_qwen3

from vlm_reuse_node.config import Config
from vlm_reuse_node.model import loading
from vlm_reuse_node.scene.refresh import Level
from vlm_reuse_node.session.answer import Status
from vlm_reuse_node.session.case import Case
from vlm_reuse_node.session.question import Question
from vlm_reuse_node.session.scene_session import SceneSession
from vlm_reuse_node.session.turn import Turn

WRITERS = {
    'qwen2_5_vl': write_tiny_model,
    'qwen3_vl': lambda folder: write_tiny_qwen3(folder, 'qwen3_vl'),
    'gemma4': lambda folder: write_tiny_gemma4(folder, window=24),
    'gemma4 layer inputs': lambda folder: write_tiny_gemma4(folder, 'layer_inputs', window=24),
    'llava': lambda folder: write_tiny_generic(folder, 'llava'),
}
PATCH = Config(refresh_policy='patch', min_confidence=1e-9, min_text_confidence=1e-9)
TEXT = Question('what color is the square ?', max_tokens=5, max_age_s=1000.0)
CHOICE = Question('what color is the square ?', ('red', 'green circle', 'no'), max_age_s=1000.0)


@pytest.fixture(scope='module', params=WRITERS)
def vlm(request, tmp_path_factory):
    """A tiny model of each kind that branches."""
    return loading.load(str(WRITERS[request.param](tmp_path_factory.mktemp('models') / 'tiny')))


def changed(stamp_s, by=0x80):
    """The first picture at a time, one corner another."""
    rgb = picture(1).rgb.copy()
    rgb[:100, :100] ^= by
    return replace(picture(1), rgb=rgb, stamp_ns=int(stamp_s * SECOND_NS))


def observed(vlm, config=Config()):
    session = give_credit(SceneSession(vlm, config))
    session.observe(picture(1))
    return session


def ask(session, question, now_s=0.0, turn=None):
    """The answer, and what the model did for it."""
    before = session._vlm.meter.done
    answer = session.ask(question, now_ns=int(now_s * SECOND_NS), turn=turn)
    return answer, session._vlm.meter.done - before


def levels(vlm):
    """Sessions that answer their next question at each level."""
    first = SceneSession(vlm, Config())
    first.look(picture(1))
    yield Level.FULL, first
    yield Level.REUSE, observed(vlm)
    frame = observed(vlm)
    frame.look(changed(1.0))
    yield Level.FRAME, frame
    if vlm.family.encodes_cells:
        patch = observed(vlm, PATCH)
        patch.look(changed(1.0))
        yield Level.PATCH, patch


def test_choices_take_one_pass_at_every_level_and_a_text_one_more_for_every_token_but_the_last(vlm):
    for question in (CHOICE, TEXT):
        for level, session in levels(vlm):
            answer, spent = ask(session, question, 1.0)
            assert (answer.status, answer.level) == (Status.OK, level)
            assert spent.passes == 1 + spent.decode_tokens
            generated = len(answer.token_ids)  # the last of all is not read again
            assert spent.decode_tokens == generated - (0 < generated == question.max_tokens)
            assert spent.prefill_tokens >= answer.tokens_prefilled  # a patch computes a cell twice to fill up
            if answer.exact and question is CHOICE:
                cold = session.ask_cold(question, now_ns=SECOND_NS)
                assert choices_apart(answer, cold) < choice_bound(session, question)


def test_questions_with_choices_about_a_changed_picture_share_one_pass_and_do_not_hear_each_other(vlm):
    questions = [CHOICE, replace(CHOICE, text='is it red ?', choices=('yes', 'no')), replace(CHOICE, text='how many ?')]
    session, alone = observed(vlm), observed(vlm)
    session.look(changed(1.0))
    before = vlm.meter.done
    cases = [Case(question, SECOND_NS, Turn()) for question in questions]
    session.ask_together(cases)
    spent = vlm.meter.done - before
    assert spent.passes == 1 and spent.vision_tokens == session._refresher.state.live.grid.cells
    alone.observe(changed(1.0))
    for case, question in zip(cases, questions):
        answer, _ = ask(alone, question, 1.0)
        assert choices_apart(case.answer, answer) < choice_bound(alone, question)


@pytest.mark.parametrize('config', [Config(), PATCH])
def test_what_was_seen_for_a_question_that_ended_is_read_by_the_next_one(vlm, config):
    """The first question is cancelled between the vision tower and its pass."""
    if config is PATCH and not vlm.family.encodes_cells:
        pytest.skip('the family cannot patch')
    session, other = observed(vlm, config), observed(vlm, config)
    for each in (session, other):
        each.look(changed(1.0))
    state = session._refresher.state
    turn = Turn(cancelled=lambda: state.live.frame.stamp_ns > 0)
    ended, spent = ask(session, CHOICE, 1.0, turn)
    assert ended.status == Status.CANCELLED and spent.vision_tokens > 0 and spent.passes == 0
    answer, spent = ask(session, CHOICE, 1.0)
    assert answer.status == Status.OK and spent.vision_tokens == 0 and spent.passes == 1
    expected, _ = ask(other, CHOICE, 1.0)
    assert (answer.exact, answer.cached_stamp_ns) == (expected.exact, SECOND_NS)
    assert np.array_equal(answer.choice_scores, expected.choice_scores)
    if answer.exact:
        cold = session.ask_cold(CHOICE, now_ns=SECOND_NS)
        assert choices_apart(answer, cold) < choice_bound(session, CHOICE)
