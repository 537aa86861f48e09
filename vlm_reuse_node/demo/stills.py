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

"""Chooses the overlay pictures that show best what the node does: a change that waits, its refresh, and quiet after."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from vlm_reuse_node.demo.summary import Look


@dataclass(frozen=True)
class Still:
    """One overlay picture as JPEG, and what the node did for it."""

    look: Look
    jpeg: bytes


def choose_stills(looks: Sequence[Look], jpegs: Mapping[float, bytes]) -> tuple[Still, ...]:
    """Return up to three pictures in order: a change that waits, the picture computed after it, and a quiet one.

    jpegs: the overlays by `Look.picture_s`. A refresh of only a part of the picture is the better example, and of
    several refreshes the middle one is taken. Without any it is the first picture alone.
    """
    shown = [look for look in looks if look.picture_s in jpegs]
    refreshes = [
        index for index in range(1, len(shown)) if shown[index].tokens_paid and not shown[index - 1].tokens_paid
    ]
    waited = [index for index in refreshes if shown[index - 1].tokens_stale < shown[index - 1].tokens]
    partial = [index for index in waited if shown[index].tokens_paid < shown[index].tokens]
    candidates = partial or waited or refreshes
    if not candidates:
        chosen = shown[:1]
    else:
        refresh = candidates[len(candidates) // 2]
        quiet = [look for look in shown[refresh + 1 :] if not look.tokens_paid and not look.tokens_stale]
        chosen = [shown[refresh - 1], shown[refresh], *quiet[:1]]
    return tuple(Still(look, jpegs[look.picture_s]) for look in chosen)


def write_still(stills: Sequence[Still], path: Path) -> None:
    """Write the change that waits and what came after it side by side, as PNG; nothing without stills.

    What came after it is its refresh, if that was of a part of the picture, else the quiet picture behind it.
    """
    before, *after = stills or (None,)
    partial = [still for still in after if 0 < still.look.tokens_paid < still.look.tokens]
    pictures: list[Any] = [decoded(still.jpeg) for still in (before, *(partial or after[-1:])) if still]
    if pictures:
        cv2.imwrite(str(path), np.hstack(pictures))


def decoded(jpeg: bytes) -> np.ndarray:
    """Decode an overlay: (height, width, 3) uint8, BGR."""
    return np.asarray(cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR))
