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

"""Pictures of a few questions, evenly spread over a recording whose length is not known beforehand."""

from pathlib import Path

from vlm_reuse_node.replay.stills import save_small
from vlm_reuse_node.scene.frame import Frame

MOST = 12  # of each camera
ENDING = '.sample.jpg'


class Samples:
    """Keeps the picture of every so many questions of one camera; when there are too many, of twice as many."""

    def __init__(self, folder: Path) -> None:
        """Start without any. folder: where the pictures go."""
        self._folder = folder
        self._every = 1
        self._asked = 0
        self._kept: list[Path] = []

    def add(self, question: int, frame: Frame) -> None:
        """Take the next question's picture. question: its number in the bag."""
        is_due = self._asked % self._every == 0
        self._asked += 1
        if not is_due:
            return
        path = self._folder / f'{question:04d}{ENDING}'
        save_small(path, frame)
        self._kept.append(path)
        if len(self._kept) > MOST:
            for dropped in self._kept[1::2]:
                dropped.unlink()
            self._kept = self._kept[::2]
            self._every *= 2


def sampled(folder: Path) -> dict[int, Path]:
    """Return the pictures in a bag's folder of them, by the number of the question."""
    return {int(path.name.removesuffix(ENDING)): path for path in sorted(folder.glob(f'*{ENDING}'))}
