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

"""A frame with the visual features that the model computed from it."""

from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import Any

import numpy as np

from vlm_reuse_node.model.families.base import Grid, VisionState
from vlm_reuse_node.model.vlm import Check, Vlm, go_on
from vlm_reuse_node.scene.frame import Frame


@dataclass(frozen=True, eq=False)
class EncodedFrame:
    """A frame with the visual features that the model computed from it.

    features: mx (cells, width), kept so that a later prefill does not run the vision tower again.
    vision: the vision tower's state, needed to encode single cells of a newer frame; None when it is not kept.
    exact: whether all cells were encoded from this frame. False when some features come from an older frame.
    """

    frame: Frame
    grid: Grid
    features: Any
    vision: VisionState | None = None
    exact: bool = True

    @classmethod
    def see(cls, vlm: Vlm, frame: Frame, check: Check = go_on, keep: bool = False) -> 'EncodedFrame':
        """Run image processor and vision tower. keep: also keep `vision`. Raises ImageError as `Vlm.see` does."""
        if not keep:
            features, grid = vlm.see(frame.rgb, check)
            return cls(frame, grid, features)
        vision, grid = vlm.see_all_cells(frame.rgb, check)
        return cls(frame, grid, vision.features, vision)

    def with_cells(self, vlm: Vlm, frame: Frame, cells: np.ndarray, check: Check = go_on) -> 'EncodedFrame':
        """Encode some cells, (cells,) ascending, of a newer frame of the same size. The others keep their features."""
        vision = vlm.see_cells(frame.rgb, self.grid, cells, self.vision, check)
        return EncodedFrame(frame, self.grid, vision.features, vision, exact=False)

    @cached_property
    def digest(self) -> bytes:
        """Hash of the frame's bytes. Computed when it is first asked for: milliseconds for a large picture."""
        return blake2b(self.frame.rgb.tobytes(), digest_size=16).digest()

    @property
    def nbytes(self) -> int:
        """Bytes of features and vision state, without the frame itself."""
        return self.vision.nbytes if self.vision else self.features.nbytes
