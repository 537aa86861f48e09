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

"""The worker: one thread with one model, and one that looks at pictures. Any thread may call its methods.

Handing over a frame or a question never blocks. Only the newest frame of each camera waits.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import fields, replace
from functools import partial
from threading import Event

from vlm_reuse_node.config import Config
from vlm_reuse_node.errors import ConfigError, ImageError, InvalidRequestError
from vlm_reuse_node.model.load_progress import LoadProgress
from vlm_reuse_node.model.loading import device_bytes
from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.scene.refresh import Level, Refresh
from vlm_reuse_node.serving import steps
from vlm_reuse_node.serving.inbox import Inbox
from vlm_reuse_node.serving.listener import notify
from vlm_reuse_node.serving.looks import Looks
from vlm_reuse_node.serving.model_loop import ModelLoop
from vlm_reuse_node.serving.queued_question import QueuedQuestion
from vlm_reuse_node.serving.watch import Watch
from vlm_reuse_node.serving.watches import Watches
from vlm_reuse_node.serving.worker_stats import Tally, WorkerStats
from vlm_reuse_node.session.answer import Answer, Status
from vlm_reuse_node.session.embedded_model import check_words
from vlm_reuse_node.session.progress import Progress
from vlm_reuse_node.session.question import Question

# Interval of the `meanwhile` callback, seconds.
MEANWHILE_S = 1.0


class ModelWorker:
    """Answers questions about the newest frame of each camera, on one thread with one model."""

    def __init__(
        self,
        config: Config,
        on_refresh: Callable[[Frame, Refresh], None] | None = None,
        on_refused: Callable[[Frame, ImageError], None] | None = None,
        on_watch: Callable[[Watch, Answer | None], None] | None = None,
        on_dropped: Callable[[Frame], None] | None = None,
    ) -> None:
        """Prepare. `start` loads the model and starts the threads.

        Callbacks run on the worker's threads, on_dropped also on the thread that calls `observe`. They must not block.
        on_refresh: called after each look at a frame and after each refresh; looks and refreshes have two threads.
        on_refused: called after each frame that the model cannot take, such as an extremely wide one.
        on_watch: called with a standing question that has a new answer, and with its previous answer.
        on_dropped: called once with each frame that is not looked at, because a newer one of its camera came first.
        """
        self._config, self._on_refresh = config, on_refresh
        self._inbox, self._tally = Inbox(), Tally()
        self._watches = Watches(self._ask_standing, partial(notify, on_watch))
        self._loop = ModelLoop(config, self._inbox, self._tally, self._on_frame_refreshed, on_refused, on_dropped)
        self._looks = Looks(self._inbox, self._loop)
        self._ready: Future[None] = Future()
        self._progress = LoadProgress()
        self._thread = threading.Thread(target=self._run, name='model', daemon=True)

    def start(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Start the model's thread and load the model on it, then start to look. Returns when the model is ready.

        Call it once.

        meanwhile: called every second while the model loads.
        Raises ModelError when the model cannot be loaded, and ConfigError when system_prompt holds special tokens of
        the model. The thread has ended then.
        """
        self._thread.start()
        while not wait([self._ready], MEANWHILE_S).done:
            self._progress.tell_when_due()
            meanwhile()
        try:
            self._ready.result()
        except Exception:
            self._thread.join()  # MLX aborts the process if it exits while this thread still frees its streams
            raise

    @property
    def loading(self) -> str:
        """What is being loaded, and how far that is, such as 'loading weights: 3.1 of 8.2 GB'; '' at other times."""
        return self._progress.text

    def observe(self, frame: Frame) -> None:
        """Hand over a frame of `frame.camera`. Never blocks. An older frame that still waits is dropped.

        Raises ImageError('camera', ...) for a camera that is not configured.
        """
        if frame.camera not in self._config.cameras:
            raise ImageError('camera', self._config.unknown_camera(frame.camera))
        steps.picture_came(frame)
        if replaced := self._inbox.put_frame(frame):
            self._loop.drop(replaced)

    def ask(
        self,
        camera: str,
        question: Question,
        now_ns: int,
        cancel: Event | None = None,
        listener: Callable[[Progress], None] | None = None,
    ) -> Future[Answer]:
        """Queue a question. Never blocks and never raises: every error becomes the answer's status.

        camera: '' is the first configured camera; an unknown camera gives INVALID_REQUEST.
        now_ns: time of the question on the node's clock (may be simulated). It is used for the image age only. Latency,
            with the time in the queue, is measured with the steady clock.
        cancel: set this event to stop at the next token; the future then gets a CANCELLED answer. `Future.cancel()`
            stops the work too, at any time before the answer; the future then gets no answer.
        listener: called with progress on the worker's thread; it must not block.
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
        """Like `ask`, but cold-dense: computed from nothing on the cached frame. This is the reference for `ask`."""
        return self._queue(QueuedQuestion(camera or self._config.cameras[0], question, now_ns, True, cancel, listener))

    def watch(self, watch: Watch, now_ns: int) -> tuple[Watch, Future[Answer]]:
        """Add a standing question (camera '': the first); see `Watches`. Never blocks.

        Returns the watch and the future of its first answer. After NO_IMAGE the question is asked again with the first
        frame. After INVALID_REQUEST remove it: it would be asked again with every change of its region.
        Raises InvalidRequestError for an invalid watch.
        """
        watch = replace(watch, camera=watch.camera or self._config.cameras[0])
        if watch.camera not in self._config.cameras:
            raise InvalidRequestError(self._config.unknown_camera(watch.camera))
        check_words(self._config.model, watch.question)
        return self._watches.add(watch, now_ns, self._loop.size_of(watch.camera))

    def unwatch(self, watch_id: int) -> None:
        """Remove a standing question. Raises InvalidRequestError for an unknown watch_id."""
        self._watches.remove(watch_id)

    def watches(self) -> list[Watch]:
        """All standing questions, the oldest first."""
        return self._watches.all()

    def reset(self, camera: str = '') -> None:
        """Forget a camera's frame and state, and its waiting frame. camera '': every camera. Never blocks.

        Questions get NO_IMAGE until the next frame.
        """
        for name in self._config.cameras:
            if camera in ('', name):
                self._inbox.put_reset(name)

    def configure(self, config: Config) -> None:
        """Use new values of the live parameters, from the next question or frame on.

        A removed camera loses its state, and its waiting questions are refused. Its standing questions stay, and
        continue when the camera is added again. Raises ConfigError when a parameter that is not live differs.
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
            self._inbox.put_reset(camera, is_removed=True)

    def stop(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        """End both threads after the step that is running. Open questions are answered CANCELLED. May be called twice.

        meanwhile: called every second until the threads have ended.
        """
        self._inbox.close()
        if self._thread is threading.current_thread():
            return
        while self._thread.is_alive():
            self._thread.join(MEANWHILE_S)
            if self._thread.is_alive():
                meanwhile()

    def stats(self) -> WorkerStats:
        """The current counts. Never waits for the model."""
        return self._tally.stats(self._inbox.waiting(), len(self._watches.all()), device_bytes())

    def _queue(self, queued: QueuedQuestion) -> Future[Answer]:
        """Put a question into the inbox, or answer it at once when the inbox does not take it."""
        steps.question_came(queued)
        limit = self._config.queue_size
        try:
            check_words(self._config.model, queued.question)
        except InvalidRequestError as error:
            self._loop.refuse(queued, Status.INVALID_REQUEST, str(error))
            return queued.future
        if queued.camera not in self._config.cameras:
            self._loop.refuse(queued, Status.INVALID_REQUEST, self._config.unknown_camera(queued.camera))
        elif not self._inbox.put_question(queued, limit):
            if self._inbox.is_open:
                message = (
                    f"{limit} questions about camera '{queued.camera}' already wait (queue_size); ask again later."
                )
                self._loop.refuse(queued, Status.BUSY, message)
            else:
                self._loop.refuse(queued, Status.CANCELLED, 'The model is not running any more; start the node again.')
        return queued.future

    def _ask_standing(self, watch: Watch, now_ns: int, future: Future[Answer]) -> None:
        queued = QueuedQuestion(watch.camera, watch.question, now_ns, future=future, is_standing=True)
        steps.question_came(queued)
        if not self._inbox.put_standing(queued):
            future.cancel()

    def _on_frame_refreshed(self, frame: Frame, refresh: Refresh) -> None:
        if refresh.level is not Level.REUSE:
            self._tally.last_error = ''
        self._watches.see(frame, refresh, self._config.max_lag_s)
        steps.picture_used(refresh)
        notify(self._on_refresh, frame, refresh)

    def _run(self) -> None:
        """The body of the model's thread. It ends after the looks have ended."""
        try:
            self._loop.load(self._progress)
        except Exception as error:
            self._inbox.close()
            self._ready.set_exception(error)
        else:
            self._ready.set_result(None)
            self._looks.start()
            self._loop.run()
        self._looks.join()
        self._loop.end()
