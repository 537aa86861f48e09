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

"""Credit, prices and idle time for the tests of sessions, so that none of them depends on the machine's speed."""

from vlm_reuse_node.model.work import Meter, Work
from vlm_reuse_node.session.account import MOST_ANSWERS

PLENTY = Work(prefill_tokens=10**9, ms=1e9)


def give_credit(session):
    """What a session has after many questions that reused: it may patch for a question, and do upkeep."""
    for _ in range(MOST_ANSWERS):
        session._account.book_questions(Work(), [PLENTY], 1.0)
    return session


def use_up_credit(session):
    """What a session has after more upkeep than it may do."""
    session._account.book_upkeep(Work(prefill_tokens=10**12, ms=1e12))


def set_prices(monkeypatch, frame_ms=1000.0, cell_ms=1.0):
    """Let the model expect these times of a whole frame, and of each cell of a patch."""
    monkeypatch.setattr(Meter, 'frame', lambda self, cells, tokens: Work(cells, tokens, 0, frame_ms))
    monkeypatch.setattr(Meter, 'patch', lambda self, cells, total, tokens: Work(cells, cells, 0, cell_ms * cells))


class Idle:
    """A clock for a session that nobody asks; waiting takes no time."""

    def __init__(self):
        self.now_s = 0.0

    def __call__(self):
        return self.now_s

    def spend(self, session):
        """Do all upkeep that is due, or will be without another picture or question. Returns the number of stages."""
        for stages in range(1000):
            while wait_s := session.work():
                self.now_s += wait_s
            if wait_s is None:
                return stages
        raise AssertionError('The upkeep does not end.')
