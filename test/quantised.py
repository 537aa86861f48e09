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

"""Turns a tiny model's directory into one of fewer bits, as `mlx_vlm.convert` does it: config.json tells how."""

import json
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx_vlm
from mlx.utils import tree_flatten


def quantise(folder: Path, kind: dict) -> Path:
    """Quantise the language model in a directory, in place. kind: `bits`, `group_size` and `mode` of MLX."""
    model, _ = mlx_vlm.load(str(folder))

    def fits(name: str, module: nn.Module) -> bool:
        is_text = 'language_model' in name and hasattr(module, 'to_quantized')
        return is_text and module.weight.shape[-1] % kind['group_size'] == 0

    nn.quantize(model, class_predicate=fits, **kind)
    weights = dict(tree_flatten(model.parameters()))
    mx.eval(weights)
    mx.save_safetensors(str(folder / 'model.safetensors'), weights)
    config = json.loads((folder / 'config.json').read_text())
    (folder / 'config.json').write_text(json.dumps(config | {'quantization': kind}))
    return folder
