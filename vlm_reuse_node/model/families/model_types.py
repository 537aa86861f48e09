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

"""What mlx-vlm has for a `model_type`."""

from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

from mlx_vlm.utils import get_model_type


def missing(model_type: str) -> str:
    """Return what mlx-vlm lacks to serve a type at all, '' when a model of it can be loaded and examined."""
    module = _module(model_type)
    if module is None:
        return 'mlx-vlm knows no such model'
    model = getattr(module, 'Model', None)
    return '' if hasattr(model, 'get_input_embeddings') else 'mlx-vlm gives no embeddings of its pictures'


def vision_module(model_type: str) -> ModuleType | None:
    """Return mlx-vlm's module of a type that sees; None for other types."""
    module = _module(model_type)
    return module if hasattr(module, 'VisionConfig') or hasattr(module, 'VisionModel') else None


def _module(model_type: str) -> ModuleType | None:
    name = get_model_type({'model_type': model_type}) or ''
    if not name.isidentifier() or find_spec(f'mlx_vlm.models.{name}') is None:
        return None
    return import_module(f'mlx_vlm.models.{name}')
