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

"""Compressed recordings: whole files, and single messages, both with zstd."""

from pathlib import Path
from tempfile import TemporaryDirectory

import zstandard

from vlm_reuse_node.replay.storage.channel import one_line

PACKED = ('.zstd', '.zst')
LARGEST_MESSAGE_BYTES = 2**29
_MAGIC = b'\x28\xb5\x2f\xfd'
_PIECE_BYTES = 2**20


def unpack_file(path: Path, folder: TemporaryDirectory[str]) -> tuple[Path, str]:
    """Decompress a file into a folder, as far as it goes. Returns the new file, and what is wrong with the old one."""
    unpacked = Path(folder.name, path.stem)
    with path.open('rb') as source, unpacked.open('wb') as target:
        # A file of several frames, one after the other, is one file.
        with zstandard.ZstdDecompressor().stream_reader(source, read_across_frames=True) as reader:
            try:
                while piece := reader.read(_PIECE_BYTES):
                    target.write(piece)
            except zstandard.ZstdError as error:
                return unpacked, f'it cannot be decompressed to its end: {one_line(error)}'
    return unpacked, ''


def unpacked_message(data: bytes) -> bytes:
    """Decompress a message that was compressed alone; no message of ROS begins like a compressed one.

    Returns one that cannot be decompressed as it is: decoding it says what is wrong.
    """
    if not data.startswith(_MAGIC):
        return data
    try:
        if zstandard.frame_content_size(data) > LARGEST_MESSAGE_BYTES:
            return data
        return zstandard.ZstdDecompressor().decompress(data, max_output_size=LARGEST_MESSAGE_BYTES)
    except (zstandard.ZstdError, MemoryError):
        return data
