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

"""The loop of the model's thread: it loads the model, answers the questions, and owns all sessions.

When no question waits, the cameras' sessions do upkeep in turns, one stage each. The inbox keeps a stream of questions,
or one busy camera, from blocking the others. Frames are looked at on another thread (looks.py), except the first one of
each size, because the model's image processor says how many cells it has.
"""

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial

from vlm_reuse_node.config import Config
from vlm_reuse_node.errors import ImageError
from vlm_reuse_node.model.load_progress import LoadProgress
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
from vlm_reuse_node.session.case import Case
from vlm_reuse_node.session.scene_session import SceneSession
from vlm_reuse_node.session.turn import Halt, Turn

# Most questions that share a pass through the model.
MOST_QUESTIONS = 16

_log = logging.getLogger(__name__)


class ModelLoop:
    """Processes the inbox, and uses idle time for upkeep.

    config: may be replaced at any time. Only live parameters may differ.
    """

    def __init__(
        self,
        config: Config,
        inbox: Inbox,
        tally: Tally,
        on_refresh: Callable[[Frame, Refresh], None],
        on_refused: Callable[[Frame, ImageError], None] | None,
        on_dropped: Callable[[Frame], None] | None,
    ) -> None:
        """Prepare; call `load` next. on_refresh, on_refused, on_dropped: as for `ModelWorker`."""
        self.config = config
        self._inbox, self._tally = inbox, tally
        self._on_refresh, self._on_refused, self._on_dropped = on_refresh, on_refused, on_dropped
        self._vlm: Vlm | None = None
        self._sessions: dict[str, SceneSession] = {}
        self._wait_s: float | None = None  # until upkeep may be due
        self._kept_up = ''  # the camera that did the last stage of upkeep

    def load(self, progress: LoadProgress) -> None:
        """Load the model and test it. Raises ModelError or ConfigError as `loading.load` and `rehearse` do."""
        self._vlm = load(self.config.model, self.config.visual_tokens, self.config.thinking, progress)
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
        session = self.session(camera)
        return session.newest.size if session and session.newest else None

    def session(self, camera: str) -> SceneSession | None:
        """The session of a camera, if it has one. May be called from any thread."""
        return self._sessions.get(camera)

    def _step(self) -> None:
        """Process one item. If no question waits then, do one stage of upkeep."""
        item = self._inbox.next(self._wait_s)
        if item is not None:
            self._do(item)
        self._wait_s = None if len(self._inbox) else self._work()
        if item is not None or self._wait_s == 0:  # a look alone changes nothing that is told
            self._tally.note_sessions({camera: session.status for camera, session in self._sessions.items()})

    def _work(self) -> float | None:
        """Do one stage of upkeep of the first session in turn that has one due.

        Returns the seconds until the next stage; None: nothing is due.
        """
        cameras, waits_s = list(self._sessions), []
        first = cameras.index(self._kept_up) + 1 if self._kept_up in cameras else 0
        for camera in cameras[first:] + cameras[:first]:
            session = self._sessions[camera]
            session.config = self.config
            wait_s = session.work(self._check_idle)
            if wait_s == 0:
                self._kept_up = camera
                return wait_s
            if wait_s is not None:
                waits_s.append(wait_s)
        return min(waits_s, default=None)

    def _do(self, item: Reset | QueuedQuestion | Frame) -> None:
        """Process one item of any kind. A question always gets an answer."""
        if isinstance(item, QueuedQuestion):
            self._serve(item)
        else:
            if isinstance(item, Reset) and item.is_removed:  # the camera may have been added again meanwhile
                self._sessions.pop(item.camera, None)
            elif session := self._session(item.camera):
                if isinstance(item, Frame):
                    self.look(session, item)
                else:
                    session.reset()
            self._inbox.finish()

    def _serve(self, queued: QueuedQuestion) -> None:
        """Answer a question, with those that wait behind it and can share its pass through the model.

        An unexpected error, such as a field of a wrong type, does not drop the camera's state.
        """
        together = [queued]
        try:
            together += self._inbox.take_companions(queued, MOST_QUESTIONS - 1)
            if session := self._session(queued.camera):
                self._answer(session, together)
            else:
                for each in together:
                    self.refuse(each, Status.INVALID_REQUEST, self.config.unknown_camera(queued.camera))
        except Exception as error:
            _log.exception('A question could not be handled.')
            for each in together:
                if not each.future.done():
                    self.refuse(each, Status.MODEL_ERROR, f'The question could not be handled: {error}.')

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

    def look(self, session: SceneSession, frame: Frame) -> None:
        """Let a session look at a frame. May be called from any thread while `session.can_look(frame)`."""
        try:
            session.config = self.config
            if session.look(frame) is None:
                self.drop(frame)
        except ImageError:
            pass  # on_refused was called: the model is fine
        except Exception as error:
            message = f"A picture of camera '{frame.camera}' could not be used: {error}"
            if message != self._tally.last_error:  # log it once, not for every frame
                _log.exception(message)
            self._tally.last_error = message

    def _answer(self, session: SceneSession, together: Sequence[QueuedQuestion]) -> None:
        """Answer questions about one camera. The waiting frame is looked at first."""
        first, newest = together[0], partial(self._look_at_waiting, session, together[0].camera)
        cases = [self._case(queued) for queued in together]
        if first.cold:
            turn = cases[0].turn
            self._deliver(first, session.ask_cold(first.question, now_ns=first.now_ns, turn=turn, newest=newest))
        else:
            session.ask_together(cases, newest=newest)

    def _case(self, queued: QueuedQuestion) -> Case:
        listener = queued.listener and partial(notify, queued.listener)
        turn = Turn(queued.asked_s, partial(self._must_stop, queued), listener)
        return Case(queued.question, queued.now_ns, turn, partial(self._deliver, queued))

    def _deliver(self, queued: QueuedQuestion, answer: Answer) -> None:
        if answer.status is Status.MODEL_ERROR:
            self._tally.last_error = answer.message
        elif answer.status is Status.OK:
            self._tally.last_error = ''
        self._finish(queued, answer)

    def _look_at_waiting(self, session: SceneSession, camera: str) -> None:
        """Look at the frame that waits, and leave none to the session."""
        if frame := self._inbox.take_frame(camera):
            self.look(session, frame)
        self._inbox.finish()

    def drop(self, frame: Frame) -> None:
        """Report a frame that a newer one has replaced. May be called from any thread."""
        notify(self._on_dropped, frame)

    def _check_idle(self) -> None:
        """Called between two stages of upkeep. Raises Halt when a question waits, and after `stop`."""
        self._reject_expired()
        if not self._inbox.is_open:
            raise Halt(Status.CANCELLED, 'The model is not running any more.')
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
        self._tally.count_answer(answer if is_wanted else Answer(Status.CANCELLED))
        if is_wanted:
            queued.future.set_result(answer)

    def _on_frame_refused(self, frame: Frame, error: ImageError) -> None:
        _log.debug("A picture of camera '%s' is refused: %s", frame.camera, error)
        notify(self._on_refused, frame, error)
