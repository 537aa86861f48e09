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

"""The embedded model's shape and the files beside its weights: tokenizer, chat template, picture processor.

It is an ordinary Qwen2.5-VL, only small.
"""

import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordLevel

from vlm_reuse_node.demo.words import vocabulary

SPECIAL = (
    '<|endoftext|>',
    '<|im_start|>',
    '<|im_end|>',
    '<|vision_start|>',
    '<|vision_end|>',
    '<|vision_pad|>',
    '<|image_pad|>',
    '<|video_pad|>',
    '[UNK]',
)
ROLES = ('system', 'user', 'assistant')
MODEL_DIRECTORY = Path(__file__).parent / 'tabletop_model'
# One cell (visual token) is 28 x 28 px: 9 x 12 cells for a 4:3 picture.
CELL = 28
ROWS, COLUMNS = 9, 12
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)

# Spellings and plurals that mean the same word; only the right-hand side is in the vocabulary.
_SAME_WORD = {
    r'colou?rs?': 'color',
    'centre': 'center',
    'circles': 'circle',
    'squares': 'square',
    'objects': 'object',
    'triangles': 'triangle',
    'crosses': 'cross',
    'crosss': 'cross',
    'things': 'thing',
    'corners': 'corner',
    'an': 'a',
    'upper': 'top',
    'lower': 'bottom',
}

CHAT_TEMPLATE = (
    '{% for message in messages %}<|im_start|>{{ message.role }}\n'
    '{% if message.content is string %}{{ message.content }}'
    '{% else %}{% for part in message.content %}'
    '{% if part.type == "image" or "image" in part %}<|vision_start|><|image_pad|><|vision_end|>'
    '{% elif "text" in part %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}'
    '{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}'
)


def build_tokenizer() -> Tokenizer:
    """Return a word tokenizer: case and punctuation do not matter, a word it does not know is [UNK]."""
    words = [*SPECIAL, *ROLES, *vocabulary()]
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token='[UNK]'))
    spellings = [normalizers.Replace(Regex(rf'\b{word}\b'), same) for word, same in _SAME_WORD.items()]
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Lowercase(),
            normalizers.Replace("'s", ' is'),
            normalizers.Replace(Regex(r'[^a-z0-9\s]'), ' '),
            *spellings,
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def model_config(tokenizer: Tokenizer) -> dict:
    """Return the whole config.json, in the layout that mlx-vlm reads: the text fields at the root."""
    token = tokenizer.token_to_id
    return {
        'model_type': 'qwen2_5_vl',
        'architectures': ['Qwen2_5_VLForConditionalGeneration'],
        'torch_dtype': 'float16',
        'vocab_size': tokenizer.get_vocab_size(),
        'hidden_size': 192,
        'num_hidden_layers': 5,
        'intermediate_size': 448,
        'num_attention_heads': 6,
        'num_key_value_heads': 3,
        'rms_norm_eps': 1e-6,
        'max_position_embeddings': 4096,
        # A small base: 8 pictures span about 120 positions, and 12 columns must be told apart by the slowest turns.
        'rope_theta': 40.0,
        'rope_scaling': {'type': 'mrope', 'mrope_section': [4, 6, 6]},
        'hidden_act': 'silu',
        'tie_word_embeddings': True,
        'bos_token_id': None,
        'eos_token_id': token('<|im_end|>'),
        'pad_token_id': token('<|endoftext|>'),
        'image_token_id': token('<|image_pad|>'),
        'video_token_id': token('<|video_pad|>'),
        'vision_start_token_id': token('<|vision_start|>'),
        'vision_end_token_id': token('<|vision_end|>'),
        'vision_token_id': token('<|vision_pad|>'),
        'vision_config': {
            'model_type': 'qwen2_5_vl',
            'depth': 4,
            'hidden_size': 128,
            'intermediate_size': 256,
            'num_heads': 4,
            'out_hidden_size': 192,
            'in_channels': 3,
            'patch_size': 14,
            'spatial_patch_size': 14,
            'spatial_merge_size': 2,
            'temporal_patch_size': 2,
            'window_size': 84,
            'fullatt_block_indexes': [1, 3],
            'hidden_act': 'silu',
        },
    }


def write_model_files(directory: Path) -> None:
    """Write everything but the weights and the model card."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    tokenizer.save(str(directory / 'tokenizer.json'))
    pixels = CELL * CELL * ROWS * COLUMNS
    # A little slack around the exact area keeps rounding from losing a row or a column of cells.
    processor = {
        'image_processor_type': 'Qwen2VLImageProcessor',
        'processor_class': 'Qwen2_5_VLProcessor',
        'min_pixels': pixels - 500,
        'max_pixels': pixels + 500,
        'patch_size': 14,
        'temporal_patch_size': 2,
        'merge_size': 2,
        'image_mean': IMAGE_MEAN,
        'image_std': IMAGE_STD,
    }
    words = {
        'tokenizer_class': 'PreTrainedTokenizerFast',
        'chat_template': CHAT_TEMPLATE,
        'unk_token': '[UNK]',
        'eos_token': '<|im_end|>',
        'pad_token': '<|endoftext|>',
        'model_max_length': 4096,
        'clean_up_tokenization_spaces': False,
        'additional_special_tokens': list(SPECIAL),
    }
    generation = {'eos_token_id': tokenizer.token_to_id('<|im_end|>'), 'do_sample': False}
    for name, content in (
        ('config.json', model_config(tokenizer)),
        ('preprocessor_config.json', processor),
        ('tokenizer_config.json', words),
        ('generation_config.json', generation),
    ):
        (directory / name).write_text(json.dumps(content, indent=1) + '\n')
