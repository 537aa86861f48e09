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

"""The memory that a model may take, and MLX's use of it on Metal and CUDA. On a CPU no limit is set.

The wired limit (Metal, macOS 15 and later) is how much memory the system leaves in place: within it, a model that was
idle answers at full speed. The cache limit is how many bytes of freed buffers MLX keeps for later calls; its own
default on Metal is more than the working set. Both hold for the whole process. mlx-lm and mlx-vlm set the wired limit
for each answer. Here a model stays loaded and serves all the time, so it is set once.
Run on CUDA, not on Metal: the tests replace MLX's functions.
Source: mlx_vlm/generate/common.py (`wired_limit`) and ar.py; `device_info` in mlx/backend/metal and mlx/backend/cuda.
"""

import logging
from typing import Any, NamedTuple

import mlx.core as mx
import psutil
from mlx.utils import tree_flatten

# Of the working set, for freed buffers. A forward call has at most 512 tokens, and its largest buffers in a 7B model
# are 20 MB. An eighth is 0.7 GB on the smallest Mac (8 GB): room to reuse them all, and most memory left for others.
CACHE_SHARE = 1 / 8
# Above this share of the working set mlx-lm warns: states, activations and other programs need the rest.
MODEL_SHARE = 0.9
MB = 1_000_000

_log = logging.getLogger(__name__)


class Limits(NamedTuple):
    """Limits of MLX, bytes."""

    wired: int
    cache: int


_before: Limits | None = None  # what MLX had before the first model was loaded


def working_set_bytes() -> int:
    """Return the memory that a program should use on MLX's device, bytes; 0 when it is a CPU."""
    if mx.default_device() == mx.Device(mx.cpu):
        return 0
    info = mx.device_info()
    return int(info['max_recommended_working_set_size' if mx.metal.is_available() else 'total_memory'])


def available_bytes() -> int:
    """Return the memory that a model may still take, bytes: of the device's working set, or else of the host."""
    if most := working_set_bytes():
        return max(0, most - mx.get_active_memory())
    return int(psutil.virtual_memory().available)


def set_limits(model: Any) -> None:
    """Set the limits for a loaded model, and warn when it is too large for the device."""
    global _before
    if not (most := working_set_bytes()):
        return
    weights: Any = tree_flatten(model.parameters())
    _warn_if_large(sum(array.nbytes for _, array in weights), most)
    wired = mx.set_wired_limit(most) if mx.metal.is_available() else 0
    before = Limits(wired, mx.set_cache_limit(int(CACHE_SHARE * most)))
    _before = _before or before


def restore_limits() -> None:
    """Give MLX back the limits that it had before `set_limits`."""
    global _before
    if _before is None:
        return
    mx.synchronize()  # the device must not be using what is about to be unwired
    if mx.metal.is_available():
        mx.set_wired_limit(_before.wired)
    mx.set_cache_limit(_before.cache)
    _before = None


def clear_between_chunks() -> None:
    """Free the buffers that one chunk of a long prefill has left: those of the next are larger and cannot use them."""
    if mx.default_device() != mx.Device(mx.cpu):
        mx.clear_cache()


def _warn_if_large(size: int, most: int) -> None:
    if size <= MODEL_SHARE * most:
        return
    raised = ', or raise the limit (sudo sysctl iogpu.wired_limit_mb=...)' if mx.metal.is_available() else ''
    _log.warning(
        'The model takes %d MB, and a program should use at most %d MB on this device: it will be slow. '
        'Take a smaller or more quantised model%s.',
        size // MB,
        most // MB,
        raised,
    )
