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

"""Tiny random-weight directories of further popular model types (no download).

Written with the tokenizer and the weights of `tiny_generic`.
"""

import json
from pathlib import Path

import tiny_generic
from tiny_generic import _VISION, _WIDTHS, CHAT_TEMPLATES, SPECIAL
from tiny_seeing import CHATML

NAMES = {
    'smolvlm': (*SPECIAL['idefics3'][4:6], *SPECIAL['idefics3'][7:]),
    'mistral3': ('<image>', '[IMG]', '[IMG_BREAK]', '[IMG_END]'),
    'llava_next': ('<image>',),
    'kimi_vl': ('<|media_start|>', '<|media_content|>', '<|media_pad|>', '<|media_end|>'),
    'paligemma': ('<image>', '<bos>'),
    'phi3_v': ('<|image|>',),
}
SHOWN = {
    'smolvlm': '<image>',
    'mistral3': '[IMG]',
    'llava_next': '<image>\n',
    'kimi_vl': '<|media_start|>image<|media_content|><|media_pad|><|media_end|>',
    'paligemma': '<image>',
    'phi3_v': '<|image_1|>\n',
}
TYPES = tuple(NAMES)
_SIGLIP = _VISION | {'model_type': 'siglip_vision_model', 'image_size': 56, 'patch_size': 14}


def write_tiny_popular(folder: Path, model_type: str, seed: int = 0) -> Path:
    """Write the directory of one of TYPES, float32."""
    folder.mkdir(parents=True, exist_ok=True)
    SPECIAL[model_type] = ('<unk>', '</s>', '<pad>', '<|im_start|>', '<|im_end|>', *NAMES[model_type])
    CHAT_TEMPLATES[model_type] = CHATML.replace('IMAGE', SHOWN[model_type])
    ids = tiny_generic._write_tokenizer(folder, model_type)
    config, image, processor = _settings(model_type, ids)
    (folder / 'config.json').write_text(json.dumps(config))
    normal = {'image_mean': [0.5] * 3, 'image_std': [0.5] * 3}
    (folder / 'preprocessor_config.json').write_text(json.dumps(image | normal))
    (folder / 'processor_config.json').write_text(json.dumps(processor))
    if model_type == 'paligemma':
        file = folder / 'tokenizer_config.json'
        file.write_text(json.dumps(json.loads(file.read_text()) | {'bos_token': '<bos>'}))
    tiny_generic._write_weights(folder, model_type, config, seed)
    return folder


def _settings(model_type, ids):
    """config.json, preprocessor_config.json and processor_config.json."""
    text = _WIDTHS | {'vocab_size': len(ids)}
    shared = {'model_type': model_type, 'vocab_size': len(ids), 'eos_token_id': [ids['</s>']]}
    if model_type == 'smolvlm':
        return (
            shared
            | {
                'image_token_id': ids['<image>'],
                'scale_factor': 2,
                'text_config': text | {'model_type': 'llama', 'head_dim': 12},
                'vision_config': _SIGLIP,
            },
            {
                'image_processor_type': 'SmolVLMImageProcessor',
                'size': {'longest_edge': 112},
                'max_image_size': {'longest_edge': 56},
                'do_image_splitting': True,
            },
            {'processor_class': 'SmolVLMProcessor', 'image_seq_len': 4},
        )
    if model_type == 'mistral3':
        return (
            shared
            | {
                'image_token_index': ids['[IMG]'],
                'spatial_merge_size': 2,
                'text_config': text | {'model_type': 'mistral', 'head_dim': 12},
                'vision_config': _VISION
                | {'model_type': 'pixtral', 'image_size': 128, 'patch_size': 14, 'head_dim': 16, 'rope_theta': 10000.0},
            },
            {
                'image_processor_type': 'PixtralImageProcessor',
                'size': {'longest_edge': 112},
                'patch_size': {'height': 28, 'width': 28},
            },
            {'processor_class': 'PixtralProcessor', 'patch_size': 14, 'spatial_merge_size': 2},
        )
    if model_type == 'llava_next':
        pinpoints = [[56 * rows, 56 * columns] for rows in range(1, 4) for columns in range(1, 4)]
        return (
            shared
            | {
                'image_token_index': ids['<image>'],
                'image_grid_pinpoints': pinpoints,
                'text_config': text | {'model_type': 'llama'},
                'vision_config': _SIGLIP | {'model_type': 'clip_vision_model', 'projection_dim': 32},
            },
            {
                'image_processor_type': 'LlavaNextImageProcessor',
                'image_grid_pinpoints': pinpoints,
                'size': {'shortest_edge': 56},
                'crop_size': {'height': 56, 'width': 56},
            },
            {
                'processor_class': 'LlavaNextProcessor',
                'patch_size': 14,
                'vision_feature_select_strategy': 'default',
                'num_additional_image_tokens': 1,
            },
        )
    if model_type == 'kimi_vl':
        latent = {
            'model_type': 'deepseek_v3',
            'moe_intermediate_size': 32,
            'n_shared_experts': 1,
            'n_routed_experts': 4,
            'num_experts_per_tok': 2,
            'n_group': 1,
            'topk_group': 1,
            'first_k_dense_replace': 1,
            'kv_lora_rank': 16,
            'q_lora_rank': None,
            'qk_rope_head_dim': 8,
            'v_head_dim': 12,
            'qk_nope_head_dim': 12,
            'num_key_value_heads': 4,
        }
        return (
            shared
            | {
                'media_placeholder_token_id': ids['<|media_pad|>'],
                'text_config': text | latent,
                'vision_config': _VISION
                | {'model_type': 'moonvit', 'depth': 2, 'embed_dim': 32, 'num_heads': 2, 'patch_size': 14}
                | {'init_pos_emb_height': 8, 'init_pos_emb_width': 8, 'in_token_limit': 48},
            },
            {},
            {},
        )
    if model_type == 'paligemma':
        return (
            shared
            | {
                'image_token_index': ids['<image>'],
                'hidden_size': 48,
                'projection_dim': 48,
                'text_config': text | {'model_type': 'gemma', 'head_dim': 12},
                'vision_config': _SIGLIP | {'projection_dim': 48},
            },
            {
                'image_processor_type': 'SiglipImageProcessor',
                'size': {'height': 56, 'width': 56},
                'image_seq_length': 16,
            },
            {'processor_class': 'PaliGemmaProcessor'},
        )
    return (
        shared
        | text
        | {
            'image_token_index': ids['<|image|>'],
            'original_max_position_embeddings': 4096,
            'text_config': {},
            'vision_config': _VISION
            | {
                'model_type': 'phi3_v',
                'image_size': 56,
                'patch_size': 14,
                'image_dim_out': 32,
                'num_img_tokens': 4,
            },
        },
        {'image_processor_type': 'Phi3VImageProcessor', 'num_crops': 4, 'num_img_tokens': 144},
        {'processor_class': 'Phi3VProcessor'},
    )
