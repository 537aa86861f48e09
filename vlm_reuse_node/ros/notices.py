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

from collections.abc import Mapping
from typing import Any


class Notices:
    """Logs each notice once. It must hold at two looks in a row: publishers and nodes that come and go are none."""

    def __init__(self, logger: Any) -> None:
        """Start with nothing said. logger: of the node."""
        self._logger = logger
        self._before: set[str] = set()
        self._said: set[str] = set()

    def see(self, notices: Mapping[str, str]) -> None:
        """Look at the notices that hold now. By a key that stays the same while the text may change."""
        for key in sorted(notices.keys() & self._before - self._said):
            self._logger.warning(notices[key])
            self._said.add(key)
        self._before = set(notices)
