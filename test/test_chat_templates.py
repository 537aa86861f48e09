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

"""Our prompt against mlx-vlm's template and processor, token for token, with what the chat templates of models do.

The templates are written for this test: each has one habit that released ones have.
"""

import json

import mlx_vlm
import numpy as np
import pytest
from mlx_vlm.prompt_utils import apply_chat_template
from tiny_generic import write_tiny_generic
from tiny_model import picture, write_tiny_model

from vlm_reuse_node.errors import ConfigError
from vlm_reuse_node.model.chat import processed
from vlm_reuse_node.model.loading import load

SEEN = {'qwen': '<|vision_start|><|image_pad|><|vision_end|>', 'llava': '<image>'}
SYSTEM = "messages[0]['role'] == 'system'"
START = '{% if add_generation_prompt %}assistant:{% endif %}'
EACH = (
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMG{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
)
TURN = "{{ message['role'] }}: {% if message['content'] is string %}{{ message['content'] }}{% else %}" + EACH
PLAIN = '{% for message in messages %}' + TURN + '{% endif %}\n{% endfor %}' + START
ONLY_USER = "{% for message in messages if message['role'] == 'user' %}" + TURN + '{% endif %}\n{% endfor %}' + START
TEMPLATES = {
    'parts in order': PLAIN,
    'pictures first': '{% for message in messages %}{{ message["role"] | upper }} '
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}IMG\n{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] + ' ' }}{% endfor %}"
    '{% endfor %}' + START,
    'the whole turn is trimmed': "{% for message in messages %}{{ message['role'] }}\n{% set told %}"
    + EACH
    + '{% endset %}{{ told | trim }}\n{% endfor %}'
    + START,
    'each part is trimmed': PLAIN.replace("{{ part['text'] }}", "{{ part['text'] | trim }}"),
    'space around pictures': PLAIN.replace('IMG', '\n\nIMG\n\n'),
    'a default system text': '{% for message in messages %}{% if loop.first and '
    "message['role'] != 'system' %}system: you are kind\n{% endif %}" + TURN + '{% endif %}\n{% endfor %}' + START,
    'the date': '{% if ' + SYSTEM + " %}{% else %}it is {{ strftime_now('%d %b %Y') }} {% endif %}" + PLAIN,
    'thoughts can be switched off': PLAIN
    + '{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n'
    '{% else %}<think>\n{% endif %}',
    'thoughts that nobody switches': PLAIN + '<think>\n',
    'it begins with its own first token': '{{ bos_token }}' + PLAIN,
    'turns must alternate': '{% for message in messages %}{% if (message["role"] == "user") != '
    "((loop.index0 + (messages[0]['role'] == 'system')) % 2 == 0) %}{{ raise_exception('turns must alternate') }}"
    '{% endif %}{% endfor %}' + PLAIN,
    'no start of an answer': PLAIN.replace(START, ''),
    'the colon depends on the first part': PLAIN.replace(
        '}}: {%', "}}{% if message['content'][0]['type'] == 'image' %}:{% else %}: {% endif %}{%"
    ),
    'the system text is in the last turn': '{% if ' + SYSTEM + " %}{% set told = messages[0]['content'][0]['text'] %}"
    '{% endif %}' + ONLY_USER.replace('}}: {%', '}}: {{ told }}\n{%', 1),
}
# Templates that take the system text for a text, which mlx-vlm makes a list of.
OF_TEXT = {
    'it is added to a text': '{% if '
    + SYSTEM
    + " %}{{ 'system: ' + messages[0]['content'] }}\n{% endif %}"
    + ONLY_USER,
    'it is trimmed as a text': '{% if '
    + SYSTEM
    + " %}system: {{ messages[0]['content'] | trim }}\n{% endif %}"
    + ONLY_USER,
}
QUESTIONS = 'is it red ?', ' how many\nare there ?  '


def write(folder, kind, template):
    """A tiny model with this chat template."""
    if kind == 'llava':
        write_tiny_generic(folder, 'llava')
    else:
        write_tiny_model(folder, tokenizer='bytes')
    file = folder / 'tokenizer_config.json'
    changed = {'chat_template': template.replace('IMG', SEEN[kind])} | ({'bos_token': '<s>'} if kind == 'llava' else {})
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))
    return folder


@pytest.mark.parametrize('kind', SEEN)
@pytest.mark.parametrize('habit', TEMPLATES)
def test_a_prompt_is_mlx_vlm_s_token_for_token(tmp_path, kind, habit):
    folder = write(tmp_path / 'tiny', kind, TEMPLATES[habit])
    vlm, (model, processor) = load(str(folder)), mlx_vlm.load(str(folder))
    for system in ('', 'see the table .'):
        for count in (1, 2):
            rgbs = [picture(seed).rgb for seed in range(count)]
            grids = [vlm.family.prepare(rgb)[1] for rgb in rgbs]
            for question in QUESTIONS:
                chat = [{'role': 'system', 'content': system}] if system else []
                parts = [{'type': 'image'}] * count + [{'type': 'text', 'text': question}]
                chat.append({'role': 'user', 'content': parts})
                text = apply_chat_template(processor, model.config, chat, num_images=count)
                theirs = np.array(processed(processor, model.config, text, rgbs)['input_ids'])[0].tolist()
                template = vlm.template(system, count)
                assert vlm.family.expand(template.prefix + template.question(question), grids) == theirs
                assert system in text


@pytest.mark.parametrize('kind', SEEN)
@pytest.mark.parametrize('habit', OF_TEXT)
def test_a_template_that_takes_a_text_is_given_one(tmp_path, kind, habit):
    """`apply_chat_template` fails, or writes the list into the prompt as Python does."""
    vlm = load(str(write(tmp_path / 'tiny', kind, OF_TEXT[habit])))
    template, tokenizer = vlm.template('see the table .', 1), vlm._processor.tokenizer
    told = tokenizer.decode(template.prefix)
    assert 'system: see the table .\nuser: ' in told and '{' not in told
    assert template.question('what ?') == vlm.template('', 1).question('what ?')


def test_a_template_without_a_place_for_a_system_text_is_refused_when_there_is_one(tmp_path):
    vlm = load(str(write(tmp_path / 'tiny', 'qwen', ONLY_USER)))
    assert vlm.template('', 1)
    with pytest.raises(ConfigError, match='system_prompt is set, and the model.s chat template takes none'):
        vlm.template('see the table .', 1)
