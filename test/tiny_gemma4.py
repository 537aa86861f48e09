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

"""Tiny random-weight Gemma 4 model directories as mlx-vlm loads them: dense, mixture of experts, E, and unified."""

import json
from importlib import import_module
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten
from tiny_model import WORDS
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

SPECIAL = (
    '<pad>',
    '<eos>',
    '<bos>',
    '<unk>',
    '<|turn>',
    '<turn|>',
    '<|image>',
    '<image|>',
    '<|image|>',
    '<|video|>',
    '<|audio>',
    '<audio|>',
    '<|audio|>',
)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|turn>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<|image|>"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<turn|>\n{% endfor %}"
    '{% if add_generation_prompt %}<|turn>model\n{% endif %}'
)

# What is different in the text configuration of each shape.
SHAPES = {
    'dense': {},
    'experts': {
        'enable_moe_block': True,
        'num_experts': 4,
        'top_k_experts': 2,
        'moe_intermediate_size': 24,
        'attention_k_eq_v': True,
        'num_global_key_value_heads': 1,
    },
    'layer_inputs': {
        'hidden_size_per_layer_input': 8,
        'num_kv_shared_layers': 2,
        'use_double_wide_mlp': True,
        'use_bidirectional_attention': None,
    },
}


def write_tiny_gemma4(
    folder: Path, shape: str = 'dense', window: int = 16, seed: int = 0, unified: bool = False, **text
) -> Path:
    """Write the directory: 12 cells for a 640 x 480 picture, 2 vision and 4 text layers, float32.

    shape: one of SHAPES. window: of the sliding layers, in tokens. text: other values of the text configuration.
    unified: gemma4_unified, which has no vision tower: 266 cells.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ids = _write_tokenizer(folder)
    config = _config(ids) | (_unified() if unified else {})
    config['text_config'] |= {'sliding_window': window} | SHAPES[shape] | text
    (folder / 'config.json').write_text(json.dumps(config))
    (folder / 'processor_config.json').write_text(
        json.dumps(
            {
                'processor_class': 'Gemma4UnifiedProcessor' if unified else 'Gemma4Processor',
                'image_processor': {
                    'image_processor_type': 'Gemma4UnifiedImageProcessor' if unified else 'Gemma4ImageProcessor',
                    'patch_size': 4,
                    'max_soft_tokens': 16,
                    'pooling_kernel_size': 3,
                },
            }
        )
    )
    _write_weights(folder, config, seed)
    return folder


def _write_tokenizer(folder: Path) -> dict[str, int]:
    words = (*SPECIAL, *WORDS, 'model', '\n')
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token='<unk>'))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split('\n', 'isolated'),
            pre_tokenizers.Split(' ', 'removed'),
            pre_tokenizers.Punctuation('isolated'),
        ]
    )
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    # Like the real ones: it begins every text, and the chat template writes that token itself.
    bos = ('<bos>', tokenizer.token_to_id('<bos>'))
    tokenizer.post_processor = processors.TemplateProcessing(single='<bos> $A', special_tokens=[bos])
    tokenizer.save(str(folder / 'tokenizer.json'))
    (folder / 'tokenizer_config.json').write_text(
        json.dumps(
            {
                'tokenizer_class': 'PreTrainedTokenizerFast',
                'bos_token': '<bos>',
                'eos_token': '<eos>',
                'pad_token': '<pad>',
                'unk_token': '<unk>',
                'chat_template': CHAT_TEMPLATE,
                'model_max_length': 8192,
                'extra_special_tokens': {
                    'image_token': '<|image|>',
                    'boi_token': '<|image>',
                    'eoi_token': '<image|>',
                    'audio_token': '<|audio|>',
                    'boa_token': '<|audio>',
                    'eoa_token': '<audio|>',
                },
            }
        )
    )
    return tokenizer.get_vocab()


def _config(ids: dict[str, int]) -> dict:
    return {
        'model_type': 'gemma4',
        'architectures': ['Gemma4ForConditionalGeneration'],
        'vocab_size': len(ids),
        'hidden_size': 48,
        'eos_token_id': [ids['<eos>'], ids['<turn|>']],
        'image_token_id': ids['<|image|>'],
        'boi_token_id': ids['<|image>'],
        'eoi_token_id': ids['<image|>'],
        'video_token_id': ids['<|video|>'],
        'audio_token_id': ids['<|audio|>'],
        'boa_token_id': ids['<|audio>'],
        'eoa_token_id': ids['<audio|>'],
        'vision_soft_tokens_per_image': 16,
        'audio_config': None,
        'text_config': {
            'model_type': 'gemma4_text',
            'hidden_size': 48,
            'num_hidden_layers': 4,
            'intermediate_size': 64,
            'num_attention_heads': 4,
            'num_key_value_heads': 2,
            'head_dim': 12,
            'global_head_dim': 16,
            'vocab_size': len(ids),
            'vocab_size_per_layer_input': len(ids),
            'hidden_size_per_layer_input': 0,
            'num_kv_shared_layers': 0,
            'use_double_wide_mlp': False,
            'max_position_embeddings': 8192,
            'use_bidirectional_attention': 'vision',
            'final_logit_softcapping': 5.0,
            'layer_types': ['sliding_attention', 'full_attention'] * 2,
            'rope_parameters': {
                'full_attention': {'rope_type': 'proportional', 'rope_theta': 1e6, 'partial_rotary_factor': 0.25},
                'sliding_attention': {'rope_type': 'default', 'rope_theta': 1e4},
            },
        },
        'vision_config': {
            'model_type': 'gemma4_vision',
            'hidden_size': 32,
            'intermediate_size': 48,
            'num_hidden_layers': 2,
            'num_attention_heads': 2,
            'num_key_value_heads': 2,
            'head_dim': 16,
            'global_head_dim': 16,
            'patch_size': 4,
            'pooling_kernel_size': 3,
            'position_embedding_size': 64,
            'default_output_length': 16,
        },
    }


def _unified() -> dict:
    """What is different in gemma4_unified. Its cells are as large as the real ones: mlx-vlm 0.7.10 sets that itself."""
    return {
        'model_type': 'gemma4_unified',
        'architectures': ['Gemma4UnifiedForConditionalGeneration'],
        'vision_config': {
            'model_type': 'gemma4_unified_vision',
            'patch_size': 16,
            'pooling_kernel_size': 3,
            'model_patch_size': 48,
            'mm_embed_dim': 32,
            'mm_posemb_size': 280,
            'num_soft_tokens': 280,
            'output_proj_dims': 32,
        },
    }


def _write_weights(folder: Path, config: dict, seed: int) -> None:
    gemma4 = import_module(f'mlx_vlm.models.{config["model_type"]}')
    model_config = gemma4.ModelConfig.from_dict(dict(config))
    model_config.text_config = gemma4.TextConfig.from_dict(config['text_config'])
    model_config.vision_config = gemma4.VisionConfig.from_dict(config['vision_config'])
    key = mx.random.key(seed)
    weights = {}
    for name, value in tree_flatten(gemma4.Model(model_config).parameters()):
        key, draw = mx.random.split(key)
        noise = mx.random.normal(value.shape, key=draw)
        if value.ndim == 1:  # all of them scales; the last one makes logits that are not nearly tied
            weights[name] = (4.0 if name == 'language_model.model.norm.weight' else 1.0) + 0.1 * noise
        else:  # tokens' own embeddings small, so that answers depend on the picture and do not repeat the last token
            size = 0.6 if name == 'language_model.model.embed_tokens.weight' else 2.5
            weights[name] = size / value.shape[-1] ** 0.5 * noise
    mx.save_safetensors(str(folder / 'model.safetensors'), weights)
