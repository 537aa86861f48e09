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

"""Tiny random-weight model directories of the Qwen3-VL and Qwen3.5 families, as mlx-vlm loads them."""

import json
from importlib import import_module
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from mlx_vlm.models.qwen3_5 import gated_delta
from mlx_vlm.prompt_utils import apply_chat_template
from PIL import Image
from tiny_model import _write_bytes

HIDDEN = 48
LEVELS = 2
CONTEXT = 4096
EXPERTS = {'num_experts': 4, 'num_experts_per_tok': 2, 'moe_intermediate_size': 32, 'norm_topk_prob': True}

# mlx-vlm inverts the triangle of a recurrent block in a loop of 63 steps. In layers this small the loop would take two
# thirds of the tests' time; LAPACK's inverse differs by rounding only (test_qwen3_5.py).
INVERSE_OF_MLX_VLM = gated_delta._invert_unit_lower
gated_delta._invert_unit_lower = lambda triangle, _: mx.linalg.tri_inv(triangle, upper=False, stream=mx.cpu)


def write_tiny_qwen3(folder: Path, model_type: str, seed: int = 0, tied: bool = False) -> Path:
    """Write the directory: 12 cells of 32 px for a 640 x 480 picture, 3 vision and 4 text layers, float32.

    model_type: 'qwen3_vl', 'qwen3_vl_moe' (2 DeepStack levels), 'qwen3_5' or 'qwen3_5_moe' (layers 0 and 2 recurrent).
    The tokenizer is byte-level BPE: for Qwen3.5 transformers loads its own class, which replaces any other kind.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ids = _write_bytes(folder)
    config = _config(model_type, ids, tied)
    (folder / 'config.json').write_text(json.dumps(config))
    (folder / 'preprocessor_config.json').write_text(
        json.dumps(
            {
                'image_processor_type': 'Qwen2VLImageProcessorFast',
                'patch_size': 16,
                'temporal_patch_size': 2,
                'merge_size': 2,
                'size': {'shortest_edge': 128 * 128, 'longest_edge': 128 * 128},
                'image_mean': [0.5] * 3,
                'image_std': [0.5] * 3,
            }
        )
    )
    _write_weights(folder, config, seed)
    return folder


def _config(model_type: str, ids: dict[str, int], tied: bool) -> dict:
    recurrent = model_type.startswith('qwen3_5')
    text = {
        'model_type': f'{model_type}_text',
        'hidden_size': HIDDEN,
        'intermediate_size': 96,
        'num_hidden_layers': 4,
        'num_attention_heads': 4,
        'num_key_value_heads': 2,
        'head_dim': 16,
        'rms_norm_eps': 1e-6,
        'vocab_size': len(ids),
        'max_position_embeddings': CONTEXT,
        'tie_word_embeddings': tied,
    }
    text |= (
        _gated_delta()
        if recurrent
        else {
            'rope_theta': 10000.0,
            'rope_scaling': {'rope_type': 'default', 'mrope_interleaved': True, 'mrope_section': [4, 2, 2]},
        }
    )
    if model_type.endswith('_moe'):
        text |= EXPERTS | (
            {'shared_expert_intermediate_size': 32} if recurrent else {'decoder_sparse_step': 1, 'mlp_only_layers': [1]}
        )
    return {
        'model_type': model_type,
        'tie_word_embeddings': tied,
        'text_config': text,
        'eos_token_id': [ids['<|im_end|>'], ids['<|endoftext|>']],
        'image_token_id': ids['<|image_pad|>'],
        'video_token_id': ids['<|video_pad|>'],
        'vision_start_token_id': ids['<|vision_start|>'],
        'vision_end_token_id': ids['<|vision_end|>'],
        'vision_config': {
            'model_type': model_type,
            'depth': 3,
            'hidden_size': 32,
            'intermediate_size': 64,
            'out_hidden_size': HIDDEN,
            'num_heads': 2,
            'patch_size': 16,
            'spatial_merge_size': 2,
            'temporal_patch_size': 2,
            'num_position_embeddings': 64,
            'deepstack_visual_indexes': [] if recurrent else list(range(LEVELS)),
        },
    }


def _gated_delta() -> dict:
    """Key heads of 32, the least that mlx-vlm's Metal kernel takes."""
    return {
        'full_attention_interval': 2,
        'linear_num_key_heads': 1,
        'linear_num_value_heads': 2,
        'linear_key_head_dim': 32,
        'linear_value_head_dim': 16,
        'linear_conv_kernel_dim': 4,
        'rope_parameters': {
            'rope_type': 'default',
            'mrope_interleaved': True,
            'mrope_section': [2, 1, 1],
            'rope_theta': 10000.0,
            'partial_rotary_factor': 0.5,
        },
    }


def _write_weights(folder: Path, config: dict, seed: int) -> None:
    library = import_module(f'mlx_vlm.models.{config["model_type"]}')
    model = library.Model(library.ModelConfig.from_dict(json.loads(json.dumps(config))))
    key = mx.random.key(seed)
    weights = {}
    for name, value in tree_flatten(model.parameters()):
        key, draw = mx.random.split(key)
        noise = mx.random.normal(value.shape, key=draw)
        if name.endswith('A_log'):  # heads that remember from a few to hundreds of tokens
            weights[name] = -3.0 + noise
        elif value.ndim == 1:  # norms around 1, small biases
            weights[name] = 0.1 * noise + (1.0 if 'norm' in name and name.endswith('weight') else 0.0)
        else:  # large enough that answers depend on the picture and that no two logits are nearly tied
            weights[name] = 2.5 / value[0].size ** 0.5 * noise
    mx.save_safetensors(str(folder / 'model.safetensors'), weights)


def chat(upstream: tuple, text: str, pictures: list, system: str = '') -> tuple:
    """What mlx-vlm computes for a chat: prompt, token ids mx (1, length), pixel values, patches mx (pictures, 3)."""
    model, processor = upstream
    messages = [{'role': 'system', 'content': system}] * bool(system) + [{'role': 'user', 'content': text}]
    prompt = apply_chat_template(processor, model.config, messages, num_images=len(pictures))
    batch = processor(text=[prompt], images=[Image.fromarray(frame.rgb) for frame in pictures])
    return prompt, batch['input_ids'], batch['pixel_values'], batch['image_grid_thw']


def full_logits(upstream: tuple, ids: mx.array, pixels: mx.array, patches: mx.array) -> np.ndarray:
    """Logits of a whole prompt in one forward of mlx-vlm: (length, vocabulary)."""
    return np.array(upstream[0](ids, pixels, image_grid_thw=patches).logits[0])


def run(vlm, ids: list[int], positions: np.ndarray, embeddings: mx.array, cache: list, limit: int) -> np.ndarray:
    """Logits of all of these tokens, in forward calls of at most `limit`: (length, vocabulary)."""
    parts = [
        vlm.family.forward(ids[part], embeddings[:, part], positions[:, part], cache, range(len(ids[part])))
        for part in vlm.family.chunks(ids, limit)
    ]
    return np.array(mx.concatenate(parts))


def prompt(vlm, text: str, pictures: list, system: str = '') -> tuple[list[int], np.ndarray, mx.array]:
    """A whole prompt by the family alone: ids, positions (3, length), embeddings mx (1, length, width)."""
    template = vlm.template(system, len(pictures))
    prepared = [vlm.family.prepare(frame.rgb) for frame in pictures]
    features = mx.concatenate([vlm.family.encode(*given) for given in prepared])
    ids = vlm.family.expand(template.prefix, [grid for _, grid in prepared]) + template.question(text)
    return ids, vlm.family.positions(ids, [grid for _, grid in prepared]), vlm.family.embed(ids, features)
