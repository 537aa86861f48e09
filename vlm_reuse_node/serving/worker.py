"""The one thread that owns the model and every array.

Everything else hands it frames and questions and never blocks. Of the frames, only the newest of each camera waits.
Questions go before frames, but the waiting frame goes first when the question needs it: it asks for a refresh, there is
no state yet, or the state's picture is older than the question's max_age. So a planner that must see the newest picture
says how new. Neither a stream of questions nor one camera holds up the others for long (`inbox.py`).
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass, fields, replace
from functools import partial
from threading import Event

import numpy as np

from vlm_reuse_node.config import Config
from vlm_reuse_node.errors import ConfigError, ImageError, InvalidRequestError, ModelError
from vlm_reuse_node.model.vlm import Vlm, device_bytes, load, release_thread
from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.scene.refresh import Refresh
from vlm_reuse_node.serving.inbox import Ask, Inbox
from vlm_reuse_node.serving.watch import Watch, Watches
from vlm_reuse_node.session.answer import Answer, Status
from vlm_reuse_node.session.drift_audit import Audited
from vlm_reuse_node.session.progress import Progress
from vlm_reuse_node.session.question import Question
from vlm_reuse_node.session.scene_session import SceneSession
from vlm_reuse_node.session.turn import Stopped

# Things done while a shorter history waits, before one of its pictures is computed all the same.
MOST_PUT_OFF = 16

# How often who waits for the thread's beginning or end is called, seconds.
WAITING_S = 1.0

# Nothing is audited until nobody has asked for so long.
QUIET_S = 1.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WorkerStats:
    """A snapshot of the worker's counts.

    model: the loaded model's name, '' before `start`.
    waiting: planners' questions that wait now, by camera, the running one not counted.
    answers: answers given, by status name.
    last_error: the newest failure of the model; '' when a picture was taken since.
    held: pictures and bytes of each camera's state.
    audited: what each camera's drift audit has counted.
    watches: standing questions.
    device_bytes: what MLX holds: the weights, every state, and buffers it keeps for reuse.
    """

    model: str
    waiting: dict[str, int]
    answers: dict[str, int]
    last_error: str
    held: dict[str, tuple[int, int]]
    audited: dict[str, Audited]
    watches: int
    device_bytes: int


class ModelWorker:
    """Answers questions about the newest picture of each camera, on one thread with one model."""

    def __init__(
        self,
        config: Config,
        on_refresh: Callable[[Frame, Refresh], None] | None = None,
        on_refused: Callable[[Frame, ImageError], None] | None = None,
        on_watch: Callable[[Watch, Answer | None], None] | None = None,
    ):
        """Prepare; nothing is loaded and no thread runs until `start`.

        on_refresh: called on the worker's thread after each observed frame; it must not block.
        on_refused: likewise after each frame that the model cannot take, such as one far too wide.
        on_watch: likewise with a standing question that has a new answer, and the answer that held before.
        """
        self._config, self._on_refresh, self._on_refused = config, on_refresh, on_refused
        self._inbox = Inbox()
        self._thread = threading.Thread(target=self._run, name='model', daemon=True)
        self._ready: Future[None] = Future()
        self._vlm: Vlm | None = None
        self._sessions: dict[str, SceneSession] = {}
        self._watches = Watches(self._ask_standing, partial(_tell, on_watch))
        self._counting = threading.Lock()
        self._answers: Counter[str] = Counter()
        self._held: dict[str, tuple[int, int]] = {}
        self._audited: dict[str, Audited] = {}
        self._put_off = 0
        self._asked_s = 0.0  # when the last question was answered
        self._model = self._last_error = ''

    def start(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Start the thread and load the model on it; returns when it is ready. Once in a worker's life.

        meanwhile: called every second until then. Raises ModelError when the model cannot be loaded (the thread has
        ended then), ConfigError when system_prompt holds special tokens of the model.
        """
        self._thread.start()
        while not wait([self._ready], WAITING_S).done:
            meanwhile()
        try:
            self._ready.result()
        except Exception:
            self._thread.join()  # MLX aborts a process that ends under a thread which still gives back its streams
            raise

    def observe(self, frame: Frame) -> bool:
        """Hand over a frame of `frame.camera`; never blocks.

        Returns False when an older frame still waited and was replaced.
        Raises ImageError('camera', ...) for a camera that is not configured.
        """
        if frame.camera not in self._config.cameras:
            raise ImageError('camera', self._unknown(frame.camera))
        return self._inbox.put_frame(frame)

    def ask(
        self,
        camera: str,
        question: Question,
        now_ns: int,
        cancelled: Event | None = None,
        listener: Callable[[Progress], None] | None = None,
    ) -> Future[Answer]:
        """Queue a question; never blocks and never raises: whatever goes wrong is the answer's status.

        camera: '' takes the first configured one; an unknown one is INVALID_REQUEST.
        now_ns: the node clock's time of asking (may be simulated); used for the image age only. Latency, the time
            waited in the queue included, is measured with the steady clock.
        cancelled: set it to stop at the next token; the Future then gives a CANCELLED answer. `Future.cancel()`
            stops the work too, at any time before the answer, and no answer is given.
        listener: told of progress on the worker's thread; it must not block.
        """
        return self._queue(Ask(camera or self._config.cameras[0], question, now_ns, False, cancelled, listener))

    def ask_cold(
        self,
        camera: str,
        question: Question,
        now_ns: int,
        cancelled: Event | None = None,
        listener: Callable[[Progress], None] | None = None,
    ) -> Future[Answer]:
        """Like `ask`, computed from nothing on the cached picture: the reference that `ask` is compared with."""
        return self._queue(Ask(camera or self._config.cameras[0], question, now_ns, True, cancelled, listener))

    def watch(self, watch: Watch, now_ns: int) -> tuple[Watch, Future[Answer]]:
        """Keep a standing question (camera '': the first), and its first answer; see `Watches`. Never blocks.

        The answer may be NO_IMAGE: the question is asked again with the first picture. One that is INVALID_REQUEST is
        asked again only with what changes; remove it. Raises InvalidRequestError for what cannot stand.
        """
        watch = replace(watch, camera=watch.camera or self._config.cameras[0])
        if watch.camera not in self._config.cameras:
            raise InvalidRequestError(self._unknown(watch.camera))
        self._check_region(watch)
        return self._watches.add(watch, now_ns, self._config.max_watches)

    def unwatch(self, number: int) -> None:
        """Forget a standing question. Raises InvalidRequestError for a number that names none."""
        self._watches.remove(number)

    def watches(self) -> list[Watch]:
        """Every standing question, the oldest first."""
        return self._watches.all()

    def reset(self, camera: str = '') -> None:
        """Forget a camera's picture and state ('': every camera's), a waiting frame included; never blocks.

        Questions get NO_IMAGE until the next frame.
        """
        for name in self._config.cameras:
            if camera in ('', name):
                self._inbox.put_reset(name)

    def configure(self, config: Config) -> None:
        """Take new values of the live parameters from the next question or frame on.

        A camera that is no longer named is forgotten, its state and its waiting questions; standing ones stay, and go
        on when it comes back. Raises ConfigError when a parameter that is not live differs.
        """
        fixed = [
            parameter.name
            for parameter in fields(Config)
            if not parameter.metadata['live']
            and getattr(config, parameter.name) != getattr(self._config, parameter.name)
        ]
        if fixed:
            raise ConfigError(f'{", ".join(fixed)} cannot change while the model is loaded.')
        gone, self._config = set(self._config.cameras) - set(config.cameras), config
        for camera in sorted(gone):
            self._inbox.put_reset(camera)

    def stop(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        """End the thread after the running step; every open question is answered CANCELLED. May be called twice.

        meanwhile: called every second until it has ended.
        """
        self._inbox.close()
        if self._thread is threading.current_thread():
            return
        while self._thread.is_alive():
            self._thread.join(WAITING_S)
            if self._thread.is_alive():
                meanwhile()

    def stats(self) -> WorkerStats:
        """The counts now; never blocks on the model."""
        with self._counting:
            return WorkerStats(
                self._model,
                self._inbox.waiting(),
                dict(self._answers),
                self._last_error,
                dict(self._held),
                dict(self._audited),
                len(self._watches.all()),
                device_bytes(),
            )

    def _queue(self, ask):
        """Put a question in the inbox, or answer it at once when it cannot wait there."""
        limit = self._config.queue_size
        if ask.camera not in self._config.cameras:
            self._refuse(ask, Status.INVALID_REQUEST, self._unknown(ask.camera))
        elif not self._inbox.put_ask(ask, limit):
            if self._inbox.is_open:
                self._refuse(
                    ask,
                    Status.BUSY,
                    f"{limit} questions about camera '{ask.camera}' wait already (queue_size); ask again later.",
                )
            else:
                self._refuse(ask, Status.CANCELLED, 'The model does not run any more; start the node again.')
        return ask.future

    def _ask_standing(self, watch, now_ns, future):
        if not self._inbox.put_standing(Ask(watch.camera, watch.question, now_ns, future=future, is_standing=True)):
            future.cancel()

    def _check_region(self, watch):
        """Refuse a region that lies outside the camera's picture, where one is known: nothing would ever touch it."""
        session, region = self._sessions.get(watch.camera), watch.region
        newest = session.newest if session else None
        if newest and region.width and (region.x >= newest.size[1] or region.y >= newest.size[0]):
            raise InvalidRequestError(
                f'region begins at {region.x}, {region.y}, outside the picture of '
                f'{newest.size[1]} x {newest.size[0]} px; expected pixels of it.'
            )

    def _unknown(self, camera):
        return f"There is no camera '{camera}'; known are {', '.join(self._config.cameras)}."

    def _run(self):
        """The thread: load, then one step after the other until `stop`."""
        try:
            self._load()
        except Exception as error:
            self._inbox.close()
            self._ready.set_exception(error)
        else:
            self._ready.set_result(None)
            while self._inbox.is_open:
                self._go_on_whatever_happens()
        self._turn_away()
        self._sessions.clear()
        self._vlm = None
        release_thread()

    def _go_on_whatever_happens(self):
        """One step. A fault of this program costs every state, but who asks next is answered all the same."""
        try:
            self._go_on()
        except Exception as error:
            _log.exception("The model's thread met a fault of this program; every state is computed anew.")
            self._last_error = f'A fault of this program: {type(error).__name__}: {error}.'
            self._sessions.clear()

    def _load(self):
        self._vlm = load(self._config.model)
        _rehearse(self._vlm, self._config)
        self._model = self._vlm.name

    def _go_on(self):
        """One thing that waits; then one step of what a session has left to do, where nobody asks or it waited long."""
        busy = self._next_that(lambda session: session.has_work)
        audit = self._next_that(lambda session: session.has_audit)
        quiet_in_s = max(0.0, self._asked_s + QUIET_S - time.perf_counter())
        step = self._inbox.next(0 if busy else quiet_in_s if audit else None)
        if step is not None:
            self._do(step)
        if isinstance(step, Ask) and not step.is_standing:
            self._asked_s = time.perf_counter()
        self._put_off = self._put_off + 1 if busy else 0
        if busy in self._sessions and (not len(self._inbox) or self._put_off > MOST_PUT_OFF):  # else it has just left
            self._sessions[busy].work(self._check_open if self._put_off > MOST_PUT_OFF else self._check_idle)
            self._sessions[busy] = self._sessions.pop(busy)  # another camera's turn
            self._put_off = 0
        elif audit and step is None:
            self._sessions[audit].audit(self._check_idle)
            if not self._sessions[audit].is_auditing:
                self._sessions[audit] = self._sessions.pop(audit)
        held = {name: session.held for name, session in self._sessions.items()}
        audited = {name: session.audited for name, session in self._sessions.items()}
        with self._counting:
            self._held, self._audited = held, audited

    def _next_that(self, has):
        """The camera whose turn it is among those whose session has something to do, None for none."""
        return next((camera for camera, session in self._sessions.items() if has(session)), None)

    def _do(self, step):
        """One step, whatever it is; a question is answered whatever happens."""
        try:
            session = self._session(step.camera)
            if session is None:  # the camera has left
                if isinstance(step, Ask):
                    self._refuse(step, Status.INVALID_REQUEST, self._unknown(step.camera))
            elif isinstance(step, Frame):
                self._observe(session, step)
            elif isinstance(step, Ask):
                self._finish(step, self._answer(session, step))
            else:
                session.reset()
        except Exception as error:
            if not isinstance(step, Ask):
                raise
            # Not the model's doing, which is an answer already: a record of wrong types.
            _log.exception('A question could not be handled.')
            self._refuse(step, Status.MODEL_ERROR, f'The question could not be handled: {error}.')

    def _session(self, camera):
        """The session of a camera, begun when it is needed; None, and what it held given up, when it has left."""
        if camera not in self._config.cameras:
            self._sessions.pop(camera, None)
            return None
        if camera not in self._sessions:
            self._sessions[camera] = SceneSession(self._vlm, self._config, camera, self._refreshed, self._refused)
        self._sessions[camera].config = self._config
        return self._sessions[camera]

    def _observe(self, session, frame):
        try:
            session.observe(frame, check=self._check_open)
        except (Stopped, ImageError):
            pass  # the thread ends, or on_refused was told: the picture is to blame, not the model
        except Exception as error:
            message = f"A picture of camera '{frame.camera}' could not be used: {error}"
            if message != self._last_error:  # once, not at the camera's rate
                _log.exception(message)
            self._last_error = message

    def _answer(self, session, ask):
        """Answer one question, behind the waiting frame when it needs that."""
        run = session.ask_cold if ask.cold else session.ask
        answer = run(
            ask.question,
            now_ns=ask.now_ns,
            asked_s=ask.asked_s,
            cancelled=lambda: self._must_stop(ask),
            newest=lambda: self._inbox.take_frame(ask.camera),
            listener=ask.listener and partial(_tell, ask.listener),
        )
        if answer.status is Status.MODEL_ERROR:
            self._last_error = answer.message
        return answer

    def _check_open(self):
        """Asked while a frame is looked at: give up after `stop`, and turn away who need not wait for the frame."""
        self._turn_away()
        if not self._inbox.is_open:
            raise Stopped(Status.CANCELLED, 'The model does not run any more.')

    def _check_idle(self):
        """Asked during what can wait: give up for any question."""
        self._check_open()
        if len(self._inbox):
            raise Stopped(Status.BUSY, 'A question waits.')

    def _must_stop(self, ask):
        """Asked before every token: whether to give up. Also the moment to turn away who waited too long."""
        self._turn_away()
        return ask.is_cancelled or not self._inbox.is_open

    def _turn_away(self):
        """Answer the waiting questions that were cancelled or are late, and all of them after `stop`."""
        for ask in self._inbox.take_leaving(self._config.timeout_s):
            if ask.is_cancelled or not self._inbox.is_open:
                self._refuse(ask, Status.CANCELLED, 'The question was cancelled while it waited.')
            else:
                self._refuse(
                    ask,
                    Status.TIMEOUT,
                    'Its time was over while it waited for other questions; ask less often or allow more (timeout).',
                )

    def _refuse(self, ask, status, message):
        waited_ms = 1e3 * (time.perf_counter() - ask.asked_s)
        self._finish(ask, Answer(status, message, camera=ask.camera, model=self._model, queue_ms=waited_ms))

    def _finish(self, ask, answer):
        """Hand over the answer, unless the future was cancelled."""
        wanted = ask.future.set_running_or_notify_cancel()
        with self._counting:
            self._answers[str(answer.status if wanted else Status.CANCELLED)] += 1
        if wanted:
            ask.future.set_result(answer)

    def _refreshed(self, frame, refresh):
        """Called by the sessions after each observed frame."""
        self._last_error = ''
        self._watches.see(frame, refresh)
        _tell(self._on_refresh, frame, refresh)

    def _refused(self, frame, error):
        """Called by the sessions after each frame that the model cannot take."""
        _log.debug("A picture of camera '%s' is refused: %s", frame.camera, error)
        _tell(self._on_refused, frame, error)


def _tell(listener, *news):
    """Call a listener, if there is one; its failures are its own."""
    try:
        if listener:
            listener(*news)
    except Exception:
        _log.exception('A listener failed; the model goes on.')


def _rehearse(vlm, config):
    """Answer once before the first real question: kernels are compiled, and a model that cannot run is found now."""
    session = SceneSession(vlm, config)
    session.newest = Frame(np.full((480, 640, 3), 128, np.uint8))  # `ask` computes its state
    for question in (Question('what is this?', max_tokens=2), Question('what is this?', choices=('a', 'b'))):
        answer = session.ask(question, now_ns=0)
        if answer.status is Status.MODEL_ERROR:
            raise ModelError(f"The model '{vlm.name}' loads but cannot answer. {answer.message}")
