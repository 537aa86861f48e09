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

"""Loading: what is given, what is refused and how, and that the network is left alone."""

import json
import os
import shutil
import subprocess
import sys

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from patience import PATIENCE_S
from tiny_model import picture, write_tiny_model

from vlm_reuse_node.config import Config
from vlm_reuse_node.errors import ConfigError, InvalidRequestError, ModelError
from vlm_reuse_node.model import loading
from vlm_reuse_node.session.question import Question
from vlm_reuse_node.session.scene_session import SceneSession


@pytest.fixture
def no_hub(monkeypatch):
    """Fail the test when anything asks the hub."""

    def asked(name, **kwargs):
        raise AssertionError(f'the hub was asked for {name}')

    monkeypatch.setattr('huggingface_hub.snapshot_download', asked)


@pytest.mark.parametrize(
    'name',
    [
        '',
        ' ',
        '/no/such/model',
        './no/such/model',
        '~/no_such_model',
        'no_such_model',
        '../a/b',
        'a/b/c',
        'C:\\models\\qwen',
    ],
)
def test_a_path_that_does_not_exist_is_one_sentence_and_no_network(name, no_hub):
    with pytest.raises(ModelError, match='There is no model directory') as error:
        loading.load(name)
    assert f"'{name}'" in str(error.value) and "expected 'tabletop'" in str(error.value)


def changed(model_dir, folder, **values):
    """A copy of the tiny model with other values in its config.json; None takes one out."""
    shutil.copytree(model_dir, folder)
    config = json.loads((folder / 'config.json').read_text()) | values
    (folder / 'config.json').write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return folder


def test_the_context_is_what_the_config_says(model_dir, vlm, tmp_path):
    folder = changed(model_dir, tmp_path / 'short', max_position_embeddings=77)
    assert (vlm.context, loading.load(str(folder)).context) == (4096, 77)


def test_a_text_only_model_is_refused(model_dir, tmp_path):
    folder = changed(model_dir, tmp_path / 'text', model_type='qwen2', vision_config=None)
    with pytest.raises(ModelError, match=r'\(qwen2\) is a text-only model; expected a vision-language model'):
        loading.load(str(folder))


def test_another_family_is_refused_with_the_supported_ones(model_dir, tmp_path):
    folder = changed(model_dir, tmp_path / 'other', model_type='unheard_of')
    with pytest.raises(ModelError, match="type is 'unheard_of', and mlx-vlm knows no .*supported are .*qwen2_5_vl"):
        loading.load(str(folder))


@pytest.mark.parametrize('text', ['', '{', '[]', '{"vision_config": {}}'])
def test_a_broken_config_is_refused(model_dir, tmp_path, text):
    folder = changed(model_dir, tmp_path / 'broken')
    (folder / 'config.json').write_text(text)
    with pytest.raises(ModelError, match='is not a model directory'):
        loading.load(str(folder))


def test_missing_or_cut_weights_are_refused(model_dir, tmp_path):
    folder = changed(model_dir, tmp_path / 'cut')
    weights = folder / 'model.safetensors'
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match='cannot be loaded by mlx-vlm'):
        loading.load(str(folder))
    weights.unlink()
    with pytest.raises(ModelError, match='has no .*safetensors'):
        loading.load(str(folder))


def test_a_file_is_no_model_directory(model_dir, no_hub):
    with pytest.raises(ModelError, match='no model directory'):
        loading.load(str(model_dir / 'config.json'))


def test_a_hub_name_takes_the_cached_copy(model_dir, monkeypatch):
    monkeypatch.setattr('huggingface_hub.snapshot_download', lambda name, local_files_only: str(model_dir))
    assert loading.load('org/tiny').name == 'org/tiny'  # not the hub cache's folder, which is named by a commit
    assert loading.load(str(model_dir)).name == model_dir.name


def test_a_hub_name_that_is_not_cached_is_refused_offline_and_the_error_says_why():
    with pytest.raises(ModelError, match="'org/not-there' is neither a directory.*Set HF_HUB_OFFLINE=0"):
        loading.load('org/not-there')


def test_half_precision_is_computed_in_float32_on_the_cpu(model_dir, tmp_path):
    folder = changed(model_dir, tmp_path / 'half')
    weights = {name: value.astype(mx.float16) for name, value in mx.load(str(folder / 'model.safetensors')).items()}
    mx.eval(weights)  # before the file they come from is written again
    mx.save_safetensors(str(folder / 'model.safetensors'), weights)
    kinds = {value.dtype for _, value in tree_flatten(loading.load(str(folder))._model.parameters())}
    assert kinds == ({mx.float32} if mx.default_device() == mx.Device(mx.cpu) else {mx.float16})


def test_another_template_processor_or_weight_is_another_model(model_dir, tmp_path):
    prints = {loading.load(str(model_dir)).fingerprint}
    assert loading.load(str(model_dir)).fingerprint in prints
    for name in ('tokenizer_config.json', 'preprocessor_config.json'):
        folder = changed(model_dir, tmp_path / name)
        (folder / name).write_text((folder / name).read_text().replace('0.5', '0.4').replace('helpful', 'kind'))
        prints.add(loading.load(str(folder)).fingerprint)
    assert len(prints) == 3


def test_a_copy_is_the_same_model_and_a_changed_large_file_another(tmp_path):
    content = np.random.default_rng(0).integers(0, 256, 11_000_000, np.uint8)

    def fingerprint(name, content, **others):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'small.json').write_text('{}')
        content.tofile(tmp_path / name / 'consolidated.pth')
        for other, text in others.items():
            (tmp_path / name / other.replace('_', '.')).write_text(text)
        os.utime(tmp_path / name / 'consolidated.pth', ns=(1, len(name)))
        return loading._fingerprint(tmp_path / name)

    first = fingerprint('first', content)
    assert fingerprint('a copy', content) == first
    assert fingerprint('documented', content, README_md='a model', calibration_json='{}') == first
    trained = content.copy()
    trained[len(content) // 2 : len(content) // 2 + 20_000] ^= 1  # one small tensor, far from the beginning
    assert fingerprint('trained', trained) != first
    assert fingerprint('longer', np.append(content, content[:1])) != first


def test_large_files_are_not_read_as_a_whole(tmp_path):
    with (tmp_path / 'model.safetensors').open('wb') as large:
        large.truncate(40_000_000_000)  # a sparse file: reading all of it would take minutes
    assert loading._fingerprint(tmp_path)


@pytest.mark.parametrize(
    'text', ['<|image_pad|>', 'what <|im_end|> ?', '<|video_pad|> <|vision_start|>', '<unk>x<|im_start|>']
)
def test_special_tokens_never_reach_the_model(vlm, text):
    template = vlm.template('', 1)
    with pytest.raises(InvalidRequestError, match='special token'):
        template.question(text)
    with pytest.raises(InvalidRequestError):
        template.choices([text])
    with pytest.raises(ConfigError, match='system_prompt'):
        vlm.template(text, 1)


def test_unknown_words_and_broken_markers_are_plain_text(vlm):
    template = vlm.template('', 1)
    for text in ('zebra', '<|IMAGE_PAD|>', '< |image_pad| >', '<|image_pad', '{{ messages }}', '\u202e?'):
        assert not set(template.question(text)[:-5]) & set(range(1, 8))


def test_the_system_prompt_is_in_front_of_the_pictures(vlm):
    plain, told = vlm.template('', 1).prefix, vlm.template('describe the table', 1).prefix
    assert plain != told and vlm.template('', 1).question('what ?') == vlm.template('see', 1).question('what ?')


def test_loading_needs_no_torch_and_no_network(model_dir):
    code = (
        'import sys, socket; sys.modules["torch"] = None\n'
        'def refuse(*a, **k): raise OSError("network")\n'
        'socket.socket.connect = refuse; socket.getaddrinfo = refuse\n'
        'from vlm_reuse_node.model.loading import load; print(load(sys.argv[1]).name)'
    )
    done = subprocess.run(
        [sys.executable, '-c', code, str(model_dir)], capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.stdout.strip().endswith(model_dir.name), done.stderr


def test_a_quantised_model_answers_warm_as_cold(model_dir, tmp_path):
    folder = changed(model_dir, tmp_path / '4bit', quantization={'group_size': 32, 'bits': 4})
    weights = mx.load(str(folder / 'model.safetensors'))
    for name in [name for name in weights if name.endswith('mlp.down_proj.weight') and 'language' in name]:
        packed, scales, biases = mx.quantize(weights[name].astype(mx.float16), group_size=32, bits=4)
        weights |= {name: packed, name.replace('weight', 'scales'): scales, name.replace('weight', 'biases'): biases}
    mx.eval(weights)
    mx.save_safetensors(str(folder / 'model.safetensors'), weights)
    session = SceneSession(loading.load(str(folder)), Config())
    session.observe(picture(1))
    for text in ('what is it ?', 'how many objects are there ?'):
        question = Question(text, max_tokens=12)
        warm, cold = session.ask(question, now_ns=0), session.ask_cold(question, now_ns=0)
        assert warm.status == 'OK' and warm.token_ids == cold.token_ids


@pytest.mark.parametrize('own_model', [False, True])
def test_python_files_that_come_with_a_model_are_never_run(tmp_path, own_model):
    """A model is a folder somebody else made: whatever its configuration maps to code, none of it is imported."""
    folder, ran = write_tiny_model(tmp_path / 'tiny'), tmp_path / 'ran'
    (folder / 'evil.py').write_text(f'open({str(ran)!r}, "w").close()\nclass Evil: pass\n')
    for name in ('config.json', 'tokenizer_config.json', 'preprocessor_config.json'):
        content = json.loads((folder / name).read_text())
        kinds = 'AutoConfig', 'AutoProcessor', 'AutoImageProcessor', 'AutoModel'
        if name == 'config.json' and own_model:
            content['model_file'] = 'evil.py'
        content['auto_map'] = dict.fromkeys(kinds, 'evil.Evil') | {'AutoTokenizer': ['evil.Evil', 'evil.Evil']}
        (folder / name).write_text(json.dumps(content))
    if own_model:
        with pytest.raises(ModelError, match='model_file'):
            loading.load(str(folder))
    else:
        assert loading.load(str(folder)).name == 'tiny'
    assert not ran.exists()
