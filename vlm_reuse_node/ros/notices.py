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

"""What an operator should read in the log, once."""

import time
from collections.abc import Mapping
from typing import Any

# A notice that holds for so long is logged. Publishers and nodes that come and go are none.
HOLDS_S = 3.0


class Notices:
    """Logs each notice once."""

    def __init__(self, logger: Any) -> None:
        """Start with nothing said. logger: of the node."""
        self._logger = logger
        self._since_s: dict[str, float] = {}
        self._said: set[str] = set()

    def see(self, notices: Mapping[str, str]) -> None:
        """Look at the notices that hold now. By a key that stays the same while the text may change."""
        now_s = time.monotonic()
        self._since_s = {key: self._since_s.get(key, now_s) for key in notices}
        for key, since_s in self._since_s.items():
            if now_s - since_s >= HOLDS_S and key not in self._said:
                self._logger.warning(notices[key])
                self._said.add(key)
