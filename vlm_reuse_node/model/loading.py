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

"""Loads a model through mlx-vlm: finds its directory, refuses a model that cannot be served, tells models apart."""

import gc
import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import mlx_vlm
from mlx.utils import tree_flatten

from vlm_reuse_node.errors import ModelError
from vlm_reuse_node.model import device_memory
from vlm_reuse_node.model.families.base import can_see, family_for
from vlm_reuse_node.model.hub import download
from vlm_reuse_node.model.load_progress import Amount, LoadProgress, sized
from vlm_reuse_node.model.visual_tokens import limited
from vlm_reuse_node.model.vlm import Vlm
from vlm_reuse_node.model.weights import disk_bytes, float32_bytes, is_complete, weight_files
from vlm_reuse_node.plain_text import error_line

EMBEDDED = {'tabletop': Path(__file__).parents[1] / 'demo' / 'tabletop_model'}
HUB_NAME = re.compile(r'[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*')
READ_AT_ONCE_BYTES = 256_000_000  # of weights, between two looks at how far the loading is
# Of weights, and of other files above this size, so many evenly spread blocks are read to tell models apart.
LARGE_FILE_BYTES = 10_000_000
BLOCKS, BLOCK_BYTES = 1024, 4096
# Files that change nothing in what a model computes.
BESIDE_THE_POINT = re.compile(r'calibration.*\.json|.*\.(md|png|jpe?g|gif|webp|pdf)|\..*|(LICEN[CS]E|NOTICE).*', re.I)

_log = logging.getLogger(__name__)


def load(name: str, visual_tokens: int = 0, thinking: bool = False, progress: LoadProgress | None = None) -> Vlm:
    """Load 'tabletop' (the embedded model), a model directory, or a hub name of the form 'org/name'.

    visual_tokens, thinking: the parameters of these names; whatever sees pictures or renders chats with the model does
    it by them. progress: is told how far it is; None: the log.

    On MLX's CPU backend half-precision weights become float32, which is an order of magnitude faster there; elsewhere
    the weights keep their type. On Metal and CUDA MLX's memory limits are set until `release_thread`. Python files in a
    model's directory are never run. Raises ModelError with one sentence that says what to do: also for a model that is
    larger than the memory that is available, before anything is loaded.
    """
    progress = progress or LoadProgress()
    folder = _folder(name, progress)
    family = family_for(_model_type(folder))
    given_folder = name not in EMBEDDED and os.path.isdir(_given(name))
    shown = folder.name if given_folder else name
    model, processor = _load(folder, shown, progress)
    if visual_tokens:
        processor = limited(processor, model.config, visual_tokens)
    vlm = Vlm(shown, model, processor, family(model, processor), _fingerprint(folder), folder, thinking)
    vlm.template('', 1)  # refuses a chat template that cannot be used
    device_memory.set_limits(model)
    return vlm


def _load(folder: Path, shown: str, progress: LoadProgress) -> tuple[Any, Any]:
    """Model and processor as mlx-vlm loads them, where there is room for them. shown: the model's name."""
    files = weight_files(folder)
    size, is_cpu = disk_bytes(files), mx.default_device() == mx.Device(mx.cpu)
    needed, available = float32_bytes(files) if is_cpu else size, device_memory.available_bytes()
    wide = f', {sized(needed)} in float32' if needed > size else ''
    if needed > available:
        raise ModelError(
            f"The model '{shown}' has {sized(size)} of weights{wide}, and {sized(available)} of memory is available; "
            'take a smaller or more quantised model, or close other programs.'
        )
    progress.tell(f"Loading '{shown}': {sized(size)} of weights{wide}; {sized(available)} of memory is available.")
    loaded = Amount(0, needed)
    progress.begin('loading weights', lambda: loaded)
    try:
        model, processor = mlx_vlm.load(str(folder), lazy=True, trust_remote_code=False)
        if is_cpu:
            model.set_dtype(mx.float32)
            _embed_in_float32(model)
        for loaded in _read_weights(model):
            pass
        return model, processor
    except Exception as error:
        raise ModelError(
            f"The model in '{folder}' cannot be loaded by mlx-vlm: {error_line(error)}. Expected the files "
            f'of one complete model; copy or convert it again (python -m mlx_vlm.convert).'
        ) from error
    finally:
        progress.end()


def _read_weights(model: nn.Module) -> Iterator[Amount]:
    """Let MLX read the weights, some at a time; yields how much of them is there."""
    arrays = [array for _, array in cast(list[tuple[str, mx.array]], tree_flatten(model.parameters()))]
    total, done, listed = sum(array.nbytes for array in arrays), 0, 0
    batch: list[mx.array] = []
    for array in arrays:
        batch.append(array)
        listed += array.nbytes
        if listed - done >= READ_AT_ONCE_BYTES or array is arrays[-1]:
            mx.eval(batch)
            batch, done = [], listed
            yield Amount(done, total)


class _Float32Embedding(nn.QuantizedEmbedding):
    """A quantised embedding whose rows are float32."""

    def __call__(self, x: mx.array) -> mx.array:
        """Look up tokens, mx (..., tokens): mx (..., tokens, width)."""
        return super().__call__(x).astype(mx.float32)


def _embed_in_float32(model: nn.Module) -> None:
    """Let quantised embeddings give float32: those without biases, such as mxfp4, give bfloat16 whatever is set."""
    for module in model.modules():
        if type(module) is nn.QuantizedEmbedding:
            module.__class__ = _Float32Embedding


def release_thread() -> None:
    """Free models that are no longer used, and lift their memory limits. A thread that imported MLX calls this last.

    Models refer to themselves, so only the garbage collector frees them. Without `clear_streams` MLX 0.32 may abort the
    process when it ends (ml-explore/mlx issue 4327).
    """
    gc.collect()
    device_memory.restore_limits()
    mx.clear_cache()
    mx.clear_streams()


def device_bytes() -> int:
    """Return the bytes of MLX's arrays, and of the buffers that MLX keeps for reuse. Any thread may call this."""
    return mx.get_active_memory() + mx.get_cache_memory()


def _folder(name: str, progress: LoadProgress) -> Path:
    """The local directory of a model. Only a name of the form 'org/name' is looked up in the hub."""
    path = EMBEDDED.get(name) or _given(name)
    if name.strip() and os.path.isdir(path):
        return path.resolve()
    if HUB_NAME.fullmatch(name) and not os.path.exists(path):
        return _from_hub(name, progress)
    raise ModelError(
        f"There is no model directory '{EMBEDDED.get(name, name)}'; expected 'tabletop', a directory with "
        f'config.json and *.safetensors, or a hub name such as '
        f"'mlx-community/Qwen2.5-VL-7B-Instruct-4bit'."
    )


def _given(name: str) -> Path:
    """The path that a name is. Like `isdir` of os.path, and unlike that of pathlib, it raises for no name."""
    return Path(os.path.expanduser(name))


def _from_hub(name: str, progress: LoadProgress) -> Path:
    """The directory of a model in this host's hub cache, downloaded when it is not there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_OFFLINE

    with suppress(Exception):
        if is_complete(folder := Path(snapshot_download(name, local_files_only=True))):
            return folder
    here = "neither a directory, nor as a whole in this host's hub cache"
    if HF_HUB_OFFLINE:
        raise ModelError(
            f"The model '{name}' is {here}, and HF_HUB_OFFLINE forbids to download it. Set HF_HUB_OFFLINE=0, or give a "
            'model directory.'
        )
    _log.warning("'%s' is %s; asking the hub for it.", name, here)
    try:
        return download(name, progress)
    except Exception as error:
        raise ModelError(
            f"The model '{name}' is {here}, and the hub did not deliver it: {error_line(error).rstrip('.')}. Download "
            'it first, or give a model directory.'
        ) from error


def _model_type(folder: Path) -> str:
    """The model_type in config.json, when the directory holds a vision-language model."""
    try:
        config = json.loads((folder / 'config.json').read_text(encoding='utf-8'))
        model_type = config['model_type']
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelError(
            f"'{folder}' is not a model directory: its config.json cannot be read ({error_line(error)}). "
            f"Expected a directory in mlx-vlm's format."
        ) from error
    if 'model_file' in config:
        raise ModelError(
            f"The model in '{folder}' brings Python code of its own (model_file in config.json), which "
            'mlx-vlm would run; expected a model_type that mlx-vlm knows, and no model_file.'
        )
    if 'vision_config' not in config and not can_see(model_type):
        raise ModelError(
            f"The model in '{folder}' ({model_type}) is a text-only model; expected a vision-language "
            'model, for example Qwen2.5-VL.'
        )
    if not weight_files(folder):
        raise ModelError(f"'{folder}' has no *.safetensors files; expected the model's weights. Copy the whole model.")
    return model_type


def _fingerprint(folder: Path) -> str:
    """Digest of the model's files, the same for every copy: their names and sizes, and the content of small ones.

    Of weights and other large files only the first megabyte and blocks spread over the file are read: gigabytes would
    take longer than loading them. What training changes, it changes nearly everywhere.
    """
    digest = blake2b(digest_size=16)
    files = (path for path in folder.iterdir() if path.is_file() and not BESIDE_THE_POINT.fullmatch(path.name))
    for path in sorted(files):
        size = path.stat().st_size
        digest.update(f'{path.name} {size}'.encode())
        with path.open('rb') as file:
            is_large = path.suffix == '.safetensors' or size > LARGE_FILE_BYTES
            digest.update(file.read(1_000_000 if is_large else -1))
            for block in range(BLOCKS if is_large and size > 1_000_000 else 0):
                file.seek(size * block // BLOCKS)
                digest.update(file.read(BLOCK_BYTES))
    return digest.hexdigest()
