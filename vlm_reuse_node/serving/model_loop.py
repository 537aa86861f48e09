"""What the model's thread does: load, then one thing that waits after the other. All sessions belong to it.

Questions go before frames, but the waiting frame goes first when the question needs it: it asks for a refresh, there is
no state yet, or the state's frame is older than the question's max_age. So a planner that must see the newest frame
says how new. Neither a stream of questions nor one camera holds up the others for long (inbox.py).
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
from vlm_reuse_node.serving.listener import tell
from vlm_reuse_node.serving.queued_question import QueuedQuestion
from vlm_reuse_node.serving.rehearsal import rehearse
from vlm_reuse_node.serving.worker_stats import Tally
from vlm_reuse_node.session.answer import Answer, Status
from vlm_reuse_node.session.scene_session import SceneSession
from vlm_reuse_node.session.turn import Halt, Turn

# Things done while a shorter history waits, before one of its frames is computed all the same.
MOST_PUT_OFF = 16

# Nothing is audited until nobody has asked for so long.
QUIET_S = 1.0

_log = logging.getLogger(__name__)


class ModelLoop:
    """Takes what waits in the inbox, and uses idle time for what can wait.

    config: may be replaced at any time by one whose live parameters differ.
    """

    def __init__(
        self,
        config: Config,
        inbox: Inbox,
        tally: Tally,
        on_refresh: Callable[[Frame, Refresh], None],
        on_refused: Callable[[Frame, ImageError], None] | None,
    ):
        """Prepare; `load` comes first. on_refresh, on_refused: as for `ModelWorker`."""
        self.config = config
        self._inbox, self._tally = inbox, tally
        self._on_refresh, self._on_refused = on_refresh, on_refused
        self._vlm: Vlm | None = None
        self._sessions: dict[str, SceneSession] = {}  # the camera whose idle work is next comes first
        self._put_off = 0
        self._asked_s = 0.0  # when the last question was answered

    def load(self) -> None:
        """Load the model and try it. Raises ModelError or ConfigError as `loading.load` and `rehearse` do."""
        self._vlm = load(self.config.model)
        rehearse(self._vlm, self.config)
        self._tally.model = self._vlm.name

    def run(self) -> None:
        """Go on until the inbox is closed. A fault of this program costs every state, but who asks next is answered."""
        while self._inbox.is_open:
            try:
                self._step()
            except Exception as error:
                _log.exception("The model's thread met a fault of this program; every state is computed anew.")
                self._tally.last_error = f'A fault of this program: {type(error).__name__}: {error}.'
                self._sessions.clear()

    def end(self) -> None:
        """Answer who still waits, and free everything; the thread's last words."""
        self._turn_away()
        self._sessions.clear()
        self._vlm = None
        release_thread()

    def refuse(self, queued: QueuedQuestion, status: Status, message: str) -> None:
        """Answer a question without the model."""
        waited_ms = 1e3 * (time.perf_counter() - queued.asked_s)
        self._finish(queued, Answer(status, message, camera=queued.camera, model=self._tally.model, queue_ms=waited_ms))

    def size_of(self, camera: str) -> tuple[int, int] | None:
        """(height, width) of the camera's newest frame, None while there is none. For any thread."""
        session = self._sessions.get(camera)
        return session.newest.size if session and session.newest else None

    def _step(self) -> None:
        """One thing that waits; then one step of idle work, where nobody asks or it was put off for long."""
        rollover = self._next_that(lambda session: session.has_work)
        audit = self._next_that(lambda session: session.has_audit)
        quiet_in_s = max(0.0, self._asked_s + QUIET_S - time.perf_counter())
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
        """The camera whose turn it is among those whose session has something to do, None for none."""
        return next((camera for camera, session in self._sessions.items() if has_work(session)), None)

    def _roll_over(self, camera: str) -> None:
        """One frame of a shorter history; a question interrupts it, unless it was put off for long."""
        is_due = self._put_off > MOST_PUT_OFF
        self._sessions[camera].work(self._check_open if is_due else self._check_idle)
        self._pass_turn(camera)
        self._put_off = 0

    def _audit(self, camera: str) -> None:
        """One step of giving an answer again."""
        self._sessions[camera].audit(self._check_idle)
        if not self._sessions[camera].is_auditing:
            self._pass_turn(camera)

    def _pass_turn(self, camera: str) -> None:
        """Idle work is another camera's turn."""
        self._sessions[camera] = self._sessions.pop(camera)

    def _do(self, item: Reset | QueuedQuestion | Frame) -> None:
        """One item, whatever it is; a question is answered whatever happens."""
        if isinstance(item, QueuedQuestion):
            self._serve(item)
        elif session := self._session(item.camera):
            if isinstance(item, Frame):
                self._observe(session, item)
            else:
                session.reset()

    def _serve(self, queued: QueuedQuestion) -> None:
        """Answer a question. What a record of wrong types causes is not the model's doing."""
        try:
            if session := self._session(queued.camera):
                self._finish(queued, self._answer(session, queued))
            else:
                self.refuse(queued, Status.INVALID_REQUEST, self.config.unknown_camera(queued.camera))
        except Exception as error:
            _log.exception('A question could not be handled.')
            self.refuse(queued, Status.MODEL_ERROR, f'The question could not be handled: {error}.')
        if not queued.is_standing:
            self._asked_s = time.perf_counter()

    def _session(self, camera: str) -> SceneSession | None:
        """The session of a camera, begun when it is needed; None, and what it held given up, when it has left."""
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
            pass  # the thread ends, or on_refused was told: the frame is to blame, not the model
        except Exception as error:
            message = f"A picture of camera '{frame.camera}' could not be used: {error}"
            if message != self._tally.last_error:  # once, not at the camera's rate
                _log.exception(message)
            self._tally.last_error = message

    def _answer(self, session: SceneSession, queued: QueuedQuestion) -> Answer:
        """Answer one question, behind the waiting frame when it needs that."""
        listener = queued.listener and partial(tell, queued.listener)
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
        """Asked while a frame is looked at: give up after `stop`, and turn away who need not wait for the frame."""
        self._turn_away()
        if not self._inbox.is_open:
            raise Halt(Status.CANCELLED, 'The model does not run any more.')

    def _check_idle(self) -> None:
        """Asked during what can wait: give up for any question."""
        self._check_open()
        if len(self._inbox):
            raise Halt(Status.BUSY, 'A question waits.')

    def _must_stop(self, queued: QueuedQuestion) -> bool:
        """Asked before every token: whether to give up. Also the moment to turn away who waited too long."""
        self._turn_away()
        return queued.is_cancelled or not self._inbox.is_open

    def _turn_away(self) -> None:
        """Answer the waiting questions that were cancelled or are late, and all of them after `stop`."""
        for queued in self._inbox.take_leaving(self.config.timeout_s):
            if queued.is_cancelled or not self._inbox.is_open:
                self.refuse(queued, Status.CANCELLED, 'The question was cancelled while it waited.')
            else:
                self.refuse(
                    queued,
                    Status.TIMEOUT,
                    'Its time was over while it waited for other questions; ask less often or allow more (timeout).',
                )

    def _finish(self, queued: QueuedQuestion, answer: Answer) -> None:
        """Hand over the answer, unless the future was cancelled."""
        is_wanted = queued.future.set_running_or_notify_cancel()
        self._tally.count_answer(answer.status if is_wanted else Status.CANCELLED)
        if is_wanted:
            queued.future.set_result(answer)

    def _on_frame_refused(self, frame: Frame, error: ImageError) -> None:
        _log.debug("A picture of camera '%s' is refused: %s", frame.camera, error)
        tell(self._on_refused, frame, error)
