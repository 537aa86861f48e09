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

"""One camera's upkeep: model work that no question waits for, paid from the camera's credit.

It is done when it is likely to pay: when the scene has settled, or shortly before the kept state gets too old for a
question that is likely to come. It is done in stages, so that a question waits for one of them at most.
"""

import logging
from collections.abc import Callable

from vlm_reuse_node.config import Config
from vlm_reuse_node.model.vlm import Check, Vlm
from vlm_reuse_node.model.work import Work
from vlm_reuse_node.scene.refresh import Refresh
from vlm_reuse_node.session.account import Account
from vlm_reuse_node.session.auditor import Auditor
from vlm_reuse_node.session.question import Question
from vlm_reuse_node.session.refresher import Refresher
from vlm_reuse_node.session.rhythm import Rhythm
from vlm_reuse_node.session.turn import Halt

# The state is refreshed when its lag has reached this share of the lag that questions allow.
DUE_SHARE = 0.75
# The scene has settled when no motion was seen for this long, seconds.
SETTLED_S = 0.5
# Repairs and audits wait until no question was asked for this long, seconds.
QUIET_S = 1.0

_log = logging.getLogger(__name__)


class Upkeep:
    """Decides what upkeep is due, does it in stages, and books it."""

    def __init__(
        self,
        vlm: Vlm,
        refresher: Refresher,
        auditor: Auditor,
        account: Account,
        camera: str,
        clock: Callable[[], float],
    ) -> None:
        """Start without a question. clock: seconds; the rhythm of the questions is taken from it."""
        self._vlm, self._refresher, self._auditor, self._account = vlm, refresher, auditor, account
        self._camera, self._clock = camera, clock
        self._rhythm = Rhythm()
        self._allowed_lag_s = 0.0  # by the last question
        self._reserve = Work()  # what the next escalation may need

    def note_question(self, question: Question) -> None:
        """Note a question and the lag that it allows."""
        self._rhythm.note(self._clock())
        self._allowed_lag_s = question.max_lag_s

    def pays_for_escalation(self, answer: Work, config: Config) -> bool:
        """Whether the credit pays for a patch whose answer is given again. answer: the work of one answer."""
        self._reserve = self._refresher.patch_work(config=config) + answer
        return self._account.covers(self._reserve)

    def work(self, config: Config, may_patch: bool, check: Check) -> tuple[float | None, Refresh | None]:
        """Do one stage of upkeep if one is due; see `SceneSession.work`.

        Returns the seconds until the next call is worth it, and the record of a refresh that this stage completed.
        """
        wait_s, stage = self._next(config, may_patch)
        if stage is None:
            return wait_s, None
        before, refresh = self._vlm.meter.done, None
        try:
            refresh = stage(check)
        except Halt:
            pass
        except Exception:
            _log.exception("Camera '%s': upkeep failed.", self._camera)
        self._account.book_upkeep(self._vlm.meter.done - before)
        return 0.0, refresh

    def _next(self, config: Config, may_patch: bool) -> tuple[float | None, Callable[[Check], Refresh | None] | None]:
        """The stage that is due now; or None, with the seconds until one may be due."""
        refresher, auditor = self._refresher, self._auditor

        def refresh(check: Check) -> Refresh | None:
            return refresher.step(config, may_patch, check)

        def repair(check: Check) -> Refresh | None:
            return refresher.step(config, False, check)

        def audit(check: Check) -> None:
            auditor.step(check, config, refresher.keeps_vision(config))

        if refresher.is_between_stages:
            return 0.0, refresh
        if refresher.newest is None or config.upkeep_share == 0:
            return None, None
        reserve = self._reserve if may_patch else Work()
        if self._is_refresh_due(config) and self._pays(refresher.expected(config, may_patch), reserve):
            return 0.0, refresh
        if (work := refresher.rollover_work) and self._pays(work, reserve):
            return 0.0, refresher.step_rollover
        quiet_in_s = self._rhythm.last_s + QUIET_S - self._clock()
        for work, stage in ((refresher.repair_work, repair), (auditor.expected(self._vlm.meter), audit)):
            if work and self._pays(work, reserve):
                return (0.0, stage) if quiet_in_s <= 0 else (quiet_in_s, None)
        return None, None

    def _pays(self, expected: Work, reserve: Work) -> bool:
        return expected.tokens > 0 and self._account.covers(expected + reserve)

    def _is_refresh_due(self, config: Config) -> bool:
        """Whether now is a good time to refresh the state."""
        look = self._refresher.newest
        if look.is_current:
            return False
        if look.change is None:
            return self._refresher.state is not None
        if config.upkeep_share > 1 or look.change.still_s >= SETTLED_S:
            return True
        lag_s = self._allowed_lag_s
        return look.lag_s > DUE_SHARE * lag_s > 0 and self._rhythm.is_question_likely(self._clock(), lag_s)
