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

"""The files of a model's weights: how large they are on the disk, and in memory."""

import json
from pathlib import Path

INDEX = 'model.safetensors.index.json'
LONGEST_HEADER = 100_000_000  # of a file; the format allows no more
HALF = ('F16', 'BF16')
# What reading a damaged file raises; RecursionError is of JSON.
DAMAGES = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError)


def weight_files(folder: Path) -> list[Path]:
    """Return the files that mlx-vlm reads: those of the index, or else all *.safetensors but a consolidated one.

    Source: `load_model` in mlx_vlm/utils.py.
    """
    found = (path for path in folder.glob('*.safetensors') if not path.name.endswith('consolidated.safetensors'))
    listed = [path for path in _listed(folder) if path.is_file()]
    return listed or sorted(path for path in found if path.is_file())  # a link's file may be gone


def is_complete(folder: Path) -> bool:
    """Whether a directory has a configuration and all files of weights: a download may have been interrupted.

    An index of which no file is there is the one of another format of the model.
    """
    there, listed = weight_files(folder), _listed(folder)
    is_whole = not set(there) & set(listed) or len(there) == len(listed)
    return bool(there) and is_whole and (folder / 'config.json').is_file()


def _listed(folder: Path) -> list[Path]:
    """The files of the index, whether they are there or not; none without one."""
    try:
        names = set(json.loads((folder / INDEX).read_text(encoding='utf-8'))['weight_map'].values())
        return [folder / name for name in sorted(names)]
    except DAMAGES:
        return []


def disk_bytes(files: list[Path]) -> int:
    """Bytes of these files."""
    return sum(path.stat().st_size for path in files)


def float32_bytes(files: list[Path]) -> int:
    """Bytes in memory when numbers of half precision become float32."""
    return sum(path.stat().st_size + _half_bytes(path) for path in files)


def _half_bytes(path: Path) -> int:
    """Bytes of the numbers of half precision in a file; 0 where its header cannot be read."""
    try:
        with path.open('rb') as file:
            length = int.from_bytes(file.read(8), 'little')
            header = json.loads(file.read(min(length, LONGEST_HEADER)))
        tensors = [value for name, value in header.items() if name != '__metadata__']
        ends = [each['data_offsets'] for each in tensors if each['dtype'] in HALF]
        return sum(int(last) - int(first) for first, last in ends)
    except DAMAGES:
        return 0
