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

"""Thoughts before an answer in free text: switched off, or left out of the text and counted apart."""

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_gemma4 import write_tiny_gemma4
from tiny_model import picture, replace_in_chat_template, write_tiny_model

from vlm_reuse_node.config import Config
from vlm_reuse_node.errors import ModelError
from vlm_reuse_node.model import loading
from vlm_reuse_node.model.decoding import decode
from vlm_reuse_node.model.sampling import ConfidenceSampler, Sampler, TextSampler
from vlm_reuse_node.model.work import Meter
from vlm_reuse_node.session import answerer
from vlm_reuse_node.session.answer import Status
from vlm_reuse_node.session.question import Question
from vlm_reuse_node.session.scene_session import SceneSession
from vlm_reuse_node.session.turn import Turn

START, TURN = '<|im_start|>assistant\n', '<|turn>model\n'
EMPTY = '<think>\n\n</think>\n\n'
# How the released templates ask for thoughts. Qwen3 leaves the thought to the model, Qwen3.5 opens it; Gemma 4 is told
# in its first turn, and its large models close an empty thought where there are to be none.
QWEN3 = START + '{% if enable_thinking is defined and enable_thinking is false %}' + EMPTY + '{% endif %}'
QWEN3_5 = START + '{% if enable_thinking %}<think>\n{% else %}' + EMPTY + '{% endif %}'
CHANNEL = '<|channel>thought\n<channel|>'
TOLD = '{% if enable_thinking %}think {% endif %}'
LARGE_GEMMA4 = TURN + '{% if not enable_thinking %}' + CHANNEL + '{% endif %}'
SMALL_GEMMA4 = TURN + '{# strips <channel|> #}'
QWEN = {'qwen3': QWEN3, 'qwen3_5': QWEN3_5}


def qwen(folder, kind, thinking=True):
    """A tiny model with such a chat template, whose tokenizer writes any text."""
    template = replace_in_chat_template(write_tiny_model(folder, tokenizer='bytes'), START, QWEN[kind])
    return loading.load(str(template), thinking=thinking)


def behind(vlm, thinks):
    """The end of the chat with a question."""
    return vlm._processor.tokenizer.decode(vlm.template('', 1).question('is it red ?', thinks))


class Script:
    """Lets a model write a text, whatever it is asked; each token is as probable as it is told."""

    def __init__(self, vlm, monkeypatch, text, unsure=()):
        tokenizer = vlm._processor.tokenizer
        self.ids = [*tokenizer(text, add_special_tokens=False)['input_ids'], vlm.stop_ids[0]]
        self.steps, vocabulary = 0, len(tokenizer)
        step = vlm.family.step

        def logits(place):
            row = [-30.0] * vocabulary
            row[self.ids[place]] = 0.0
            if place in unsure:
                row[(self.ids[place] + 1) % vocabulary] = -0.1
            return mx.array([row])

        def scripted(token, position, cache):
            step(token, position, cache)
            self.steps += 1
            return logits(min(self.steps, len(self.ids) - 1))

        decode = vlm.decode

        def begin(cache, first, *args, **kwargs):
            self.steps = 0
            return decode(cache, logits(0), *args, **(kwargs | {'draft': (), 'keep': lambda tokens: None}))

        monkeypatch.setattr(vlm.family, 'step', scripted)
        monkeypatch.setattr(vlm, 'decode', begin)


@pytest.mark.parametrize('kind', QWEN)
def test_thoughts_are_off_unless_they_are_asked_for(tmp_path, kind):
    off, on = (qwen(tmp_path / str(thinking), kind, thinking) for thinking in (False, True))
    tokenize = SceneSession(off, Config())._responder._answerer.tokenize
    tokens = tokenize(Question('is it red ?'), Config()).tokens
    assert off._processor.tokenizer.decode(tokens).endswith(START + EMPTY)
    assert behind(on, True).endswith(START + ('<think>\n' if kind == 'qwen3_5' else ''))
    assert behind(on, False).endswith(START + EMPTY)
    assert off.template('', 1).prefix == on.template('', 1).prefix


@pytest.mark.parametrize('kind', QWEN)
def test_choices_and_documents_are_answered_behind_closed_thoughts(tmp_path, kind):
    vlm = qwen(tmp_path, kind)
    session = SceneSession(vlm, Config())
    session.observe(picture(1))
    schema = '{"type": "object", "properties": {"n": {"type": "integer", "maximum": 9}}, "required": ["n"]}'
    for question in (Question('is it red ?', choices=('yes', 'no')), Question('is it red ?', json_schema=schema)):
        tokenized = session._responder._answerer.tokenize(question, session.config)
        assert tokenized.tokens == vlm.template('', 1).question('is it red ?', thinks=False) and not tokenized.thoughts
        warm, cold = session.ask(question, now_ns=0), session.ask_cold(question, now_ns=0)
        assert warm.status == cold.status == Status.OK
        assert (warm.token_ids, warm.choice_index) == (cold.token_ids, cold.choice_index)


@pytest.mark.parametrize('ending', [LARGE_GEMMA4, SMALL_GEMMA4])
def test_a_model_that_is_told_in_its_first_turn_to_think_answers_choices_behind_an_empty_thought(tmp_path, ending):
    folder = replace_in_chat_template(write_tiny_gemma4(tmp_path / 'tiny'), TURN, ending)
    folder = replace_in_chat_template(folder, '{{ bos_token }}', '{{ bos_token }}' + TOLD)
    on, off = (loading.load(str(folder), thinking=thinking).template('', 1) for thinking in (True, False))
    assert on.prefix != off.prefix
    assert on._behind_closed.endswith(TURN + CHANNEL) and not on._behind.endswith(CHANNEL)


def test_a_template_without_thoughts_is_refused(tmp_path):
    with pytest.raises(ModelError, match='thinking is true, and .* has no thoughts to switch on'):
        loading.load(str(write_tiny_model(tmp_path / 'tiny')), thinking=True)


@pytest.mark.parametrize('kind', QWEN)
def test_a_text_has_no_thoughts_neither_in_the_end_nor_on_its_way(tmp_path, monkeypatch, kind):
    vlm, told = qwen(tmp_path, kind), []
    session = SceneSession(vlm, Config(max_tokens=30))
    session.observe(picture(1))
    begin = '' if kind == 'qwen3_5' else '<think>\n'
    Script(vlm, monkeypatch, begin + 'is it red ? no it is blue .\n</think>\n\nblue square')
    turn = Turn(listener=told.append)
    answer = session.ask(Question('what is it ?'), now_ns=0, turn=turn)
    assert (answer.status, answer.text) == (Status.OK, 'blue square')
    assert 'tokens were thoughts, which are left out' in answer.message
    writing = [each for each in told if each.tokens_generated]
    assert {each.stage for each in writing if not each.text} == {'thinking'}
    assert all('blue square'.startswith(each.text) for each in writing) and writing[-1].stage == 'decode'


def test_max_tokens_bounds_the_text_and_thoughts_have_a_bound_of_their_own(tmp_path, monkeypatch):
    vlm = qwen(tmp_path, 'qwen3_5')
    session = SceneSession(vlm, Config(max_tokens=3))
    session.observe(picture(1))
    Script(vlm, monkeypatch, 'is it red ? no it is blue .</think>blue square')
    monkeypatch.setattr(answerer, 'MOST_THOUGHTS', 100)
    answer = session.ask(Question('what is it ?'), now_ns=0)
    assert (answer.status, answer.text) == (Status.OK, 'blue') and 'was cut at max_tokens 3' in answer.message
    monkeypatch.setattr(answerer, 'MOST_THOUGHTS', 10)
    answer = session.ask(Question('what is it now ?'), now_ns=0)
    assert answer.status == Status.INVALID_REQUEST and 'still thinking after 10 tokens' in answer.message
    assert not answer.text


def test_thoughts_get_what_the_context_leaves(tmp_path, monkeypatch):
    vlm = qwen(tmp_path, 'qwen3_5')
    session = SceneSession(vlm, Config(max_tokens=4))
    session.observe(picture(1))
    Script(vlm, monkeypatch, 'is it red ? no it is blue .</think>blue square')
    question = session._responder._answerer.tokenize(Question('what is it ?'), session.config)
    vlm.context = session._refresher.state.tokens + len(question.tokens) + 4 + 7
    answer = session.ask(Question('what is it ?'), now_ns=0)
    assert answer.status == Status.INVALID_REQUEST and 'still thinking after 7 tokens' in answer.message


def test_an_unsure_thought_leaves_a_sure_text_and_an_unsure_text_does_not(tmp_path, monkeypatch):
    vlm = qwen(tmp_path, 'qwen3_5')
    thoughts = len(vlm._processor.tokenizer('red or blue ?</think>', add_special_tokens=False)['input_ids'])
    for number, (unsure, is_sure) in enumerate([({2}, True), ({thoughts}, False), ({thoughts + 3}, False)]):
        with monkeypatch.context() as patch:
            Script(vlm, patch, 'red or blue ?</think>blue', unsure)
            session = SceneSession(vlm, Config())
            session.observe(picture(number))
            answer = session.ask(Question('what is it ?'), now_ns=0)
        assert answer.text == 'blue' and (answer.confidence > 0.99) == is_sure


@pytest.mark.parametrize('kind', QWEN)
def test_a_model_that_thinks_answers_warm_as_cold_and_a_draft_changes_nothing(tmp_path, monkeypatch, kind):
    """Its weights are random, so it goes on thinking; that is an answer without a text, warm and cold alike."""
    monkeypatch.setattr(answerer, 'MOST_THOUGHTS', 6)
    vlm = qwen(tmp_path, kind)
    session = SceneSession(vlm, Config(max_tokens=5))
    for seed in range(3):
        frame = picture(seed, stamp_s=seed)
        session.observe(frame)
        question = Question('what is it ?')
        warm, cold = (ask(question, now_ns=frame.stamp_ns) for ask in (session.ask, session.ask_cold))
        assert (warm.status, warm.text, warm.token_ids) == (cold.status, cold.text, cold.token_ids)
        assert (warm.status == Status.INVALID_REQUEST) == (kind == 'qwen3_5')


def spoken(ids, goes_on=False):
    """The tokens behind a 9, which ends the thoughts."""
    return list(ids[list(ids).index(9) + 1 :]) if 9 in ids else []


@given(
    answer=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    draft=st.lists(st.integers(1, 9), max_size=12),
    bounds=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    follows=st.booleans(),
)
def test_no_draft_changes_where_thoughts_and_text_end_or_how_sure_the_text_is(answer, draft, bounds, follows):
    """A model that writes these tokens and then ends (0); the later a token, the less sure it is."""
    thoughts, text = bounds
    script = [*answer, *[0] * 20]

    def logits(place):
        row = [-30.0] * 10
        row[script[place]] = 1.0 / (1 + place)
        return row

    def run(given):
        place = [len(given)]

        def step(token, position):
            place[0] += 1
            return mx.array([logits(place[0])])

        confident = ConfidenceSampler(Sampler())
        writer = TextSampler(confident, spoken, thoughts, text, [0])
        rows = mx.array([logits(number) for number in range(1 + len(given))])
        ids = decode(
            step, rows, 0, thoughts + text, stop_ids=[0], meter=Meter(), ahead=False, check=lambda: None,
            sample=writer, on_token=lambda ids: None, draft=given,
            keep=lambda tokens: place.__setitem__(0, tokens),
        )  # fmt: skip
        return ids, confident.least, writer.is_cut

    given = [*answer[: len(draft)]] if follows else draft
    given = given[: thoughts + text - 1]
    ids, least, is_cut = run([])
    assert run(given) == (ids, least, is_cut)
    assert ids == answer[: len(ids)] and len(spoken(ids)) <= text
    assert is_cut == (not spoken(ids) and len(ids) == thoughts)
