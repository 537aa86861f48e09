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

"""Model directories for the benchmarks: random weights, the proportions of real architectures, no download.

They are the tests' tiny models at other sizes. Their vocabularies are small, so that the parameters are in the layers.
Special tokens have no weight in the output, so that an answer never ends before its limit of tokens.
"""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

sys.path.append(str(Path(__file__).parents[1] / 'test'))

import tiny_gemma4  # noqa: E402
import tiny_model  # noqa: E402
import tiny_qwen3  # noqa: E402

from vlm_reuse_node.model.vlm import Vlm  # noqa: E402

CELLS = 64
# Of the tied embeddings. With larger ones each token of an answer would only repeat the one before.
TIED_SCALE = 0.2
CONTEXT = 32768
SEED = 0

# Heads of 128 as in Qwen2.5-VL, and of 128 and 256, half of Gemma 4's. The layers are few and wide, because on a CPU
# attention takes a larger part of the time than in large models, and a still larger one in narrow layers.
QWEN = {
    'hidden_size': 512,
    'intermediate_size': 3456,
    'num_hidden_layers': 4,
    'num_attention_heads': 4,
    'num_key_value_heads': 2,
    'rope_scaling': {'type': 'mrope', 'mrope_section': [16, 24, 24]},
    'rope_theta': 1e6,
    'max_position_embeddings': CONTEXT,
}
WEIGHT_BOUND = QWEN | {
    'hidden_size': 1024,
    'intermediate_size': 5504,
    'num_hidden_layers': 8,
    'num_attention_heads': 8,
}
QWEN_VISION = {
    'depth': 2,
    'hidden_size': 320,
    'intermediate_size': 1280,
    'num_heads': 4,
    'window_size': 112,
    'fullatt_block_indexes': [1],
}
WEIGHT_BOUND_VISION = QWEN_VISION | {'hidden_size': 128, 'intermediate_size': 512, 'num_heads': 2}
WEIGHT_BOUND_CELLS = 16
# Of Qwen3.5 4B: three recurrent layers for each full one, a recurrent state of 0.3 % of the parameters, and 0.3 of the
# arithmetic of a picture in the vision tower. Narrow heads keep the first and the second at this width.
QWEN3_5_TEXT = {
    'hidden_size': 512,
    'intermediate_size': 2816,
    'num_hidden_layers': 4,
    'num_attention_heads': 4,
    'num_key_value_heads': 2,
    'head_dim': 128,
    'full_attention_interval': 4,
    'linear_num_key_heads': 16,
    'linear_num_value_heads': 32,
    'linear_key_head_dim': 32,
    'linear_value_head_dim': 32,
    'max_position_embeddings': CONTEXT,
}
QWEN3_5_ROPE = {'mrope_section': [6, 5, 5], 'rope_theta': 1e7, 'partial_rotary_factor': 0.25}
QWEN3_5_VISION = {
    'depth': 2,
    'hidden_size': 256,
    'intermediate_size': 768,
    'num_heads': 4,
    'num_position_embeddings': 48**2,
}
GEMMA_TEXT = {
    'hidden_size': 512,
    'intermediate_size': 2560,
    'num_hidden_layers': 6,
    'num_attention_heads': 4,
    'num_key_value_heads': 2,
    'head_dim': 128,
    'global_head_dim': 256,
    'num_global_key_value_heads': 1,
    'sliding_window': 512,
    'layer_types': ['sliding_attention'] * 5 + ['full_attention'],
    'max_position_embeddings': CONTEXT,
}
DEEP_TEXT = GEMMA_TEXT | {
    'hidden_size': 768,
    'intermediate_size': 3840,
    'num_hidden_layers': 48,
    'layer_types': (['sliding_attention'] * 5 + ['full_attention']) * 8,
}
GEMMA_VISION = {
    'hidden_size': 192,
    'intermediate_size': 768,
    'num_hidden_layers': 2,
    'num_attention_heads': 3,
    'num_key_value_heads': 3,
    'head_dim': 64,
    'global_head_dim': 64,
    'patch_size': 16,
    'pooling_kernel_size': 3,
    'position_embedding_size': 64,
    'default_output_length': CELLS,
}


def write_qwen2_5_vl(
    folder: Path,
    tiny: bool = False,
    cells: int = CELLS,
    text: dict[str, Any] = QWEN,
    vision: dict[str, Any] = QWEN_VISION,
) -> Path:
    """Write a Qwen2.5-VL of 30 M parameters and 64 cells a picture. tiny: the tests' model with 12 cells instead.

    cells: most of a picture, a square number. Pictures that are not square get fewer: rows and columns are whole.
    text, vision: configurations of the language model and of the vision tower.
    """
    tiny_model.write_tiny_model(folder, SEED)
    config = _read(folder / 'config.json')
    if not tiny:
        config |= text
        config['vision_config'] |= vision | {'out_hidden_size': text['hidden_size']}
        _write(folder / 'config.json', config)
        cell = 2 * config['vision_config']['patch_size']
        side = round(cells**0.5) * cell
        _change(folder / 'preprocessor_config.json', min_pixels=(side - cell) ** 2, max_pixels=side * side)
        tiny_model._write_weights(folder, config, SEED)
    _set_output(folder, 'language_model.lm_head.weight', tiny_model.SPECIAL)
    return folder


def write_qwen3_5(folder: Path, tiny: bool = False, cells: int = CELLS) -> Path:
    """Write a Qwen3.5 of 30 M parameters. cells: most of a picture. tiny: the tests' model with 12 cells instead."""
    tiny_qwen3.write_tiny_qwen3(folder, 'qwen3_5', SEED)
    config = _read(folder / 'config.json')
    if not tiny:
        config['text_config'] |= QWEN3_5_TEXT
        config['text_config']['rope_parameters'] |= QWEN3_5_ROPE
        config['vision_config'] |= QWEN3_5_VISION | {'out_hidden_size': QWEN3_5_TEXT['hidden_size']}
        _write(folder / 'config.json', config)
        area = cells * 32**2
        _change(folder / 'preprocessor_config.json', size={'shortest_edge': area // 2, 'longest_edge': area})
        tiny_qwen3._write_weights(folder, config, SEED)
    _set_output(folder, 'language_model.lm_head.weight', tiny_model.SPECIAL)
    return folder


def write_gemma4(folder: Path, tiny: bool = False) -> Path:
    """Write a Gemma 4 of 30 M parameters and 64 cells a picture, five sliding layers for each full one.

    Its window of 512 tokens is shorter than the prompt from 8 pictures on. tiny: the tests' model, a window of 32.
    """
    tiny_gemma4.write_tiny_gemma4(folder, window=32, seed=SEED)
    config = _read(folder / 'config.json')
    if not tiny:
        config |= {'hidden_size': GEMMA_TEXT['hidden_size'], 'vision_soft_tokens_per_image': CELLS}
        config['text_config'] |= GEMMA_TEXT
        config['vision_config'] |= GEMMA_VISION
        _write(folder / 'config.json', config)
        processor = _read(folder / 'processor_config.json')
        processor['image_processor'] |= {name: GEMMA_VISION[name] for name in ('patch_size', 'pooling_kernel_size')} | {
            'max_soft_tokens': CELLS
        }
        _write(folder / 'processor_config.json', processor)
        tiny_gemma4._write_weights(folder, config, SEED)
    _set_output(folder, 'language_model.model.embed_tokens.weight', (*tiny_gemma4.SPECIAL, '\n'), TIED_SCALE)
    return folder


def write_gemma4_unified(folder: Path, tiny: bool = False) -> Path:
    """Write a Gemma 4 without a vision tower, 500 M parameters in 48 layers, 266 cells a picture. tiny: the tests'.

    A cell's values go through two matrices, a token through 48 layers: what vision costs beside prefill depends on the
    number of layers, so that is the 12B's.
    """
    text = {} if tiny else DEEP_TEXT
    tiny_gemma4.write_tiny_gemma4(folder, seed=SEED, unified=True, **text)
    if not tiny:
        config = _read(folder / 'config.json')
        config |= {'hidden_size': DEEP_TEXT['hidden_size']}
        config['vision_config'] |= dict.fromkeys(('mm_embed_dim', 'output_proj_dims'), DEEP_TEXT['hidden_size'])
        _write(folder / 'config.json', config)
        tiny_gemma4._write_weights(folder, config, SEED)
    return folder


def write_weight_bound(folder: Path, tiny: bool = False) -> Path:
    """Write a Qwen2.5-VL whose language model has 160 M parameters (630 MB), and 16 cells a picture.

    A pass of a few tokens costs the reading of the weights, as on a device with fast arithmetic. tiny: the tests'
    model.
    """
    return write_qwen2_5_vl(folder, tiny, WEIGHT_BOUND_CELLS, WEIGHT_BOUND, WEIGHT_BOUND_VISION)


@dataclass(frozen=True)
class Shape:
    """A shape, and what it is asked.

    write: (folder, tiny) writes its model. question_tokens: of a question, the end of the chat template included.
    frames: the numbers of pictures that it is measured with; (): any.
    """

    write: Callable[[Path, bool], Path]
    question_tokens: int = 12
    frames: tuple[int, ...] = ()


SHAPES = {
    'qwen2_5_vl': Shape(write_qwen2_5_vl),
    'gemma4': Shape(write_gemma4),
    'weight_bound': Shape(write_weight_bound, question_tokens=5, frames=(1,)),
}


def parameter_count(vlm: Vlm) -> int:
    """Return the number of parameters of a loaded model."""
    leaves: Any = tree_flatten(vlm._model.parameters())
    return sum(array.size for _, array in leaves)


def text_bytes(vlm: Vlm) -> int:
    """Return the bytes of a loaded model's language model."""
    leaves: Any = tree_flatten(vlm._model.language_model.parameters())
    return sum(array.nbytes for _, array in leaves)


def _set_output(folder: Path, name: str, tokens: Sequence[str], scale: float = 1.0) -> None:
    """Scale the output weights; these tokens get logits of 0, which are never the largest."""
    weights: Any = mx.load(str(folder / 'model.safetensors'))
    tokenizer = _read(folder / 'tokenizer.json')
    vocabulary = tokenizer['model']['vocab'] | {added['content']: added['id'] for added in tokenizer['added_tokens']}
    weights[name] *= scale
    weights[name][mx.array([vocabulary[token] for token in tokens])] = 0.0
    mx.eval(weights)
    mx.save_safetensors(str(folder / 'model.safetensors'), weights)


def _read(path: Path) -> dict:
    return json.loads(path.read_text())


def _write(path: Path, values: dict) -> None:
    path.write_text(json.dumps(values))


def _change(path: Path, **values: Any) -> None:
    _write(path, _read(path) | values)
