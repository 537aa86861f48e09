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

"""The size of a picture in visual tokens, set on a copy of the model's own processor.

Whatever sees pictures through that processor sees them at this size: the engine, its cold-dense twin and mlx-vlm's
`generate`. Three kinds of processors have such a setting. The Qwen families cut a picture to a number of pixels, and
Gemma 4 to one of a few numbers of tokens. Others make tiles of it, or limit its longer side: there the setting is tried
on pictures of common cameras.
"""

import copy
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from math import isqrt
from typing import Any

import numpy as np

from vlm_reuse_node.errors import ModelError
from vlm_reuse_node.model.chat import processed, rendered

# What Gemma 4 was trained with. Source: _SUPPORTED_SOFT_TOKENS in mlx_vlm/models/gemma4/processing_gemma4.py.
SOFT_TOKENS = (70, 140, 280, 560, 1120)
# Height and width of the pictures on which a setting is tried.
CAMERAS = ((480, 640), (1080, 1920), (1080, 1080))
# Both names of the image token in a model's configuration; InternVL's processor tells it, under the first one.
IMAGE_TOKENS = ('image_token_index', 'image_token_id')

# Values of an image processor by the names of its attributes.
Setting = dict[str, Any]


def limited(processor: Any, model_config: Any, most: int) -> Any:
    """Return a copy of a processor whose pictures have about `most` visual tokens at most.

    model_config: of the model that `mlx_vlm.load` returned with the processor. Raises ModelError with what the model
    allows when it has no such setting, or no size that is small enough.
    """
    images = processor.image_processor
    if setting := _pixels(images, most):
        return _with(processor, setting)
    if hasattr(images, 'max_soft_tokens'):
        allowed = sorted({*SOFT_TOKENS, images.max_soft_tokens})
        index = bisect_right(allowed, most) - 1
        if index < 0:
            raise _too_small(most, ', '.join(map(str, allowed)))
        return _with(processor, {'max_soft_tokens': allowed[index]})
    settings = _settings(images)
    if not settings:
        count = _tokens(processor, model_config, CAMERAS[0])
        height, width = CAMERAS[0]
        raise ModelError(
            f'visual_tokens is {most}, and the processor of a {model_config.model_type} model has no setting for the '
            f'size of its pictures: one of {width} x {height} has {count} tokens; expected 0.'
        )
    copies = [_with(processor, setting) for setting in settings]
    sizes = [_Size(each, model_config) for each in copies]
    index = bisect_right(sizes, most, key=lambda size: size.tokens) - 1
    if index < 0:
        raise _too_small(most, f'at least {sizes[0].tokens}')
    return copies[index]


class _Size:
    """How large a processor makes pictures; found out when it is asked for."""

    def __init__(self, processor: Any, model_config: Any) -> None:
        self._processor, self._model_config = processor, model_config

    @property
    def tokens(self) -> int:
        """Image tokens of the largest picture among those of CAMERAS."""
        return max(_tokens(self._processor, self._model_config, size) for size in CAMERAS)


def _pixels(images: Any, most: int) -> Setting:
    """The setting of a processor that cuts pictures to a number of pixels; {} for others."""
    if not all(isinstance(getattr(images, name, None), int) for name in ('min_pixels', 'max_pixels', 'merge_size')):
        return {}
    cell = (images.patch_size * images.merge_size) ** 2
    # A picture below the minimum is enlarged, and then rounded up to whole cells: by less than one on each side.
    least = cell * max(1, (isqrt(most) - 1) ** 2)
    # Less than a cell more than `most`, so that rounding does not lose a cell.
    return {'min_pixels': min(images.min_pixels, least), 'max_pixels': cell * (most + 1) - 1}


def _settings(images: Any) -> list[Setting]:
    """The settings of a processor that makes tiles or limits the longer side, the smallest first."""
    if isinstance(tiles := getattr(images, 'dynamic_max_num', None), int):  # InternVL-chat
        return [{'dynamic_max_num': count} for count in range(images.dynamic_min_num, tiles + 1)]
    if isinstance(tiles := getattr(images, 'max_tiles', None), int):  # LFM2-VL
        whole = range(images.min_image_tokens, images.max_image_tokens + 1)
        return [
            *({'do_image_splitting': False, 'max_image_tokens': tokens} for tokens in whole),
            *({'max_tiles': count} for count in range(images.min_tiles, tiles + 1) if images.do_image_splitting),
        ]
    size, step = getattr(images, 'size', None), _step(images)
    longest = _get(size, 'longest_edge')
    if not longest or not step:
        return []
    return [{'size': _with_edge(size, edge)} for edge in range(step, longest + 1, step)]


def _step(images: Any) -> int:
    """By how many pixels the longer side of a picture may differ: a tile's side, or else a patch's; 0: neither."""
    if tile := _get(getattr(images, 'max_image_size', None), 'longest_edge'):  # Idefics3 and SmolVLM
        return tile
    patch = getattr(images, 'patch_size', None)  # Pixtral
    return patch if isinstance(patch, int) else _get(patch, 'height')


def _get(sizes: Any, name: str) -> int:
    """One of several sizes, which are a dict or a record; 0: not there."""
    return (sizes.get(name) if isinstance(sizes, dict) else getattr(sizes, name, None)) or 0


def _with_edge(size: Any, edge: int) -> Any:
    """The sizes with another longest side."""
    return {**size, 'longest_edge': edge} if isinstance(size, dict) else replace(size, longest_edge=edge)


def _with(processor: Any, setting: Setting) -> Any:
    """A copy of the processor, whose image processor has this setting."""
    other = copy.copy(processor)
    other.image_processor = copy.copy(processor.image_processor)
    for name, value in setting.items():
        setattr(other.image_processor, name, value)
    return other


def _tokens(processor: Any, model_config: Any, size: Sequence[int]) -> int:
    """Image tokens of a grey picture of this height and width, as `mlx_vlm.generate` shows it to the model."""
    picture = np.full((*size, 3), 128, np.uint8)
    inputs = processed(processor, model_config, rendered(processor, model_config, 'a', 1), [picture])
    told = [inputs.get(IMAGE_TOKENS[0]), *(getattr(model_config, name, None) for name in IMAGE_TOKENS)]
    token = next(int(np.array(each)) for each in told if each is not None)
    return int(np.count_nonzero(np.array(inputs['input_ids']) == token))


def _too_small(most: int, allowed: str) -> ModelError:
    return ModelError(f'visual_tokens is {most}, which is too small for this model; expected 0, or {allowed}.')
