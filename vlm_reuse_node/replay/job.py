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

"""One bag to replay, and what became of it."""

import json
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path

from vlm_reuse_node.config import Config
from vlm_reuse_node.replay.bag import Selection


@dataclass(frozen=True)
class Job:
    """One bag to replay, and all that decides the result.

    folder: where rows, pictures and video go. order_seed: of the order in which the arms are asked.
    """

    bag: Path
    name: str
    folder: Path
    arms: tuple[str, ...]
    selection: Selection = Selection()
    questions: Path | None = None
    config: Config = Config()
    window_s: float = 8.0
    order_seed: int = 0

    def settings(self, model: str, fingerprint: str) -> dict:
        """What two runs must have in common for one to resume the other; as JSON types."""
        questions = self.questions.read_text(encoding='utf-8') if self.questions else 'the general questions'
        selection = asdict(self.selection) | {'duration_s': str(self.selection.duration_s)}
        settings = {
            'row': 'settings',
            'bag': self.name,
            'files': self._files(),
            'arms': self.arms,
            'selection': selection,
            'questions': blake2b(questions.encode(), digest_size=8).hexdigest(),
            'window_s': self.window_s,
            'order_seed': self.order_seed,
            'config': asdict(self.config),
            'model': model,
            'model_fingerprint': fingerprint,
        }
        return json.loads(json.dumps(settings))

    def _files(self) -> list[tuple[str, int, int]]:
        """Name, bytes and time of change (nanoseconds) of the bag's files: another recording has others."""
        files = sorted(self.bag.iterdir()) if self.bag.is_dir() else [self.bag]
        return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]


@dataclass(frozen=True)
class JobOutcome:
    """What became of a job.

    complete: to the end of its bag. error: why there is nothing, '' otherwise. started: whether the rows in its folder
    are of this run.
    """

    name: str
    complete: bool
    error: str = ''
    started: bool = False
