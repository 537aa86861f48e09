"""The worker: one thread with one model, fed from any thread.

Everything hands it frames and questions and never blocks. Of the frames, only the newest of each camera waits.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import fields, replace
from functools import partial
from threading import Event

from vlm_reuse_node.config import Config
from vlm_reuse_node.errors import ConfigError, ImageError, InvalidRequestError
from vlm_reuse_node.model.loading import device_bytes
from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.scene.refresh import Refresh
from vlm_reuse_node.serving.inbox import Inbox
from vlm_reuse_node.serving.listener import tell
from vlm_reuse_node.serving.model_loop import ModelLoop
from vlm_reuse_node.serving.queued_question import QueuedQuestion
from vlm_reuse_node.serving.watch import Watch
from vlm_reuse_node.serving.watches import Watches
from vlm_reuse_node.serving.worker_stats import Tally, WorkerStats
from vlm_reuse_node.session.answer import Answer, Status
from vlm_reuse_node.session.progress import Progress
from vlm_reuse_node.session.question import Question

# Interval of the `meanwhile` callbacks, seconds.
MEANWHILE_S = 1.0


class ModelWorker:
    """Answers questions about the newest frame of each camera, on one thread with one model."""

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
        self._config, self._on_refresh = config, on_refresh
        self._inbox, self._tally = Inbox(), Tally()
        self._watches = Watches(self._ask_standing, partial(tell, on_watch))
        self._loop = ModelLoop(config, self._inbox, self._tally, self._on_frame_refreshed, on_refused)
        self._ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name='model', daemon=True)

    def start(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Start the thread and load the model on it; returns when it is ready. Once in a worker's life.

        meanwhile: called every second until then. Raises ModelError when the model cannot be loaded (the thread has
        ended then), ConfigError when system_prompt holds special tokens of the model.
        """
        self._thread.start()
        while not wait([self._ready], MEANWHILE_S).done:
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
            raise ImageError('camera', self._config.unknown_camera(frame.camera))
        return self._inbox.put_frame(frame)

    def ask(
        self,
        camera: str,
        question: Question,
        now_ns: int,
        cancel: Event | None = None,
        listener: Callable[[Progress], None] | None = None,
    ) -> Future[Answer]:
        """Queue a question; never blocks and never raises: whatever goes wrong is the answer's status.

        camera: '' takes the first configured one; an unknown one is INVALID_REQUEST.
        now_ns: the node clock's time of asking (may be simulated); used for the image age only. Latency, the time
            waited in the queue included, is measured with the steady clock.
        cancel: set it to stop at the next token; the Future then gives a CANCELLED answer. `Future.cancel()`
            stops the work too, at any time before the answer, and no answer is given.
        listener: told of progress on the worker's thread; it must not block.
        """
        return self._queue(QueuedQuestion(camera or self._config.cameras[0], question, now_ns, False, cancel, listener))

    def ask_cold(
        self,
        camera: str,
        question: Question,
        now_ns: int,
        cancel: Event | None = None,
        listener: Callable[[Progress], None] | None = None,
    ) -> Future[Answer]:
        """Like `ask`, computed from nothing on the cached frame: the reference that `ask` is compared with."""
        return self._queue(QueuedQuestion(camera or self._config.cameras[0], question, now_ns, True, cancel, listener))

    def watch(self, watch: Watch, now_ns: int) -> tuple[Watch, Future[Answer]]:
        """Keep a standing question (camera '': the first), and its first answer; see `Watches`. Never blocks.

        The answer may be NO_IMAGE: the question is asked again with the first frame. One that is INVALID_REQUEST is
        asked again only with what changes; remove it. Raises InvalidRequestError for what cannot stand.
        """
        watch = replace(watch, camera=watch.camera or self._config.cameras[0])
        if watch.camera not in self._config.cameras:
            raise InvalidRequestError(self._config.unknown_camera(watch.camera))
        return self._watches.add(watch, now_ns, self._loop.size_of(watch.camera))

    def unwatch(self, watch_id: int) -> None:
        """Forget a standing question. Raises InvalidRequestError for a watch_id that names none."""
        self._watches.remove(watch_id)

    def watches(self) -> list[Watch]:
        """Every standing question, the oldest first."""
        return self._watches.all()

    def reset(self, camera: str = '') -> None:
        """Forget a camera's frame and state ('': every camera's), a waiting frame included; never blocks.

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
        gone = set(self._config.cameras) - set(config.cameras)
        self._config = self._loop.config = config
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
            self._thread.join(MEANWHILE_S)
            if self._thread.is_alive():
                meanwhile()

    def stats(self) -> WorkerStats:
        """The counts now; never blocks on the model."""
        return self._tally.stats(self._inbox.waiting(), len(self._watches.all()), device_bytes())

    def _queue(self, queued: QueuedQuestion) -> Future[Answer]:
        """Put a question in the inbox, or answer it at once when it cannot wait there."""
        limit = self._config.queue_size
        if queued.camera not in self._config.cameras:
            self._loop.refuse(queued, Status.INVALID_REQUEST, self._config.unknown_camera(queued.camera))
        elif not self._inbox.put_question(queued, limit):
            if self._inbox.is_open:
                message = (
                    f"{limit} questions about camera '{queued.camera}' wait already (queue_size); ask again later."
                )
                self._loop.refuse(queued, Status.BUSY, message)
            else:
                self._loop.refuse(queued, Status.CANCELLED, 'The model does not run any more; start the node again.')
        return queued.future

    def _ask_standing(self, watch: Watch, now_ns: int, future: Future[Answer]) -> None:
        queued = QueuedQuestion(watch.camera, watch.question, now_ns, future=future, is_standing=True)
        if not self._inbox.put_standing(queued):
            future.cancel()

    def _on_frame_refreshed(self, frame: Frame, refresh: Refresh) -> None:
        self._tally.last_error = ''
        self._watches.see(frame, refresh)
        tell(self._on_refresh, frame, refresh)

    def _run(self) -> None:
        """The thread."""
        try:
            self._loop.load()
        except Exception as error:
            self._inbox.close()
            self._ready.set_exception(error)
        else:
            self._ready.set_result(None)
            self._loop.run()
        self._loop.end()
