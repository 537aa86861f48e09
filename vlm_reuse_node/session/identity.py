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

"""What a state was computed from."""

from dataclasses import dataclass

from vlm_reuse_node.model.families.base import Grid


@dataclass(frozen=True)
class Identity:
    """What a state was computed from. Two states are interchangeable only when all fields are equal and both are exact.

    pixels: hash of each frame's bytes, oldest first, the live frame last. grids: the grid of each frame.
    model: fingerprint of the model, its processor and its chat template. prefix: the prompt's tokens.
    exact: whether the whole state was computed from these frames. False when part of it comes from older frames.
    """

    pixels: tuple[bytes, ...]
    grids: tuple[Grid, ...]
    model: str
    prefix: tuple[int, ...]
    exact: bool
