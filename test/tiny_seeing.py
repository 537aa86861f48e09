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

"""More tiny random-weight directories, of model types that differ in their prompts or their vision (no download).

Written with the tokenizer and the weights of `tiny_generic`.
"""

import json
from pathlib import Path

import tiny_generic
from tiny_generic import _EACH, _IMAGE, _PARTS, _TEXT, _VISION, _WIDTHS, CHAT_TEMPLATES, SPECIAL

GEMMA3 = '<image_soft_token>', '<start_of_image>', '<end_of_image>'
INTERNVL = '<img>', '</img>', '<IMG_CONTEXT>'
CHATML = (
    '{% for message in messages %}<|im_start|>{{ message["role"] }}\n'
    + _PARTS % (_EACH % (_IMAGE % 'IMAGE' + _TEXT))
    + '<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}'
)
NAMES = {
    'llava_onevision': ('<image>',),
    'internvl_chat': INTERNVL,
    'gemma3': GEMMA3,
    'idefics2': ('<image>', '<fake_token_around_image>'),
}
SHOWN = {
    'gemma3': '<start_of_image>',
    'llava_onevision': '<image>\n',
    'internvl_chat': '<image>\n',
    'idefics2': '<image>',
}
TYPES = tuple(NAMES)


def write_tiny_seeing(folder: Path, model_type: str, seed: int = 0, image_size: int = 56) -> Path:
    """Write the directory of one of TYPES, float32."""
    folder.mkdir(parents=True, exist_ok=True)
    SPECIAL[model_type] = ('<unk>', '</s>', '<pad>', '<|im_start|>', '<|im_end|>', *NAMES[model_type])
    CHAT_TEMPLATES[model_type] = CHATML.replace('IMAGE', SHOWN[model_type])
    ids = tiny_generic._write_tokenizer(folder, model_type)
    config, image, processor = _settings(model_type, ids, image_size)
    (folder / 'config.json').write_text(json.dumps(config))
    normal = {'image_mean': [0.5] * 3, 'image_std': [0.5] * 3}
    (folder / 'preprocessor_config.json').write_text(json.dumps(image | normal))
    (folder / 'processor_config.json').write_text(json.dumps(processor))
    if model_type == 'gemma3':
        file = folder / 'tokenizer_config.json'
        named = dict(zip(('image_token', 'boi_token', 'eoi_token'), GEMMA3))
        file.write_text(json.dumps(json.loads(file.read_text()) | {'extra_special_tokens': named}))
    tiny_generic._write_weights(folder, model_type, config, seed)
    return folder


def _settings(model_type, ids, image_size):
    """config.json, preprocessor_config.json and processor_config.json."""
    text = _WIDTHS | {'vocab_size': len(ids)}
    vision = _VISION | {'image_size': image_size, 'patch_size': 14}
    shared = {'model_type': model_type, 'vocab_size': len(ids), 'eos_token_id': [ids['</s>']]}
    if model_type == 'llava_onevision':
        # As many tiles each way as in the released models: up to six.
        pinpoints = [[image_size * rows, image_size * columns] for rows in range(1, 7) for columns in range(1, 7)]
        return (
            shared
            | {
                'image_token_index': ids['<image>'],
                'image_grid_pinpoints': pinpoints,
                'vision_aspect_ratio': 'anyres_max_9',
                'text_config': text | {'model_type': 'qwen2'},
                'vision_config': vision | {'model_type': 'siglip_vision_model'},
            },
            {
                'image_processor_type': 'LlavaOnevisionImageProcessor',
                'image_grid_pinpoints': pinpoints,
                'size': {'height': image_size, 'width': image_size},
            },
            {'processor_class': 'LlavaOnevisionProcessor', 'num_image_tokens': (image_size // 14) ** 2},
        )
    if model_type == 'internvl_chat':
        return (
            shared
            | {
                'image_token_index': ids['<IMG_CONTEXT>'] + 1000,  # that of the original, not of this tokenizer
                'force_image_size': image_size,
                'max_dynamic_patch': 4,
                'text_config': text | {'model_type': 'qwen2'},
                'vision_config': vision | {'model_type': 'intern_vit_6b'},
            },
            {},
            {'processor_class': 'InternVLChatProcessor', 'image_size': image_size, 'patch_size': 14},
        )
    if model_type == 'gemma3':
        window = {'sliding_window': 24, 'sliding_window_pattern': 2}  # shorter than a chat
        of_text = {'model_type': 'gemma3_text', 'head_dim': 12, 'mm_tokens_per_image': 4, 'query_pre_attn_scalar': 12}
        return (
            shared
            | {
                'image_token_index': ids['<image_soft_token>'],
                'pad_token_id': ids['<pad>'],
                'hidden_size': 48,
                'mm_tokens_per_image': 4,
                'text_config': text | window | of_text,
                'vision_config': vision | {'model_type': 'siglip_vision_model'},
            },
            {
                'image_processor_type': 'Gemma3ImageProcessor',
                'size': {'height': image_size, 'width': image_size},
                'image_seq_length': 4,
            },
            {'processor_class': 'Gemma3Processor', 'image_seq_length': 4},
        )
    return (
        shared
        | {
            'image_token_id': ids['<image>'],
            'text_config': text | {'model_type': 'mistral'},
            'vision_config': vision | {'model_type': 'idefics2'},
            'perceiver_config': {
                'model_type': 'idefics2',
                'num_key_value_heads': 2,
                'resampler_depth': 1,
                'resampler_head_dim': 12,
                'resampler_n_heads': 4,
                'resampler_n_latents': 6,
            },
        },
        {
            'image_processor_type': 'Idefics2ImageProcessor',
            'do_image_splitting': False,
            'size': {'shortest_edge': 28, 'longest_edge': 56},
        },
        {'processor_class': 'Idefics2Processor', 'image_seq_len': 6},
    )
