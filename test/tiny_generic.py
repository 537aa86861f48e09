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

"""Tiny random-weight directories of four model types that the generic family serves (no download, no torch).

llava: one kind of token, as many for every picture. idefics3: sub-pictures, their names and separators around them.
pixtral: rows of as many tokens as the picture is wide, a token behind each row. lfm2_vl: sub-pictures, and a language
model with recurrent layers. All with a byte-level tokenizer.
"""

import json
from importlib import import_module
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten
from tiny_model import WORDS
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer

TYPES = ('llava', 'idefics3', 'pixtral', 'lfm2_vl')
LFM2_TOKENS = {
    'image_start_token': '<|image_start|>',
    'image_end_token': '<|image_end|>',
    'image_thumbnail': '<|img_thumbnail|>',
}
SPECIAL = {
    'llava': ('<unk>', '<s>', '</s>', '<pad>', '<image>'),
    'idefics3': (
        '<unk>',
        '<|im_start|>',
        '</s>',
        '<pad>',
        '<image>',
        '<fake_token_around_image>',
        '<end_of_utterance>',
        '<global-img>',
        *(f'<row_{row}_col_{column}>' for row in range(1, 4) for column in range(1, 4)),
    ),
    'pixtral': ('<unk>', '<s>', '</s>', '<pad>', '[IMG]', '[IMG_BREAK]', '[IMG_END]', '[INST]', '[/INST]'),
    'lfm2_vl': ('<unk>', '</s>', '<pad>', '<image>', *LFM2_TOKENS.values()),
}
_TEXT = "{% if part['type'] == 'text' %}{{ part['text'] if 'text' in part else part['content'] }}{% endif %}"
_IMAGE = "{%% if part['type'] == 'image' %%}%s{%% endif %%}"
_PARTS = "{%% if message['content'] is string %%}{{ message['content'] }}{%% else %%}%s{%% endif %%}"
_EACH = "{%% for part in message['content'] %%}%s{%% endfor %%}"
CHAT_TEMPLATES = {
    # Pictures first, whatever the order in the message.
    'llava': "{% for message in messages %}{{ message['role'] | upper }}: "
    + _PARTS % (_EACH % (_IMAGE % '<image>\n') + _EACH % _TEXT)
    + "{{ '\n' }}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}",
    'idefics3': "{% for message in messages %}<|im_start|>{{ message['role'] | capitalize }}: "
    + _PARTS % (_EACH % (_IMAGE % '<image>' + _TEXT))
    + "<end_of_utterance>{{ '\n' }}{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}",
    'pixtral': '{% for message in messages %}[INST]'
    + _PARTS % (_EACH % (_IMAGE % '[IMG]' + _TEXT))
    + '[/INST]{% endfor %}',
}
CHAT_TEMPLATES['lfm2_vl'] = CHAT_TEMPLATES['idefics3']
_WIDTHS = {
    'hidden_size': 48,
    'intermediate_size': 96,
    'num_hidden_layers': 2,
    'num_attention_heads': 4,
    'num_key_value_heads': 2,
    'rms_norm_eps': 1e-6,
    'rope_theta': 10000.0,
    'max_position_embeddings': 4096,
}
_VISION = {'hidden_size': 32, 'intermediate_size': 64, 'num_hidden_layers': 2, 'num_attention_heads': 2}


def write_tiny_generic(folder: Path, model_type: str, seed: int = 0, **changes) -> Path:
    """Write the directory of one of TYPES, float32: 16, 20, 12 or 36 visual tokens for 640 x 480 pixels.

    changes: other values in config.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ids = _write_tokenizer(folder, model_type)
    config = _config(model_type, ids) | changes
    (folder / 'config.json').write_text(json.dumps(config))
    image, processor = _processors(model_type)
    normal = {'image_mean': [0.5] * 3, 'image_std': [0.5] * 3}
    (folder / 'preprocessor_config.json').write_text(json.dumps(image | normal))
    (folder / 'processor_config.json').write_text(json.dumps(processor))
    _write_weights(folder, model_type, config, seed)
    return folder


def _config(model_type, ids):
    text = _WIDTHS | {'vocab_size': len(ids)}
    image_token = ids['[IMG]' if model_type == 'pixtral' else '<image>']
    shared = {
        'model_type': model_type,
        'vocab_size': len(ids),
        'eos_token_id': [ids['</s>']],
        'image_token_index': image_token,
    }
    if model_type == 'llava':
        return shared | {
            'text_config': text | {'model_type': 'llama'},
            'vision_config': _VISION
            | {'model_type': 'clip_vision_model', 'image_size': 56, 'patch_size': 14, 'projection_dim': 32},
        }
    if model_type == 'idefics3':
        return shared | {
            'image_token_id': image_token,
            'scale_factor': 2,
            'text_config': text | {'model_type': 'llama'},
            'vision_config': _VISION | {'model_type': 'idefics3_vision', 'image_size': 56, 'patch_size': 14},
        }
    if model_type == 'lfm2_vl':
        return shared | {
            'image_token_id': image_token,
            'projector_hidden_size': 64,
            'encoder_patch_size': 16,
            'text_config': text
            | {
                'model_type': 'lfm2',
                'layer_types': ['full_attention', 'conv'],
                'num_heads': 4,
                'block_dim': 48,
                'conv_dim': 48,
                'conv_dim_out': 48,
                'block_ff_dim': 96,
                'block_multiple_of': 16,
            },
            'vision_config': _VISION
            | {'model_type': 'siglip2_vision_model', 'image_size': 64, 'patch_size': 16, 'num_patches': 16},
        }
    return shared | {
        'text_config': text | {'model_type': 'mistral', 'head_dim': 12},
        'vision_config': _VISION | {'model_type': 'pixtral', 'image_size': 128, 'patch_size': 16, 'head_dim': 16},
    }


def _processors(model_type):
    """preprocessor_config.json and processor_config.json."""
    if model_type == 'llava':
        return (
            {
                'image_processor_type': 'CLIPImageProcessor',
                'size': {'shortest_edge': 56},
                'crop_size': {'height': 56, 'width': 56},
            },
            {
                'processor_class': 'LlavaProcessor',
                'patch_size': 14,
                'vision_feature_select_strategy': 'default',
                'num_additional_image_tokens': 1,
            },
        )
    if model_type == 'idefics3':
        return (
            {
                'image_processor_type': 'Idefics3ImageProcessor',
                'size': {'longest_edge': 112},
                'max_image_size': {'longest_edge': 56},
                'do_image_splitting': True,
            },
            {'processor_class': 'Idefics3Processor', 'image_seq_len': 4},
        )
    if model_type == 'lfm2_vl':
        return (
            {
                'image_processor_type': 'Lfm2VlImageProcessor',
                'tile_size': 64,
                'encoder_patch_size': 16,
                'min_image_tokens': 4,
                'max_image_tokens': 16,
                'max_num_patches': 64,
                'max_tiles': 4,
            },
            {'processor_class': 'Lfm2VlProcessor'},
        )
    return (
        {
            'image_processor_type': 'PixtralImageProcessor',
            'size': {'longest_edge': 64},
            'patch_size': {'height': 16, 'width': 16},
        },
        {'processor_class': 'PixtralProcessor', 'patch_size': 16},
    )


def _write_tokenizer(folder, model_type):
    special = SPECIAL[model_type]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        [' '.join(WORDS)],
        BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False),
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    if '<s>' in special:
        tokenizer.post_processor = processors.TemplateProcessing(
            single='<s> $A', special_tokens=[('<s>', tokenizer.token_to_id('<s>'))]
        )
    tokenizer.save(str(folder / 'tokenizer.json'))
    named = {'image_token': '<image>'} | LFM2_TOKENS if model_type == 'lfm2_vl' else {}
    (folder / 'tokenizer_config.json').write_text(
        json.dumps(
            {
                'tokenizer_class': 'PreTrainedTokenizerFast',
                'unk_token': '<unk>',
                'eos_token': '</s>',
                'pad_token': '<pad>',
                'extra_special_tokens': named,
                'chat_template': CHAT_TEMPLATES[model_type],
                'model_max_length': 4096,
            }
        )
    )
    return tokenizer.get_vocab()


def _write_weights(folder, model_type, config, seed):
    module = import_module(f'mlx_vlm.models.{model_type}')
    model_config = module.ModelConfig.from_dict(dict(config))
    model_config.text_config = module.TextConfig.from_dict(config['text_config'])
    model_config.vision_config = module.VisionConfig.from_dict(config['vision_config'])
    if 'perceiver_config' in config:
        model_config.perceiver_config = module.PerceiverConfig.from_dict(config['perceiver_config'])
    key = mx.random.key(seed)
    weights = {}
    for name, value in tree_flatten(module.Model(model_config).parameters()):
        key, draw = mx.random.split(key)
        noise = mx.random.normal(value.shape, key=draw)
        if value.ndim == 1:  # norms around 1, small biases
            sharp = name.endswith(('q_layernorm.weight', 'k_layernorm.weight'))  # or attention is nearly a mean
            weights[name] = 0.1 * noise + float(name.endswith('weight')) * (3 if sharp else 1)
        else:  # large enough that answers depend on the picture and that no two logits are nearly tied
            weights[name] = 2.5 / value[0].size ** 0.5 * noise
    mx.save_safetensors(str(folder / 'model.safetensors'), weights)
