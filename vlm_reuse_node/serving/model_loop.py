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

"""The loop of the model's thread: it loads the model, processes the inbox item by item, and owns all sessions.

Questions go before frames, with one exception: the waiting frame goes first when the question asks for a refresh, when
there is no state yet, or when the state's frame is older than the question's max_age. A planner that needs a recent
frame sets max_age. The inbox keeps a stream of questions, or one busy camera, from blocking the others.
"""

import logging
import time
from collections.abc import Callable
from functools import partial

from vlm_reuse_node.config import Config
from vlm_reuse_node.errors import ImageError
from vlm_reuse_node.model.loading import load, release_thread
from vlm_reuse_node.model.vlm import Vlm
from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.scene.refresh import Refresh
from vlm_reuse_node.serving.inbox import Inbox, Reset
from vlm_reuse_node.serving.listener import notify
from vlm_reuse_node.serving.queued_question import QueuedQuestion
from vlm_reuse_node.serving.rehearsal import rehearse
from vlm_reuse_node.serving.worker_stats import Tally
from vlm_reuse_node.session.answer import Answer, Status
from vlm_reuse_node.session.scene_session import SceneSession
from vlm_reuse_node.session.turn import Halt, Turn

# While a history rollover waits, this many items of the inbox go first. Then one frame of the rollover is computed.
MOST_PUT_OFF = 16

# An audit runs only when no question was answered for this long, seconds.
QUIET_S = 1.0

_log = logging.getLogger(__name__)


class ModelLoop:
    """Processes the inbox, and uses idle time for upkeep: history rollovers and audits.

    config: may be replaced at any time. Only live parameters may differ.
    """

    def __init__(
        self,
        config: Config,
        inbox: Inbox,
        tally: Tally,
        on_refresh: Callable[[Frame, Refresh], None],
        on_refused: Callable[[Frame, ImageError], None] | None,
    ) -> None:
        """Prepare; call `load` next. on_refresh, on_refused: as for `ModelWorker`."""
        self.config = config
        self._inbox, self._tally = inbox, tally
        self._on_refresh, self._on_refused = on_refresh, on_refused
        self._vlm: Vlm | None = None
        self._sessions: dict[str, SceneSession] = {}  # the camera whose upkeep is next comes first
        self._put_off = 0
        self._answered_s = 0.0  # when the last planner's question was answered

    def load(self) -> None:
        """Load the model and test it. Raises ModelError or ConfigError as `loading.load` and `rehearse` do."""
        self._vlm = load(self.config.model)
        rehearse(self._vlm, self.config)
        self._tally.model = self._vlm.name

    def run(self) -> None:
        """Run until the inbox is closed. An internal error drops every state; the next question is still answered."""
        while self._inbox.is_open:
            try:
                self._step()
            except Exception as error:
                _log.exception("Internal error in the model's thread; every state is computed again.")
                self._tally.last_error = f'Internal error: {type(error).__name__}: {error}.'
                self._sessions.clear()

    def end(self) -> None:
        """Answer the waiting questions with CANCELLED and free the model. Called at the end of the thread."""
        self._reject_expired()
        self._sessions.clear()
        self._vlm = None
        release_thread()

    def refuse(self, queued: QueuedQuestion, status: Status, message: str) -> None:
        """Answer a question without the model, with this status."""
        waited_ms = 1e3 * (time.perf_counter() - queued.asked_s)
        self._finish(queued, Answer(status, message, camera=queued.camera, model=self._tally.model, queue_ms=waited_ms))

    def size_of(self, camera: str) -> tuple[int, int] | None:
        """Size of the camera's newest frame, (height, width); None without a frame. May be called from any thread."""
        session = self._sessions.get(camera)
        return session.newest.size if session and session.newest else None

    def _step(self) -> None:
        """Process one item, then one step of upkeep if no question waits or a rollover was put off for too long."""
        rollover = self._next_that(lambda session: session.has_work)
        audit = self._next_that(lambda session: session.has_audit)
        quiet_in_s = max(0.0, self._answered_s + QUIET_S - time.perf_counter())
        item = self._inbox.next(0 if rollover else quiet_in_s if audit else None)
        if item is not None:
            self._do(item)
        self._put_off = self._put_off + 1 if rollover else 0
        if rollover in self._sessions and (not len(self._inbox) or self._put_off > MOST_PUT_OFF):
            self._roll_over(rollover)
        elif audit and item is None:
            self._audit(audit)
        self._tally.note_states(
            {camera: session.held for camera, session in self._sessions.items()},
            {camera: session.audit_counts for camera, session in self._sessions.items()},
        )

    def _next_that(self, has_work: Callable[[SceneSession], bool]) -> str | None:
        """The next camera whose session has this kind of work; None when there is none."""
        return next((camera for camera, session in self._sessions.items() if has_work(session)), None)

    def _roll_over(self, camera: str) -> None:
        """Compute one frame of a history rollover. A question interrupts it, unless it was put off for too long."""
        is_due = self._put_off > MOST_PUT_OFF
        self._sessions[camera].work(self._check_open if is_due else self._check_idle)
        self._pass_turn(camera)
        self._put_off = 0

    def _audit(self, camera: str) -> None:
        """Compute one step of an audit."""
        self._sessions[camera].audit(self._check_idle)
        if not self._sessions[camera].is_auditing:
            self._pass_turn(camera)

    def _pass_turn(self, camera: str) -> None:
        """Let another camera's upkeep go next."""
        self._sessions[camera] = self._sessions.pop(camera)

    def _do(self, item: Reset | QueuedQuestion | Frame) -> None:
        """Process one item of any kind. A question always gets an answer."""
        if isinstance(item, QueuedQuestion):
            self._serve(item)
        elif session := self._session(item.camera):
            if isinstance(item, Frame):
                self._observe(session, item)
            else:
                session.reset()

    def _serve(self, queued: QueuedQuestion) -> None:
        """Answer a question. An unexpected error, such as a field of a wrong type, does not drop the camera's state."""
        try:
            if session := self._session(queued.camera):
                self._finish(queued, self._answer(session, queued))
            else:
                self.refuse(queued, Status.INVALID_REQUEST, self.config.unknown_camera(queued.camera))
        except Exception as error:
            _log.exception('A question could not be handled.')
            self.refuse(queued, Status.MODEL_ERROR, f'The question could not be handled: {error}.')
        if not queued.is_standing:
            self._answered_s = time.perf_counter()

    def _session(self, camera: str) -> SceneSession | None:
        """The session of a camera, created on first use. For a removed camera: free its session, return None."""
        if camera not in self.config.cameras:
            self._sessions.pop(camera, None)
            return None
        if camera not in self._sessions:
            self._sessions[camera] = SceneSession(
                self._vlm, self.config, camera, self._on_refresh, self._on_frame_refused
            )
        self._sessions[camera].config = self.config
        return self._sessions[camera]

    def _observe(self, session: SceneSession, frame: Frame) -> None:
        try:
            session.observe(frame, check=self._check_open)
        except (Halt, ImageError):
            pass  # the thread ends, or on_refused was called: the model is fine
        except Exception as error:
            message = f"A picture of camera '{frame.camera}' could not be used: {error}"
            if message != self._tally.last_error:  # log it once, not for every frame
                _log.exception(message)
            self._tally.last_error = message

    def _answer(self, session: SceneSession, queued: QueuedQuestion) -> Answer:
        """Answer one question. The session first takes the waiting frame when the question needs it."""
        listener = queued.listener and partial(notify, queued.listener)
        answer = (session.ask_cold if queued.cold else session.ask)(
            queued.question,
            now_ns=queued.now_ns,
            turn=Turn(queued.asked_s, partial(self._must_stop, queued), listener),
            newest=partial(self._inbox.take_frame, queued.camera),
        )
        if answer.status is Status.MODEL_ERROR:
            self._tally.last_error = answer.message
        return answer

    def _check_open(self) -> None:
        """Called between steps on a frame. Raises Halt after `stop`; also answers questions that have expired."""
        self._reject_expired()
        if not self._inbox.is_open:
            raise Halt(Status.CANCELLED, 'The model is not running any more.')

    def _check_idle(self) -> None:
        """Called between steps of upkeep. Raises Halt when a question waits."""
        self._check_open()
        if len(self._inbox):
            raise Halt(Status.BUSY, 'A question waits.')

    def _must_stop(self, queued: QueuedQuestion) -> bool:
        """Called before every token. Returns whether to stop; also answers other questions that have expired."""
        self._reject_expired()
        return queued.is_cancelled or not self._inbox.is_open

    def _reject_expired(self) -> None:
        """Answer the waiting questions that were cancelled or timed out. After `stop`, answer all of them."""
        for queued in self._inbox.take_leaving(self.config.timeout_s):
            if queued.is_cancelled or not self._inbox.is_open:
                self.refuse(queued, Status.CANCELLED, 'The question was cancelled while it waited.')
            else:
                self.refuse(
                    queued,
                    Status.TIMEOUT,
                    'The question timed out while it waited for others; ask less often or allow more time (timeout).',
                )

    def _finish(self, queued: QueuedQuestion, answer: Answer) -> None:
        """Deliver the answer, unless the future was cancelled."""
        is_wanted = queued.future.set_running_or_notify_cancel()
        self._tally.count_answer(answer.status if is_wanted else Status.CANCELLED)
        if is_wanted:
            queued.future.set_result(answer)

    def _on_frame_refused(self, frame: Frame, error: ImageError) -> None:
        _log.debug("A picture of camera '%s' is refused: %s", frame.camera, error)
        notify(self._on_refused, frame, error)
