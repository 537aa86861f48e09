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
from pathlib import Path

import pytest
from tiny_model import WORDS, replace_in_chat_template, write_tiny_model

from vlm_reuse_node.errors import ConfigError, InvalidRequestError, ModelError
from vlm_reuse_node.model import loading
from vlm_reuse_node.model.prompt import LONGEST_CHOICE_TOKENS, PLAIN_QUESTION

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


def test_a_question_that_stands_before_the_picture_is_refused(tmp_path):
    """Every other question would need another state."""
    text = "{% for part in message['content'] if 'text' in part %}{{ part['text'] }}{% endfor %}"
    loop = "{% for part in message['content'] %}"
    vlm = with_template(tmp_path / 'tiny', loop, text + loop)
    template = vlm.template('', 1)
    assert template.question(PLAIN_QUESTION)
    with pytest.raises(InvalidRequestError, match='special tokens'):
        template.question('how many objects are there ?')


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
