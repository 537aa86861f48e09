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

"""Qwen3.5: the cells and the vision tower of Qwen3-VL without DeepStack; gated-delta layers between full attention.

Source: mlx_vlm/models/qwen3_5 and qwen3_5_moe. A gated-delta layer has no positions. Every call replaces its whole
state, so its cache cannot be trimmed, only restored. One sequence needs no mask; a tree of tokens goes through such a
layer block by block (`gated_delta`). A changed cell is replaced by going back to a state from before it
(`session/live_slot.py`). With every feature computed anew that would be exact, but skip nothing: every block of the
tower looks at the whole picture, so every feature differs. So only single cells are encoded for it.
Off Metal, mlx-vlm has one method for a call of one token and another one for more, whose roundings differ most where
heads forget fast. That is noise between chunk grids (`model/noise.py`); on one grid warm and cold are equal.
"""

from typing import Any

from vlm_reuse_node.model.families.gated_delta import run_by_blocks
from vlm_reuse_node.model.families.qwen3_vision import Qwen3VisionFamily


class Family(Qwen3VisionFamily):
    """See `families.base.Family`."""

    branches_recurrent = True

    def __init__(self, model: Any, processor: Any) -> None:
        """Serve a model and a processor as `mlx_vlm.load` returns them."""
        super().__init__(model, processor)
        run_by_blocks(self._language.model)
