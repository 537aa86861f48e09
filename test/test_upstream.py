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

"""What the package relies on in mlx and mlx-vlm, by name and argument: with another release it says what changed.

`python test/test_upstream.py` writes the table anew.
"""

import ast
import inspect
import re
import sys
import textwrap
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import mlx.core as mx
import mlx.nn as nn
import mlx_vlm.models
import pytest
from mlx_vlm.version import __version__ as VERSION

from vlm_reuse_node.model.families.base import FAMILIES
from vlm_reuse_node.model.families.model_types import vision_module

PACKAGE = Path(__file__).parents[1] / 'vlm_reuse_node'
BEGIN, END = '# The table.\n', '# The end of the table.\n'
# The table.
TABLE_OF = '0.7.10'
TABLE = {
    'types': (
        'aya_vision clef cohere_compass colidefics3 colqwen2_5 d1 d1_omni deepseek_vl_v2 deepseekocr deepseekocr_2 '
        'diffusion_gemma dots_ocr embedding_gemma2 ernie4_5_moe_vl falcon_ocr falcon_perception fastvlm florence2 '
        'gemma3 gemma3n gemma4 gemma4_unified glm4v glm4v_moe glm5_next glm_ocr got granite4_vision granite_vision '
        'hunyuan_vl idefics2 idefics3 indic_ocr inkling internvl internvl_chat jina_vlm kimi_k25 kimi_k3 kimi_vl '
        'lfm2_vl llama4 llama_nemotron_vl_embedding llava llava_bunny llava_next llava_onevision llmjpvl '
        'locateanything mage_vl mimo_v2 minicpmo minicpmv4_6 minicpmv4_7 minimax_m3_vl mistral3 mistral_large3 '
        'mllama molmo molmo2 molmo_point moondream2 moondream3 multi_modality muse_glimmer muse_spark '
        'nemotron_h_nano_omni nemotron_parse paddleocr_vl paligemma phi3_v phi4_siglip phi4mm pixtral plamo2vl '
        'pp_doclayout_v3 prism_hadamard_qwen35 qwen2_5_vl qwen2_vl qwen3_5 qwen3_5_moe qwen3_omni_moe qwen3_vl '
        'qwen3_vl_embedding qwen3_vl_moe qwen4_exp rfdetr rt_detr_v2 sam3 sam3_1 sam3d_body sam3d_objects siglip '
        'smolvlm step3p7 unlimited_ocr video_depth_anything youtu_vl zaya1_vl'
    ),
    'mlx_vlm.models.cache.CacheList': 'caches empty merge nbytes prepare size state trim',
    'mlx_vlm.models.cache.KVCache': (
        'keys offset values empty make_mask merge nbytes size state step trim update_and_fetch'
    ),
    'mlx_vlm.stream_generate': 'model processor prompt image audio video kwargs',
    'mlx_vlm.prompt_utils.apply_chat_template': (
        'processor config prompt add_generation_prompt return_messages num_images num_audios kwargs'
    ),
    'mlx_vlm.models.base.to_mlx': 'data',
    'mlx_vlm.prompt_utils.get_chat_template': 'processor messages add_generation_prompt tokenize kwargs',
    'mlx_vlm.utils.prepare_inputs': (
        'processor images audio videos prompts image_token_index resize_shape add_special_tokens padding '
        'padding_side pad_to_uniform_size return_tensors kwargs'
    ),
    'mlx_vlm.utils.should_add_special_tokens': 'model_type processor',
    'mlx_vlm.models.cache.ArraysCache': 'cache empty lengths make_mask merge nbytes prepare state',
    'mlx_vlm.models.base.ensure_fused_sdpa': 'q k v scale mask',
    'mlx_vlm.models.gemma4.vision.apply_multidimensional_rope': 'inputs positions base_frequency',
    'mlx_vlm.utils.get_model_type': 'config',
    'mlx_vlm.generate.generate_step': (
        'input_ids model pixel_values mask max_tokens temperature repetition_penalty repetition_context_size '
        'presence_penalty presence_context_size frequency_penalty frequency_context_size top_p min_p top_k '
        'top_n_sigma p_less typical_p logit_bias prompt_cache max_kv_size kv_bits kv_key_bits kv_value_bits '
        'kv_key_scheme kv_value_scheme kv_group_size kv_quant_scheme quantized_kv_start sampler logits_processors '
        'prefill_step_size draft_model draft_kind draft_block_size prompt_cache_checkpoint '
        'prompt_cache_checkpoint_len prompt_cache_checkpoint_lengths seed verbose kwargs'
    ),
    'mlx_vlm.models.cache.RotatingKVCache': (
        '_idx keep keys max_size offset values empty make_mask merge nbytes size state step trim update_and_fetch'
    ),
    'mlx_vlm.models.cache.make_prompt_cache': 'model max_kv_size',
    'mlx_vlm.models.qwen2_5_vl.vision.apply_rotary_pos_emb_vision': 'tensor freqs',
    'mlx_vlm.models.cache.ChunkedKVCache': 'keys offset values empty nbytes state step trim update_and_fetch',
    'mlx_vlm.models.cache.ConcatenateKVCache': 'keys offset values empty make_mask nbytes state trim update_and_fetch',
    'mlx_vlm.models.cache.PoolingCache': 'ratio empty make_mask merge nbytes offset size state trim update_and_fetch',
    'mlx_vlm.models.cache.QuantizedKVCache': (
        'bits group_size keys offset values empty make_mask nbytes state step trim update_and_fetch'
    ),
    'mlx_vlm.utils.get_model_path': 'path_or_hf_repo revision force_download allow_patterns',
    'mlx_vlm.apc': '',
    'mlx_vlm.generate': 'model processor prompt image audio video verbose kwargs',
    'mlx_vlm.generate.PromptCacheState': 'cache token_ids update',
    'mlx_vlm.models.gemma4.language.LanguageModel': 'config model model_type head_dim layers logits_from_hidden',
    'mlx_vlm.models.gemma4.language.LanguageModel.__call__': (
        'inputs inputs_embeds mask cache per_layer_inputs capture_layer_ids kwargs'
    ),
    'mlx_vlm.models.gemma4.language.Gemma4TextModel': (
        'config embed_scale embed_tokens first_kv_shared_layer_idx hidden_size_per_layer_input layers norm '
        'num_hidden_layers previous_kvs vocab_size window_size get_per_layer_inputs project_per_layer_inputs'
    ),
    'mlx_vlm.models.gemma4.language.Gemma4TextModel.__call__': (
        'inputs inputs_embeds mask cache per_layer_inputs mm_token_type_ids token_type_ids capture_layer_ids '
        'hidden_sink shared_kv_sink logits_to_keep kwargs'
    ),
    'mlx_vlm.models.gemma4.vision.VisionModel': (
        'config encoder max_patches model_type patch_embedder patch_size pooler pooling_kernel_size std_bias '
        'std_scale _patch_positions_single'
    ),
    'mlx_vlm.models.gemma4.vision.VisionModel.__call__': 'pixel_values pixel_position_ids',
    'mlx_vlm.models.gemma4_unified.gemma4_unified.VisionEmbedder': 'model_type',
    'mlx_vlm.models.gemma4_unified.gemma4_unified.VisionEmbedder.__call__': 'pixel_values image_position_ids',
    'mlx_vlm.models.qwen2_vl.language.LanguageModel': (
        '_position_ids _rope_deltas args config lm_head model model_type get_rope_index head_dim layers'
    ),
    'mlx_vlm.models.qwen2_vl.language.LanguageModel.__call__': 'inputs inputs_embeds mask cache kwargs',
    'mlx_vlm.models.qwen2_vl.language.Qwen2Model': 'args embed_tokens layers norm num_hidden_layers vocab_size',
    'mlx_vlm.models.qwen2_vl.language.Qwen2Model.__call__': 'inputs inputs_embeds mask cache position_ids',
    'mlx_vlm.models.qwen2_vl.vision.VisionModel': (
        'blocks config merger model_type patch_embed spatial_merge_size rot_pos_emb'
    ),
    'mlx_vlm.models.qwen2_vl.vision.VisionModel.__call__': 'hidden_states grid_thw output_hidden_states',
    'mlx_vlm.models.qwen2_5_vl.language.LanguageModel': (
        '_position_ids _rope_deltas args config lm_head model model_type get_rope_index head_dim layers'
    ),
    'mlx_vlm.models.qwen2_5_vl.language.LanguageModel.__call__': 'inputs inputs_embeds mask cache kwargs',
    'mlx_vlm.models.qwen2_5_vl.language.Qwen2Model': 'args embed_tokens layers norm num_hidden_layers vocab_size',
    'mlx_vlm.models.qwen2_5_vl.language.Qwen2Model.__call__': 'inputs inputs_embeds mask cache position_ids',
    'mlx_vlm.models.qwen2_5_vl.vision.VisionModel': (
        'blocks config fullatt_block_indexes merger model_type patch_embed patch_size spatial_merge_size '
        'window_size rot_pos_emb'
    ),
    'mlx_vlm.models.qwen2_5_vl.vision.VisionModel.__call__': 'hidden_states grid_thw output_hidden_states',
    'mlx_vlm.models.qwen3_5.language.LanguageModel': (
        '_position_ids _rope_deltas args config lm_head model model_type get_rope_index head_dim layers'
    ),
    'mlx_vlm.models.qwen3_5.language.LanguageModel.__call__': 'inputs inputs_embeds mask cache kwargs',
    'mlx_vlm.models.qwen3_5.language.Qwen3_5Model': 'args embed_tokens layers norm',
    'mlx_vlm.models.qwen3_5.language.Qwen3_5Model.__call__': (
        'inputs inputs_embeds mask cache position_ids capture_layer_ids hidden_sink'
    ),
    'mlx_vlm.models.qwen3_5.vision.VisionModel': (
        'blocks config deepstack_merger_list deepstack_visual_indexes merger model_type patch_embed spatial_merge_size'
    ),
    'mlx_vlm.models.qwen3_5_moe.language.LanguageModel': (
        '_position_ids _rope_deltas args config lm_head model model_type'
    ),
    'mlx_vlm.models.qwen3_5_moe.language.Qwen3_5MoeModel': 'args embed_tokens layers norm',
    'mlx_vlm.models.qwen3_5_moe.vision.VisionModel': (
        'blocks config deepstack_merger_list deepstack_visual_indexes merger model_type patch_embed spatial_merge_size'
    ),
    'mlx_vlm.models.qwen3_vl.language.LanguageModel': (
        '_position_ids _rope_deltas args config lm_head model model_type get_rope_index head_dim layers'
    ),
    'mlx_vlm.models.qwen3_vl.language.LanguageModel.__call__': (
        'inputs inputs_embeds mask cache visual_pos_masks deepstack_visual_embeds kwargs'
    ),
    'mlx_vlm.models.qwen3_vl.language.Qwen3VLModel': 'args embed_tokens layers norm num_hidden_layers vocab_size',
    'mlx_vlm.models.qwen3_vl.language.Qwen3VLModel.__call__': (
        'inputs inputs_embeds mask cache position_ids visual_pos_masks deepstack_visual_embeds stop_after_layer '
        'apply_final_norm'
    ),
    'mlx_vlm.models.qwen3_vl.vision.VisionModel': (
        'blocks config deepstack_merger_list deepstack_visual_indexes merger model_type patch_embed '
        'spatial_merge_size fast_pos_embed_interpolate rot_pos_emb'
    ),
    'mlx_vlm.models.qwen3_vl.vision.VisionModel.__call__': 'hidden_states grid_thw kwargs',
    'mlx_vlm.models.qwen3_vl_moe.language.LanguageModel': (
        '_position_ids _rope_deltas args config lm_head model model_type get_rope_index head_dim layers'
    ),
    'mlx_vlm.models.qwen3_vl_moe.language.LanguageModel.__call__': (
        'inputs inputs_embeds mask cache visual_pos_masks deepstack_visual_embeds kwargs'
    ),
    'mlx_vlm.models.qwen3_vl_moe.language.Qwen3VLMoEModel': (
        'args embed_tokens layers norm num_hidden_layers vocab_size'
    ),
    'mlx_vlm.models.qwen3_vl_moe.language.Qwen3VLMoEModel.__call__': (
        'inputs inputs_embeds mask cache position_ids visual_pos_masks deepstack_visual_embeds'
    ),
    'mlx_vlm.models.qwen3_vl_moe.vision.VisionModel': (
        'blocks config deepstack_merger_list deepstack_visual_indexes merger model_type patch_embed '
        'spatial_merge_size fast_pos_embed_interpolate rot_pos_emb'
    ),
    'mlx_vlm.models.qwen3_vl_moe.vision.VisionModel.__call__': 'hidden_states grid_thw kwargs',
    'mlx_vlm.load': 'path_or_hf_repo adapter_path lazy revision strict kwargs',
}
# The end of the table.


def sources():
    """The package's modules, parsed."""
    return [ast.parse(file.read_text()) for file in sorted(PACKAGE.rglob('*.py'))]


def imported():
    """What the package imports from mlx_vlm by name: 'module.name' -> the object."""
    return {
        f'{node.module}.{name.name}': getattr(import_module(node.module), name.name)
        for tree in sources()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or '').split('.')[0] == 'mlx_vlm'
        for name in node.names
    }


def layers():
    """The classes that the families of their own call: towers, language models, and the layers below them."""
    found = {}
    for model_type in FAMILIES:
        module = vision_module(model_type)
        for kind in (module.LanguageModel, getattr(module, 'VisionModel', None)):
            if kind is None:
                continue
            below = vars(sys.modules[kind.__module__]).values()
            for each in (kind, *(each for each in below if 'embed_tokens' in attributes(each))):
                found[f'{each.__module__}.{each.__name__}'] = each
    return found


def attributes(kind):
    """What a class sets on itself when it is made."""
    try:
        source = inspect.getsource(kind.__init__) if inspect.isclass(kind) else ''
    except (OSError, TypeError):  # that of a dataclass, or written in C++
        source = ''
    return sorted(set(re.findall(r'self\.(\w+)\s*(?::[^=\n]+)?=[^=]', source)))


def arguments(function):
    """The names of a function's arguments."""
    return [name for name in inspect.signature(function).parameters if name != 'self']


def offered():
    """Name -> names of all arguments or attributes; and the names of those that are classes."""
    types = [part.name for part in iter_modules(mlx_vlm.models.__path__) if part.ispkg and vision_module(part.name)]
    found, classes = {'types': types}, set()
    for name, each in {**imported(), **layers(), 'mlx_vlm.load': mlx_vlm.load}.items():
        if inspect.isclass(each):
            classes.add(name)
            found[name] = attributes(each) + sorted(call for call in vars(each) if not call.startswith('__'))
            if '__call__' in vars(each):
                found[f'{name}.__call__'] = arguments(each.__call__)
        else:
            found[name] = arguments(each) if callable(each) else []
    return found, classes


def changes(old, new, classes):
    """What is gone, lost or new, in words. Of classes all that is told is what they lost."""
    told = [f'{name} is gone' for name in old if name not in new]
    told += [f'{name} is not in the table' for name in new if name not in old]
    for name in old:
        if lost := [each for each in old[name] if each not in new.get(name, old[name])]:
            told.append(f'{name} lost: {", ".join(lost)}')
        if more := [each for each in new.get(name, []) if each not in old[name] and name not in classes]:
            told.append(f'{name} new: {", ".join(more)}')
    return told


def test_mlx_vlm_is_what_the_package_was_written_for():
    told = changes({name: given.split() for name, given in TABLE.items()}, *offered())
    assert not told, f'mlx_vlm {VERSION}, the table is of {TABLE_OF}: {"; ".join(told)}'


def test_mlx_has_all_names_that_the_package_uses():
    lost = {
        f'{node.value.id}.{node.attr}'
        for tree in sources()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ('mx', 'nn')
        if not hasattr({'mx': mx, 'nn': nn}[node.value.id], node.attr)
    }
    assert not lost, f'mlx {mx.__version__} has no {", ".join(sorted(lost))}'


@pytest.mark.parametrize(
    'new, told',
    [
        ({'types': ['a', 'b'], 'step': ['x', 'y'], 'Cache': ['keys']}, []),
        ({'types': ['a', 'b', 'c'], 'step': ['x', 'y'], 'Cache': ['keys', 'rows']}, ['types new: c']),
        (
            {'types': ['a', 'b'], 'step': ['y', 'z'], 'Cache': ['rows']},
            ['step lost: x', 'step new: z', 'Cache lost: keys'],
        ),
        ({'types': ['a', 'b'], 'other': [], 'Cache': ['keys']}, ['step is gone', 'other is not in the table']),
    ],
)
def test_a_change_is_told_by_name(new, told):
    assert changes({'types': ['a', 'b'], 'step': ['x', 'y'], 'Cache': ['keys']}, new, {'Cache'}) == told


def table():
    """The lines of the table. Of classes it has what the package names anywhere."""
    nodes = [node for tree in sources() for node in ast.walk(tree)]
    words = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    words |= {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    lines = [f"TABLE_OF = '{VERSION}'", 'TABLE = {']
    found, classes = offered()
    for name, given in found.items():
        given = [word for word in given if word in words or name not in classes]
        parts = textwrap.wrap(' '.join(given), 105) or ['']
        if len(parts) == 1 and len(f"    '{name}': '{parts[0]}',") <= 120:
            lines.append(f"    '{name}': '{parts[0]}',")
        else:
            lines.append(f"    '{name}': (")
            lines += [f"        '{part} '" for part in parts[:-1]] + [f"        '{parts[-1]}'", '    ),']
    return '\n'.join([*lines, '}', ''])


if __name__ == '__main__':
    file = Path(__file__)
    before, _, rest = file.read_text().partition(BEGIN)
    file.write_text(before + BEGIN + table() + END + rest.partition(END)[2])
