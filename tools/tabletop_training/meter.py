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

"""The progress of the training, printed for people."""

import time
from collections import defaultdict

import numpy as np

from tabletop_training.losses import Tally


class Meter:
    """Prints loss, share right by kind, speed and time left."""

    def __init__(self, name: str, steps: int) -> None:
        """Start a stage. steps: all of it."""
        self.name = name
        self.steps = steps
        self._reset()

    def _reset(self) -> None:
        self.losses: list[float] = []
        self.tally: dict[str, list[float]] = defaultdict(lambda: [0, 0])
        self.pictures = 0
        self.since = time.monotonic()

    def add(self, step: int, loss: float, tally: list[Tally], pictures: int) -> None:
        """Count one step; print every 30 seconds, and at the end."""
        self.losses.append(loss)
        self.pictures += pictures
        for kind, right, asked in tally:
            self.tally[kind][0] += right
            self.tally[kind][1] += asked
        passed = time.monotonic() - self.since
        if passed < 30 and step != self.steps:
            return
        rate = len(self.losses) / passed
        shares = ' '.join(f'{kind}={100 * right / asked:.0f}' for kind, (right, asked) in self.tally.items() if asked)
        print(
            f'[{self.name}] {step}/{self.steps} loss {np.mean(self.losses):.3f} '
            f'{self.pictures / passed:.0f} pictures/s {(self.steps - step) / rate / 60:.0f} min left | {shares}',
            flush=True,
        )
        self._reset()
