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

"""Questions and choices as tokens, whatever the model's chat template and tokenizer do with them."""

import json
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
from mlx_vlm.prompt_utils import MODEL_CONFIG, MessageFormat
from tiny_model import WORDS, picture, replace_in_chat_template, write_tiny_model

from vlm_reuse_node.config import Config
from vlm_reuse_node.errors import ConfigError, InvalidRequestError, ModelError
from vlm_reuse_node.model import loading, prompt
from vlm_reuse_node.model.prompt import LONGEST_CHOICE_TOKENS, PromptTemplate
from vlm_reuse_node.session.answer import Status
from vlm_reuse_node.session.question import Question
from vlm_reuse_node.session.scene_session import SceneSession
from vlm_reuse_node.session.turn import Turn

PICTURES = "(messages[-1]['content'] | selectattr('type', 'equalto', 'image') | list | length)"
START = '<|im_start|>assistant\n'


def with_template(folder, old, new):
    """The tiny model with another chat template."""
    return loading.load(str(replace_in_chat_template(write_tiny_model(folder), old, new)))


def with_tokenizer(folder, change):
    """The tiny model with another tokenizer."""
    file = write_tiny_model(folder) / 'tokenizer.json'
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    return loading.load(str(folder))


def test_more_pictures_extend_the_same_prompt_and_no_other(vlm):
    one, three = vlm.template('', 1), vlm.template('', 3)
    assert three.extends(one) and one.extends(one)
    assert not one.extends(three)
    assert not vlm.template('see', 3).extends(one)


def test_a_prompt_that_tells_the_number_of_pictures_at_its_end_extends_no_other(tmp_path):
    vlm = with_template(tmp_path / 'tiny', START, START + '{% if ' + PICTURES + ' > 1 %}three{% endif %}')
    one, three = vlm.template('', 1), vlm.template('', 3)
    assert three.prefix[: len(one.prefix)] == one.prefix and not three.extends(one)


def test_a_chat_template_that_leaves_pictures_out_is_refused(tmp_path):
    vlm = with_template(tmp_path / 'tiny', "part['type'] == 'image'", "part['type'] == 'image' and loop.first")
    vlm.template('', 1)
    with pytest.raises(ModelError, match='1 of 2 pictures'):
        vlm.template('', 2)


def test_a_question_that_stands_before_the_picture_is_refused_at_load(tmp_path):
    """Every other question would need another state."""
    texts = "{% for part in message['content'] if 'text' in part %}{{ part['text'] }}{% endfor %}"
    loop, shown = "{% for part in message['content'] %}", "{% elif 'text' in part %}{{ part['text'] }}"
    folder = replace_in_chat_template(write_tiny_model(tmp_path / 'tiny'), shown, '')
    with pytest.raises(ModelError, match='has the question before a picture') as error:
        loading.load(str(replace_in_chat_template(folder, loop, texts + loop)))
    assert 'Look at chat_template' in str(error.value)


@pytest.mark.parametrize('shown', ["{{ part['text'] | upper }}", "{{ part['text'] }} {{ part['text'] }}"])
def test_a_template_that_changes_the_question_is_refused_at_load(tmp_path, shown):
    with pytest.raises(ModelError, match='does not hold the question once, as it is'):
        with_template(tmp_path / 'tiny', "{{ part['text'] }}", shown)


def test_where_mlx_vlm_puts_the_picture_behind_the_text_it_comes_first(vlm, monkeypatch):
    """As for Kimi-VL and Idefics2, whose templates keep the order of the message."""
    monkeypatch.setitem(MODEL_CONFIG, 'qwen2_5_vl', MessageFormat.LIST_WITH_IMAGE)
    behind = PromptTemplate(vlm._processor, vlm._model.config, vlm.family, '', 2)
    assert behind.prefix == vlm.template('', 2).prefix
    assert behind.question('is it red ?') == vlm.template('', 2).question('is it red ?')


DATED = '{% if strftime_now is defined %}on {{ strftime_now("%d") }} {% endif %}you are'


@pytest.fixture
def day(monkeypatch):
    """The day of the month that it is."""
    today = SimpleNamespace(of_month=1)
    clock = SimpleNamespace(now=lambda: datetime(2026, 5, today.of_month, 23, 59))
    monkeypatch.setattr(prompt, 'datetime', clock)
    return today


def dated(tmp_path):
    """A model whose chat begins with today's date, in digits that its tokenizer knows."""
    folder = replace_in_chat_template(write_tiny_model(tmp_path / 'tiny', tokenizer='bytes'), 'you are', DATED)
    return loading.load(str(folder))


@pytest.mark.parametrize('history', [0, 3])
def test_after_midnight_questions_are_answered_and_the_next_whole_state_has_the_new_date(tmp_path, day, history):
    vlm = dated(tmp_path)
    config = Config(refresh_policy='exact', history_frames=history, keyframe_interval_s=0.5)
    session, question = SceneSession(vlm, config), Question('is it red ?', max_tokens=6)
    first = vlm.template('', 1).prefix
    session.observe(picture(1))
    before = session.ask(question, now_ns=0)
    day.of_month = 2
    again = Question('is it blue ?', max_tokens=6)
    assert session.ask(question, now_ns=0).token_ids == before.token_ids
    warm, cold = session.ask(again, now_ns=0), session.ask_cold(again, now_ns=0)
    assert warm.status == cold.status == Status.OK and warm.token_ids == cold.token_ids
    held = session._refresher.state
    assert list(held.identity.prefix) == first != vlm.template('', 1).prefix
    for seed in (2, 3):
        frame = picture(seed, stamp_s=seed)
        session.observe(frame)
        warm, cold = session.ask(again, now_ns=frame.stamp_ns), session.ask_cold(again, now_ns=frame.stamp_ns)
        assert warm.status == cold.status == Status.OK and warm.token_ids == cold.token_ids
    prefix = list(session._refresher.state.identity.prefix)
    # With keyframes the date stays theirs; without, nothing of yesterday is left.
    assert prefix[: len(first) - 1] == (first if history else vlm.template('', 1).prefix)[: len(first) - 1]
    session.reset()
    session.observe(picture(4, stamp_s=9))
    assert list(session._refresher.state.identity.prefix) == vlm.template('', 1).prefix


def test_templates_of_one_day_extend_each_other_on_the_next(tmp_path, day):
    one = dated(tmp_path).template('', 1)
    day.of_month = 2
    assert one.of(2).extends(one) and one.of(2) is one.of(2) and one.of(2).of(1) is one and not one.is_current()


OFF = '<think>\n\n</think>\n\n'


def thinking(tmp_path, opened='<think>\n'):
    """A model whose chat template opens a thought, whatever it is told."""
    folder = write_tiny_model(tmp_path / 'tiny', tokenizer='bytes')
    return loading.load(str(replace_in_chat_template(folder, START, START + opened)), thinking=True)


@pytest.mark.parametrize('opened, empty', [('<think>\n', OFF), ('<think>', '<think></think>\n')])
def test_choices_and_documents_are_answered_behind_an_empty_thought(tmp_path, opened, empty):
    vlm = thinking(tmp_path, opened)
    template, tokenizer = vlm.template('', 1), vlm._processor.tokenizer
    assert template.thinking
    assert tokenizer.decode(template.question('is it red ?')).endswith(opened)
    assert tokenizer.decode(template.question('is it red ?', thinks=False)).endswith(START + empty)
    session = SceneSession(vlm, Config())
    session.observe(picture(1))
    schema = '{"type": "object", "properties": {"n": {"type": "integer", "maximum": 9}}, "required": ["n"]}'
    for question in (Question('is it red ?', choices=('yes', 'no')), Question('is it red ?', json_schema=schema)):
        tokenized = session._responder._answerer.tokenize(question, session.config)
        assert tokenized.tokens == template.question('is it red ?', thinks=False)
        assert session.ask(question, now_ns=0).token_ids == session.ask_cold(question, now_ns=0).token_ids


def saying(vlm, monkeypatch, text):
    """Let the model write this text, whatever it is asked."""
    ids = vlm._processor.tokenizer(text, add_special_tokens=False)['input_ids']

    def decode(cache, logits, start, most, *args, sample, on_token, **kwargs):
        sample(logits[-1])
        for count in range(len(ids[:most])):
            on_token(ids[: count + 1])
        return list(ids[:most])

    monkeypatch.setattr(vlm, 'decode', decode)


@pytest.mark.parametrize('opens', [True, False])
def test_thoughts_are_never_handed_out_as_text(tmp_path, monkeypatch, opens):
    vlm = thinking(tmp_path) if opens else loading.load(str(write_tiny_model(tmp_path / 'tiny', tokenizer='bytes')))
    session, parts = SceneSession(vlm, Config()), []
    session.observe(picture(1))
    saying(vlm, monkeypatch, ('' if opens else '<think>') + 'is it red ? no it is blue .</think>\n\nblue')
    turn = Turn(listener=lambda progress: parts.append(progress.text))
    answer = session.ask(Question('what is it ?', max_tokens=200), now_ns=0, turn=turn)
    assert answer.text == 'blue' and 'tokens were thoughts, which are left out' in answer.message
    assert not any('red' in part or 'think' in part for part in parts) and parts[-1] == 'blue'
    if not opens:
        short = session.ask(Question('what is it now ?', max_tokens=12), now_ns=0)
        assert short.status == Status.INVALID_REQUEST and 'still thinking after 12 tokens' in short.message
        assert not short.text
    saying(vlm, monkeypatch, 'blue' if not opens else '</think>blue')
    assert session.ask(Question('which ?', max_tokens=200), now_ns=0).text == 'blue'


def test_what_the_tokenizer_reads_as_a_special_token_is_refused_however_it_is_written(tmp_path):
    def change(content):
        for token in content['added_tokens']:
            token['normalized'] = True  # in small letters

    template = with_tokenizer(tmp_path / 'tiny', change).template('', 1)
    assert template.question('what <|IM END|> ?')
    with pytest.raises(InvalidRequestError, match='special tokens'):
        template.question('what <|IM_END|> ?')
    with pytest.raises(InvalidRequestError, match='special'):
        template.choices(['<|IM_END|>'])


def test_a_choice_has_no_token_that_begins_a_text(vlm, tmp_path):
    def change(content):
        first, rest = {'SpecialToken': {'id': '<|endoftext|>', 'type_id': 0}}, {'Sequence': {'id': 'A', 'type_id': 0}}
        content['post_processor'] = {
            'type': 'TemplateProcessing',
            'single': [first, rest],
            'pair': [first, rest, {'Sequence': {'id': 'B', 'type_id': 1}}],
            'special_tokens': {'<|endoftext|>': {'id': '<|endoftext|>', 'ids': [1], 'tokens': ['<|endoftext|>']}},
        }

    begun, plain = with_tokenizer(tmp_path / 'tiny', change).template('', 1), vlm.template('', 1)
    assert begun.prefix == [1, *plain.prefix]
    assert begun.choices(['red square', 'no']) == plain.choices(['red square', 'no'])


def test_choices_are_told_apart_by_their_tokens(vlm):
    template = vlm.template('', 1)
    red, longer = template.choices([' red ', 'red square'])
    assert [red] == template.choices(['red']) and longer[:1] == red and len(longer) == 2
    for texts in (['red', 'RED'], ['no', 'red', ' no'], ['  '], ['red', '']):
        with pytest.raises(InvalidRequestError, match='empty, a special token or the same'):
            template.choices(texts)


def test_a_choice_may_have_so_many_tokens_and_no_more(vlm):
    template, words = vlm.template('', 1), [WORDS[-1 - index % 20] for index in range(LONGEST_CHOICE_TOKENS)]
    (longest,) = template.choices([' '.join(words)])
    assert len(longest) == LONGEST_CHOICE_TOKENS
    text = ' '.join([*words, 'red'])
    with pytest.raises(InvalidRequestError, match=f'has {LONGEST_CHOICE_TOKENS + 1} tokens') as error:
        template.choices([text])
    assert f"'{text[:40]}...'" in str(error.value)
    assert f'of at most {LONGEST_CHOICE_TOKENS} tokens each' in Path('docs/security.md').read_text()


@pytest.mark.parametrize('refuse, who', [('question', 'The question'), ('choices', 'A choice')])
def test_a_refusal_names_the_special_token_and_who_holds_it(vlm, refuse, who):
    text = 'red <|im_end|>'
    with pytest.raises(InvalidRequestError, match=rf"{who} holds '<\|im_end\|>'"):
        getattr(vlm.template('', 1), refuse)(text if refuse == 'question' else [text])
    with pytest.raises(ConfigError, match=r"system_prompt holds '<\|im_end\|>'"):
        vlm.template(text, 1)


def test_the_sign_for_unknown_words_is_plain_text(vlm):
    template = vlm.template('', 1)
    assert template.question('<unk>') == template.question('zebra')
    assert template.choices(['<unk>']) == template.choices(['zebra'])


def test_the_system_prompt_is_the_system_turn_of_the_chat(vlm):
    plain, told = vlm.template('you are a helpful assistant .', 1), vlm.template('see the table', 1)
    assert plain.prefix == vlm.template('', 1).prefix  # the chat template's own
    start = told.prefix.index(plain.prefix[0])
    word = vlm.template('', 1).choices(['see the table', 'system'])
    assert told.prefix[start + 1 : start + 2] == word[1] and told.prefix[start + 2 : start + 5] == word[0]
    assert told.question('what ?') == plain.question('what ?')
