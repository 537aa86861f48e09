"""Model directories for the benchmarks: random weights, the proportions of real architectures, no download.

The writers of the tests' tiny models, with other sizes: small vocabularies, so that the parameters sit in the layers.
Tokens that are no words have no weight in the output, so that an answer always has as many tokens as it may have.
"""

import json
import sys
from pathlib import Path

import mlx.core as mx

sys.path.append(str(Path(__file__).parents[1] / 'test'))

import tiny_gemma4  # noqa: E402
import tiny_model  # noqa: E402

CELLS = 64
# Of the tied embeddings: small, or each token of an answer would only repeat the one before.
TIED_SCALE = 0.2
CONTEXT = 32768
SEED = 0

# Heads of 128 as in Qwen2.5-VL, of 128 and 256 as half of Gemma 4's. Few and wide layers: on a CPU attention takes more
# of the time than in large models, and all the more in narrow ones.
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
QWEN_VISION = {
    'depth': 2,
    'hidden_size': 320,
    'intermediate_size': 1280,
    'out_hidden_size': 512,
    'num_heads': 4,
    'window_size': 112,
    'fullatt_block_indexes': [1],
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


def write_qwen2_5_vl(folder: Path, tiny: bool = False, cells: int = CELLS) -> Path:
    """Write a Qwen2.5-VL of 30 M parameters and 64 cells a picture. tiny: the tests' model with 12 cells instead.

    cells: most of a picture, a square number; others than squares have fewer, as whole rows and columns come out.
    """
    tiny_model.write_tiny_model(folder, SEED)
    config = _read(folder / 'config.json')
    if not tiny:
        config |= QWEN
        config['vision_config'] |= QWEN_VISION
        _write(folder / 'config.json', config)
        cell = 2 * config['vision_config']['patch_size']
        side = round(cells**0.5) * cell
        _change(folder / 'preprocessor_config.json', min_pixels=(side - cell) ** 2, max_pixels=side * side)
        tiny_model._write_weights(folder, config, SEED)
    _set_output(folder, 'language_model.lm_head.weight', tiny_model.SPECIAL)
    return folder


def write_gemma4(folder: Path, tiny: bool = False) -> Path:
    """Write a Gemma 4 of 30 M parameters and 64 cells a picture, five sliding layers for each full one.

    Its window of 512 tokens is shorter than the prompt from 8 pictures on. tiny: the tests' model, a window of 16.
    """
    tiny_gemma4.write_tiny_gemma4(folder, seed=SEED)
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


SHAPES = {'qwen2_5_vl': write_qwen2_5_vl, 'gemma4': write_gemma4}


def _set_output(folder, name, tokens, scale=1.0):
    """Scale the output weights; these tokens get logits of 0, which are never the largest."""
    weights = mx.load(str(folder / 'model.safetensors'))
    vocabulary = _read(folder / 'tokenizer.json')['model']['vocab']
    weights[name] *= scale
    weights[name][mx.array([vocabulary[token] for token in tokens])] = 0.0
    mx.eval(weights)
    mx.save_safetensors(str(folder / 'model.safetensors'), weights)


def _read(path):
    return json.loads(path.read_text())


def _write(path, values):
    path.write_text(json.dumps(values))


def _change(path, **values):
    _write(path, _read(path) | values)
