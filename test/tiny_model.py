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

"""A tiny random-weight Qwen2.5-VL model directory as mlx-vlm loads it (no download, no torch), and pictures for it."""

import json
from importlib import import_module
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.trainers import BpeTrainer

from vlm_reuse_node.scene.frame import Frame

SECOND_NS = 1_000_000_000

SPECIAL = (
    '<unk>',
    '<|endoftext|>',
    '<|im_start|>',
    '<|im_end|>',
    '<|vision_start|>',
    '<|vision_end|>',
    '<|image_pad|>',
    '<|video_pad|>',
)
WORDS = (
    'system user assistant you are a helpful . ? ! , what is the color colour of square circle red green blue '
    'yellow yes no it how many objects there in picture left right top bottom one two three four on table '
    'describe scene please and or not see do'
).split()
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    '<|im_start|>system\nyou are a helpful assistant .<|im_end|>\n{% endif %}'
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    '<|vision_start|><|image_pad|><|vision_end|>'
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    '{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}'
)


def picture(seed: int, stamp_s: float = 0.0, size: tuple[int, int] = (480, 640), camera: str = 'camera') -> Frame:
    """A picture of large coloured blocks, another one for every seed."""
    height, width = size
    blocks = np.random.default_rng(seed).integers(0, 256, (height // 40, width // 40, 3), dtype=np.uint8)
    rgb = blocks.repeat(40, axis=0).repeat(40, axis=1)
    return Frame(rgb, stamp_ns=int(stamp_s * SECOND_NS), frame_id=f'{camera}_optical', camera=camera)


def write_tiny_model(folder: Path, seed: int = 0, tokenizer: str = 'words', tied: bool = False) -> Path:
    """Write the directory: 12 cells for a 640 x 480 picture, 2 vision and 2 text layers, float32.

    tokenizer: 'words' (lower-casing, like the embedded model's) or 'bytes' (byte-level BPE, like Qwen's).
    """
    folder.mkdir(parents=True, exist_ok=True)
    ids = (_write_words if tokenizer == 'words' else _write_bytes)(folder)
    config = _config(ids) | {'tie_word_embeddings': tied}
    (folder / 'config.json').write_text(json.dumps(config))
    (folder / 'preprocessor_config.json').write_text(
        json.dumps(
            {
                'image_processor_type': 'Qwen2VLImageProcessor',
                'patch_size': 14,
                'temporal_patch_size': 2,
                'merge_size': 2,
                'min_pixels': 112 * 112,
                'max_pixels': 112 * 112,
                'image_mean': [0.5] * 3,
                'image_std': [0.5] * 3,
            }
        )
    )
    _write_weights(folder, config, seed)
    return folder


def write_tiny_qwen2(folder: Path, seed: int = 0) -> Path:
    """Write a tiny Qwen2-VL, whose vision tower has no windows."""
    config = json.loads((write_tiny_model(folder, tokenizer='bytes') / 'config.json').read_text())
    vision = {'model_type': 'qwen2_vl', 'depth': 2, 'embed_dim': 32, 'mlp_ratio': 2, 'hidden_size': 48, 'num_heads': 2}
    config |= {'model_type': 'qwen2_vl', 'vision_config': vision}
    (folder / 'config.json').write_text(json.dumps(config))
    _write_weights(folder, config, seed)
    return folder


def replace_in_chat_template(folder: Path, old: str, new: str) -> Path:
    """Change a model directory's chat template."""
    file = folder / 'tokenizer_config.json'
    content = json.loads(file.read_text())
    assert old in content['chat_template']
    file.write_text(json.dumps(content | {'chat_template': content['chat_template'].replace(old, new)}))
    return folder


def _config(ids: dict[str, int]) -> dict:
    return {
        'model_type': 'qwen2_5_vl',
        'architectures': ['Qwen2_5_VLForConditionalGeneration'],
        'hidden_size': 48,
        'intermediate_size': 96,
        'num_hidden_layers': 2,
        'num_attention_heads': 4,
        'num_key_value_heads': 2,
        'rms_norm_eps': 1e-6,
        'vocab_size': len(ids),
        'max_position_embeddings': 4096,
        'rope_theta': 10000.0,
        'rope_scaling': {'type': 'mrope', 'mrope_section': [2, 2, 2]},
        'tie_word_embeddings': False,
        'eos_token_id': [ids['<|im_end|>'], ids['<|endoftext|>']],
        'image_token_id': ids['<|image_pad|>'],
        'video_token_id': ids['<|video_pad|>'],
        'vision_start_token_id': ids['<|vision_start|>'],
        'vision_end_token_id': ids['<|vision_end|>'],
        'vision_config': {
            'model_type': 'qwen2_5_vl',
            'depth': 2,
            'hidden_size': 32,
            'intermediate_size': 64,
            'out_hidden_size': 48,
            'num_heads': 2,
            'patch_size': 14,
            'spatial_merge_size': 2,
            'temporal_patch_size': 2,
            'window_size': 56,
            'fullatt_block_indexes': [1],
        },
    }


def _write_words(folder: Path) -> dict[str, int]:
    ids = {word: index for index, word in enumerate((*SPECIAL, *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token='<unk>'))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece()
    return _save_tokenizer(folder, tokenizer, unk_token='<unk>')


def _write_bytes(folder: Path) -> dict[str, int]:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        [' '.join(WORDS)], BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    return _save_tokenizer(folder, tokenizer)


def _save_tokenizer(folder: Path, tokenizer: Tokenizer, **values: str) -> dict[str, int]:
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.save(str(folder / 'tokenizer.json'))
    (folder / 'tokenizer_config.json').write_text(
        json.dumps(
            values
            | {
                'tokenizer_class': 'PreTrainedTokenizerFast',
                'eos_token': '<|im_end|>',
                'pad_token': '<|endoftext|>',
                'chat_template': CHAT_TEMPLATE,
                'model_max_length': 4096,
            }
        )
    )
    return tokenizer.get_vocab()


def _write_weights(folder: Path, config: dict, seed: int) -> None:
    module = import_module(f'mlx_vlm.models.{config["model_type"]}')
    model_config = module.ModelConfig.from_dict(dict(config))
    model_config.text_config = module.TextConfig.from_dict(config)
    model_config.vision_config = module.VisionConfig.from_dict(config['vision_config'])
    key = mx.random.key(seed)
    weights = {}
    for name, value in tree_flatten(module.Model(model_config).parameters()):
        key, draw = mx.random.split(key)
        noise = mx.random.normal(value.shape, key=draw)
        if value.ndim == 1:  # norms around 1, small biases
            weights[name] = 0.1 * noise + (1.0 if 'norm' in name or 'ln_q' in name else 0.0)
        else:  # large enough that answers depend on the picture and that no two logits are nearly tied
            weights[name] = 2.5 / value[0].size ** 0.5 * noise
    mx.save_safetensors(str(folder / 'model.safetensors'), weights)
