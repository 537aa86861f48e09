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

"""One camera's conversation with the model. Start reading here.

`look(picture)` finds out what changed, on every picture, without the model.
`ask(question)` brings the model's state up to the newest picture if the question needs that, answers, and restores it.
`work()` does upkeep between questions, as far as the camera's credit pays for it.
Prompt: `[system] [history keyframe 1] ... [history keyframe n] [live frame] | snapshot | [question] -> answer`.
"""

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from threading import Lock

import numpy as np

from vlm_reuse_node.config import AUTO_POLICY, Config
from vlm_reuse_node.errors import ImageError
from vlm_reuse_node.model.vlm import Check, Vlm, go_on
from vlm_reuse_node.scene.frame import Frame, frame_of_pixels
from vlm_reuse_node.scene.refresh import Refresh
from vlm_reuse_node.session.account import Account
from vlm_reuse_node.session.answer import Answer
from vlm_reuse_node.session.answerer import Answerer
from vlm_reuse_node.session.auditor import Auditor
from vlm_reuse_node.session.case import Case
from vlm_reuse_node.session.question import Question, question_of
from vlm_reuse_node.session.refresher import Refresher
from vlm_reuse_node.session.responder import Responder
from vlm_reuse_node.session.session_status import SessionStatus
from vlm_reuse_node.session.state import State
from vlm_reuse_node.session.trust import Trust, decide
from vlm_reuse_node.session.turn import Turn
from vlm_reuse_node.session.upkeep import Upkeep

_log = logging.getLogger(__name__)

# Returns the frame that waits to be looked at, and removes it from its queue. None when no frame waits.
TakeFrame = Callable[[], Frame | None]


class SceneSession:
    """Keeps one camera's state and answers from it.

    `look` may be called on any thread while `can_look` is true; everything else only on the thread that loaded the
    model. config: may be replaced between calls. Only live parameters may differ. camera: its name.
    """

    def __init__(
        self,
        vlm: Vlm,
        config: Config = Config(),
        camera: str = 'camera',
        on_refresh: Callable[[Frame, Refresh], None] = lambda frame, refresh: None,
        on_refused: Callable[[Frame, ImageError], None] = lambda frame, error: None,
        clock: Callable[[], float] = time.perf_counter,
        measures_time: bool = True,
    ) -> None:
        """Start without a frame.

        vlm: from `model.loading.load`.
        on_refresh: called after every look at a frame, and after every refresh; on the thread that does it.
        on_refused: called after every frame that the model cannot take.
        clock: seconds; upkeep takes the rhythm of the questions from it.
        measures_time: False makes upkeep depend on counts of tokens alone, so that it is the same in every run.
        Raises ConfigError when config.system_prompt holds special tokens of the model.
        """
        self.camera = camera
        self._vlm, self._on_refused = vlm, on_refused
        self._deciding = Lock()
        self._told = ('', '')
        self._trust = self._decide(config)
        self._template_for = template_for = partial(vlm.template, config.system_prompt)
        answerer = Answerer(vlm, template_for(1))
        self._account = Account(measures_time)
        self._refresher = Refresher(vlm, template_for, camera, lambda: self._account.totals, on_refresh)
        self._auditor = Auditor(vlm, answerer, camera)
        self._upkeep = Upkeep(vlm, self._refresher, self._auditor, self._account, camera, clock)
        self._responder = Responder(vlm, camera, answerer, self._refresher, self._auditor, self._account, self._upkeep)

    @property
    def config(self) -> Config:
        """The configuration. It may be replaced at any time. Only live parameters may differ."""
        return self._trust.given

    @config.setter
    def config(self, config: Config) -> None:
        with self._deciding:  # two threads set it
            if config != self._trust.given:
                self._trust = self._decide(config)

    def can_look(self, frame: Frame) -> bool:
        """Whether `look` needs no model for a frame of this size."""
        return self._refresher.can_look(frame)

    def look(self, picture: Frame | np.ndarray) -> Refresh | None:
        """Find out which cells of the state differ from a new picture. Milliseconds of a CPU; no model runs.

        picture: a Frame; or (height, width, 3) uint8 in the order red, green, blue, which gets time.monotonic_ns() as
            its stamp.
        Returns None for a frame that is a little older than the newest: it is skipped.
        Raises ImageError for a picture that the model cannot take: nothing changes then, and on_refused is called.
        """
        now_ns = time.monotonic_ns()
        frame = picture if isinstance(picture, Frame) else frame_of_pixels(picture, now_ns, self.camera)
        try:
            return self._refresher.look(frame, self._trust.used)
        except ImageError as error:
            self._on_refused(frame, error)
            raise

    def observe(self, picture: Frame | np.ndarray, *, force: bool = False, check: Check = go_on) -> Refresh | None:
        """Look at a picture and compute it at once, asked or not. This is the eager way; `look` and `work` cost less.

        picture: as for `look`.
        force: compute the state of exactly this picture, even when no change is found.
        Raises as `look` and `Refresher.refresh` do.
        """
        record = self.look(picture)
        if record is None:
            return None
        before, config = self._vlm.meter.done, self._trust.used
        may_patch = self._auditor.allows_patches(config)
        try:
            return self._refresher.refresh(config, may_patch=may_patch, force=force, check=check) or record
        finally:
            self._account.book_upkeep(self._vlm.meter.done - before)

    def ask(
        self,
        question: Question | str,
        choices: Sequence[str] = (),
        *,
        now_ns: int | None = None,
        turn: Turn | None = None,
        newest: TakeFrame = lambda: None,
    ) -> Answer:
        """Answer from the newest picture, or from the kept state if its lag is within the question's max_lag_s.

        Afterwards the state is restored bit for bit.
        The same question to the same state gets the remembered answer.
        When a patched state's answer is below min_confidence, or none, the state is computed whole and answers again.
        question: a text; or a Question, which can also limit times and ask for a JSON document.
        choices: the answer is one of them, scored by logits; (): the question's own ones, of a text none.
        now_ns: the time of the question on the clock of the frames' stamps, for the image age. None: the time of the
            newest picture, so that this is never too old.
        turn: clock, cancellation and listener of the question. None: a turn that begins now.
        newest: returns a frame that was not looked at yet.
        Does not raise: an error in the question or in the model becomes the answer's status.
        """
        case = self._case(question_of(question, choices), now_ns, turn)
        self.ask_together([case], newest=newest)
        return case.answer

    def ask_together(self, cases: Sequence[Case], *, newest: TakeFrame = lambda: None) -> None:
        """Answer several questions as `ask` does; those with choices share passes through the model.

        The state is brought up to the newest frame if one of them needs that. Each case gets its answer, and delivers
        it at once.
        """
        self._responder.respond(cases, self._trust.used, self._look_at(newest))

    def ask_cold(
        self,
        question: Question | str,
        choices: Sequence[str] = (),
        *,
        now_ns: int | None = None,
        turn: Turn | None = None,
        newest: TakeFrame = lambda: None,
    ) -> Answer:
        """Answer cold-dense: the same question on the same cached frame, computed from nothing on a separate cache.

        This is the reference for `ask`: image processor, vision tower, prefill of the whole prompt and decode, in the
        same chunks. For a patched state the cached frame is the newest frame that it was patched from, as a whole.
        The kept state is first brought up to date as for `ask`; it does not change otherwise, unless the model fails.
        """
        case = self._case(question_of(question, choices), now_ns, turn)
        self._responder.respond_cold(case, self._trust.used, self._look_at(newest))
        return case.answer

    def work(self, check: Check = go_on) -> float | None:
        """Do one stage of upkeep if one is due. Call it while no question waits.

        check: may raise Halt between two steps of the model; the next call does the stage again.
        Returns the seconds until the next call is worth it: 0 after a stage, None when nothing is due before the next
        picture or question. Raises nothing: an error is logged, and upkeep goes on with the next picture.
        """
        return self._upkeep.work(self._trust.used, check)

    @property
    def newest(self) -> Frame | None:
        """The newest frame; None before the first."""
        look = self._refresher.newest
        return look.frame if look else None

    @property
    def state(self) -> State | None:
        """The kept state, for measurements; None before the first question."""
        return self._refresher.state

    @property
    def status(self) -> SessionStatus:
        """What the session holds and has done."""
        (frames, size), trust, state = self._refresher.held, self._trust, self._refresher.state
        return SessionStatus(
            frames,
            size + self._auditor.held_bytes + self._auditor.pixel_bytes(state),
            self._auditor.counts,
            self._account.totals,
            trust.used.refresh_policy,
            trust.why,
            trust.is_refused,
        )

    def reset(self) -> None:
        """Forget the frame and the state. Questions get NO_IMAGE until the next frame."""
        self._auditor.forget()
        self._refresher.reset()

    def _decide(self, config: Config) -> Trust:
        """Find out what the refresh_policy comes to, and log what auto comes to."""
        trust = decide(self._vlm, config)
        told, self._told = self._told, (trust.used.refresh_policy, trust.why)
        if config.refresh_policy == AUTO_POLICY and told != self._told:
            level = logging.WARNING if trust.is_refused else logging.INFO
            _log.log(level, "Camera '%s': refresh_policy is %s. %s", self.camera, trust.used.refresh_policy, trust.why)
        return trust

    def _case(self, question: Question, now_ns: int | None, turn: Turn | None) -> Case:
        newest = self.newest
        newest_ns = newest.taken_ns if newest else 0
        return Case(question, newest_ns if now_ns is None else now_ns, turn or Turn())

    def _look_at(self, newest: TakeFrame) -> Callable[[], None]:
        """Look at the frame that waits, if there is one."""

        def look() -> None:
            if (frame := newest()) is not None:
                with suppress(ImageError):  # on_refused was called; the refused frame changes nothing
                    self.look(frame)

        return look
