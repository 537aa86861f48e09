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

"""Tiny random-weight directories of model types that keep the positions of a prompt as attributes (no download).

Written with the tokenizer and the weights of `tiny_generic`.
"""

import dataclasses
import json
from importlib import import_module
from pathlib import Path

import sentencepiece
import tiny_generic
from tiny_generic import _WIDTHS, CHAT_TEMPLATES, SPECIAL
from tiny_model import WORDS
from tiny_seeing import CHATML

GLM = '<|begin_of_image|>', '<|image|>', '<|end_of_image|>', '<|video|>', '<|begin_of_box|>', '<|end_of_box|>'
OMNI = '<image>', '<unk>', '</image>', '<slice>', '</slice>', '<|video|>', '<|listen|>'
BAIDU = '<|IMAGE_START|>', '<|IMAGE_PLACEHOLDER|>', '<|IMAGE_END|>', '<|video|>'
NAMES = {
    'glm4v': GLM,
    'glm4v_moe': GLM,
    'glm_ocr': GLM,
    'paddleocr_vl': BAIDU,
    'ernie4_5_moe_vl': BAIDU,
    'minicpmo': OMNI,
}
TYPES = tuple(NAMES)
# Axes of 2, 2 and 2 numbers: heads of 12.
_MROPE = {'type': 'default', 'rope_type': 'default', 'mrope_section': [2, 2, 2]}
_TOWER = {
    'depth': 2,
    'embed_dim': 32,
    'num_hidden_layers': 2,
    'hidden_size': 32,
    'intermediate_size': 64,
    'num_heads': 2,
    'num_attention_heads': 2,
    'patch_size': 14,
    'image_size': 56,
    'out_hidden_size': 48,
    'spatial_merge_size': 2,
}
_TOWERS = {'glm4v': 'glm4v', 'glm4v_moe': 'glm4v_moe', 'glm_ocr': 'glm_ocr_vision'}
_EXPERTS = {
    'moe_intermediate_size': 32,
    'norm_topk_prob': True,
    'n_group': 1,
    'topk_group': 1,
    'n_shared_experts': 1,
    'n_routed_experts': 4,
    'routed_scaling_factor': 1.0,
    'num_experts_per_tok': 2,
    'first_k_dense_replace': 1,
    'use_qk_norm': False,
}


def write_tiny_placed(folder: Path, model_type: str, seed: int = 0) -> Path:
    """Write the directory of one of TYPES, float32: 48 visual tokens for 640 x 480 pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    begin, image, end = NAMES[model_type][:3]
    more = [name for name in NAMES[model_type] if name != '<unk>']
    SPECIAL[model_type] = ('<unk>', '</s>', '<pad>', '<|im_start|>', '<|im_end|>', *more)
    CHAT_TEMPLATES[model_type] = CHATML.replace('IMAGE', f'{begin}{image}{end}')
    if model_type == 'ernie4_5_moe_vl':
        CHAT_TEMPLATES[model_type] = CHATML.replace('IMAGE', f'{begin}<|image@placeholder|>{end}').replace(
            "== 'image' ", "== 'image_url' "
        )
        ids = _write_pieces(folder, model_type)
    else:
        ids = tiny_generic._write_tokenizer(folder, model_type)
    config = _config(model_type, ids, [ids[token] for token in (begin, image, end)])
    (folder / 'config.json').write_text(json.dumps(config))
    if model_type == 'minicpmo':
        config |= {'query_num': 16, 'patch_size': 14, 'init_audio': False, 'init_tts': False}
        (folder / 'config.json').write_text(json.dumps(config))
    pixels = {'min_pixels': 28 * 28, 'max_pixels': 48 * 28 * 28, 'patch_size': 14, 'merge_size': 2}
    sizes = {'size': {'shortest_edge': pixels['min_pixels'], 'longest_edge': pixels['max_pixels']}}
    (folder / 'preprocessor_config.json').write_text(
        json.dumps(pixels | sizes | {'scale_resolution': 112, 'image_feature_size': 16})
    )
    (folder / 'processor_config.json').write_text('{}')
    tiny_generic._write_weights(folder, model_type, config, seed)
    return folder


def _write_pieces(folder, model_type):
    """A SentencePiece tokenizer; the tokens of `tiny_generic`'s by name."""
    special = [token for token in SPECIAL[model_type] if token not in ('<unk>', '</s>', '<pad>')]
    with open(folder / 'tokenizer.model', 'wb') as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([' '.join(WORDS)] * 2),
            model_writer=file,
            model_type='bpe',
            vocab_size=150,
            user_defined_symbols=special + ['<mask:1>', '<mask:7>'],
            minloglevel=2,
        )
    (folder / 'tokenizer_config.json').write_text(json.dumps({'chat_template': CHAT_TEMPLATES[model_type]}))
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / 'tokenizer.model'))
    return {pieces.id_to_piece(index): index for index in range(len(pieces))} | {'<pad>': 0}


def _config(model_type, ids, media):
    """config.json. media: ids of the tokens that begin, are and end a picture."""
    text = _WIDTHS | {
        'model_type': model_type,
        'vocab_size': len(ids),
        'head_dim': 12,
        'partial_rotary_factor': 1.0,
        'attention_bias': True,
        'use_bias': False,
        'tie_word_embeddings': False,
        'pad_token_id': ids['<pad>'],
        'rope_scaling': _MROPE,
        'rope_parameters': _MROPE | {'rope_theta': 10000.0, 'partial_rotary_factor': 1.0},
    }
    if model_type == 'glm4v_moe':
        text |= _EXPERTS
    if model_type == 'paddleocr_vl':
        text |= {'hidden_size': 1024}  # what its projector gives, whatever the configuration says
    if model_type == 'ernie4_5_moe_vl':
        text |= {'moe_num_experts': [4, 4], 'moe_intermediate_size': [32, 16], 'moe_layer_start_index': 1}
        text |= {'moe_layer_end_index': 1, 'mrope_section': [2, 2, 2], 'im_patch_id': media[1], 'pixel_hidden_size': 32}
    return text | {
        'eos_token_id': [ids['</s>']],
        'image_token_index': media[1],
        'image_token_id': media[1],
        'video_token_id': ids['<|video|>'],
        'vision_start_token_id': media[0],
        'vision_end_token_id': media[2],
        'image_start_token_id': media[0],
        'image_end_token_id': media[2],
        'text_config': _known(model_type, 'TextConfig', text | {'eos_token_id': [ids['</s>']]}),
        'vision_config': _known(
            model_type, 'VisionConfig', _TOWER | {'model_type': _TOWERS.get(model_type, model_type)}
        ),
    }


def _known(model_type, name, values):
    """The values that one of mlx-vlm's configurations has: some refuse others."""
    fields = {field.name for field in dataclasses.fields(getattr(import_module(f'mlx_vlm.models.{model_type}'), name))}
    return {key: value for key, value in values.items() if key in fields}
