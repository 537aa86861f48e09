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

It is done when it is likely to pay: when a question is likely to come while the refreshed state can still serve it. It
is done in stages, so that a question waits for one of them at most.
"""

import logging
from collections.abc import Callable

from vlm_reuse_node.config import Config
from vlm_reuse_node.model.vlm import Check, Vlm
from vlm_reuse_node.scene.lookout import Look
from vlm_reuse_node.scene.refresh import Refresh
from vlm_reuse_node.session.account import Account
from vlm_reuse_node.session.auditor import Auditor
from vlm_reuse_node.session.question import Question
from vlm_reuse_node.session.refresher import Refresher
from vlm_reuse_node.session.rhythm import Rhythm
from vlm_reuse_node.session.turn import Halt

# How much a warm answer is worth, as a share of the work of a cold-dense one. It was chosen by simulation: more makes
# more answers warm and costs more work.
WORTH = 0.7
# However cheap a refresh is, a question must be at least this likely. Else a cheap one is done for every picture.
LEAST_LIKELY = 0.25
# A keyframe is taken without a question only when one is this likely before the next keyframe is due.
KEYFRAME_LIKELY = 0.5
# A refresh before a regular question begins this much earlier than it must, seconds.
EARLY_S = 0.15
# A patched state is repaired when the scene has rested for this long, seconds.
RESTED_S = 0.5
# Audits wait until no question was asked for this long, seconds.
QUIET_S = 1.0

_log = logging.getLogger(__name__)

# Does one stage. Its check may raise Halt. Returns the record of a refresh that the stage completed.
Stage = Callable[[Check], Refresh | None]


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
        self._question: Question | None = None  # the last one
        self._failed: Look | None = None  # the newest picture when upkeep failed

    def note_question(self, question: Question) -> None:
        """Note a question and the lag that it allows."""
        self._rhythm.note(self._clock())
        self._allowed_lag_s = question.max_lag_s
        self._question = question

    def work(self, config: Config, check: Check) -> float | None:
        """Do one stage of upkeep if one is due; see `SceneSession.work`."""
        # A patched state is of no use if the next question is one that only whole states answer, like the last one.
        is_of_use = self._question is None or self._question.least_confidence(config) < 1
        due = self._next(config, is_of_use and self._auditor.allows_patches(config))
        if not callable(due):
            return due
        before = self._vlm.meter.done
        try:
            due(check)
        except Halt:
            pass
        except Exception:
            _log.exception("Camera '%s': upkeep failed. It goes on with the next picture.", self._camera)
            self._failed = self._refresher.newest
        self._account.book_upkeep(self._vlm.meter.done - before)
        return 0.0

    def _next(self, config: Config, may_patch: bool) -> Stage | float | None:
        """The stage that is due now, or the seconds until one may be due; None: nothing is due."""
        refresher, auditor, account, look = self._refresher, self._auditor, self._account, self._refresher.newest

        def refresh(check: Check) -> Refresh | None:
            return refresher.step(config, may_patch, check)

        def compute_whole(check: Check) -> Refresh | None:
            return refresher.step(config, False, check)

        def audit(check: Check) -> None:
            auditor.step(check, config)

        if refresher.is_between_stages:
            return refresh
        if look in (None, self._failed) or config.upkeep_share == 0:
            return None
        wait_s = self._refresh_due_in_s(look, config, may_patch)
        if wait_s == 0:
            return refresh
        if (work := refresher.rollover_work) and account.covers_upkeep(work):
            return refresher.step_rollover
        if self._is_repair_due(look, config):
            return compute_whole
        if (work := auditor.expected(self._vlm.meter)) and account.covers_upkeep(work):
            quiet_in_s = self._rhythm.last_s + QUIET_S - self._clock()
            if quiet_in_s <= 0:
                return audit
            wait_s = quiet_in_s if wait_s is None else min(wait_s, quiet_in_s)
        return wait_s

    def _refresh_due_in_s(self, look: Look, config: Config, may_patch: bool) -> float | None:
        """Seconds until a refresh is worth its price; 0: now; None: not before the next picture or question.

        The price is paid when no question comes that the refreshed state can serve.
        """
        now_s = self._clock()
        if look.is_current or self._refresher.state is None:
            return None
        work = self._refresher.expected(config, may_patch)
        if not work.tokens or not self._account.covers_upkeep(work):
            return None
        if config.upkeep_share > 1:
            return 0.0
        takes_s, still_s, lag_s = work.ms / 1e3, 0.0, self._allowed_lag_s
        if look.change:
            still_s = look.change.still_s
            if look.lag_s + takes_s + look.period_s < lag_s:
                return None  # the state still serves at the next picture
        if due := self._rhythm.due(now_s):
            earliest_s = due[0] - EARLY_S - takes_s
            if now_s < earliest_s:
                return earliest_s - now_s  # right before the question it is fresher
        # A scene that has rested for some time is likely to rest as long again.
        price = self._account.share(work)
        likely = max(LEAST_LIKELY, price / (price + WORTH))
        if self._rhythm.probability(now_s, max(lag_s, look.period_s) + still_s) >= likely:
            return 0.0
        is_keyframe_due = self._refresher.is_keyframe_due(config) and self._account.covers_upkeep(work, answers_left=1)
        if is_keyframe_due and self._rhythm.probability(now_s, config.keyframe_interval_s) >= KEYFRAME_LIKELY:
            return 0.0
        return None

    def _is_repair_due(self, look: Look, config: Config) -> bool:
        """Whether a patched state should be computed whole now, so that the next question need not wait for that.

        The scene must rest, and credit must be left. Not sooner than it must be: a repair costs a whole picture, and
        the next change would need a patch as before.
        """
        if not self._refresher.is_overdue(config) or not look.is_current or look.change.still_s < RESTED_S:
            return False
        work = self._refresher.expected(config, may_patch=False)
        # Without a lag and without a history a repair saves least, and must leave most.
        return self._account.covers_upkeep(work, answers_left=1 if self._allowed_lag_s or config.history_frames else 2)
