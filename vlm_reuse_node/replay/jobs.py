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

"""Runs one job for each bag, in this process or in several. In each process one thread has a model."""

import multiprocessing
import queue
import shutil
import signal
from collections.abc import Callable
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from pathlib import Path

from vlm_reuse_node.config import Config
from vlm_reuse_node.errors import VlmReuseError
from vlm_reuse_node.model import loading
from vlm_reuse_node.model.vlm import Vlm
from vlm_reuse_node.plain_text import error_line
from vlm_reuse_node.replay.evaluate import Replay
from vlm_reuse_node.replay.job import Job, JobOutcome
from vlm_reuse_node.replay.journal import Journal
from vlm_reuse_node.replay.model_thread import POLL_S, load, run_with_model


def run_here(
    jobs: list[Job], resume: bool, progress: Callable[[float], None], stopped: Callable[[], bool]
) -> list[JobOutcome]:
    """Replay one bag after the other, in a thread of its own. Raises ModelError when there is no model."""
    return run_with_model(
        jobs[0].config, lambda vlm: [run_job(job, vlm, resume, progress, stopped) for job in jobs if not stopped()]
    )


def run_job(
    job: Job, vlm: Vlm, resume: bool, progress: Callable[[float], None], stopped: Callable[[], bool]
) -> JobOutcome:
    """Replay one bag; with `resume` a bag that was replayed to its end stays as it is."""
    journal = None
    try:
        journal = Journal(job.folder, job.settings(vlm.name, vlm.fingerprint), resume)
        if journal.is_complete:
            return JobOutcome(job.name, True, started=True)
        replay = Replay(job, vlm, journal)
        remove_pictures(job.folder)
        journal.start()
        return JobOutcome(job.name, replay.run(progress, stopped), started=True)
    except (VlmReuseError, OSError) as error:
        return JobOutcome(job.name, False, str(error))
    except Exception as error:  # one bag's fault costs that bag only
        return JobOutcome(job.name, False, f"The replay of '{job.name}' failed: {error_line(error)}")
    finally:
        if journal:
            journal.close()


def remove_pictures(folder: Path) -> None:
    """Remove an earlier run's pictures and videos; a resumed run makes all of them again, too."""
    shutil.rmtree(folder / 'pictures', ignore_errors=True)
    for video in folder.glob('overlay.*'):
        video.unlink()


def run_processes(
    jobs: list[Job],
    resume: bool,
    count: int,
    progress: Callable[[float], None],
    stopped: Callable[[], bool],
) -> list[JobOutcome]:
    """Replay several bags at a time, in `count` processes that each load the model once."""
    context = multiprocessing.get_context('spawn')
    todo: Queue[Job | None] = context.Queue()
    reports: Queue[JobOutcome | float] = context.Queue()
    stop = context.Event()
    for job in [*jobs, *[None] * count]:
        todo.put(job)
    arguments = (todo, reports, stop, jobs[0].config, resume)
    workers = [context.Process(target=_work, args=arguments, daemon=True) for _ in range(count)]
    for worker in workers:
        worker.start()
    outcomes: list[JobOutcome] = []
    while len(outcomes) < len(jobs):
        if stopped():
            stop.set()
        try:
            report = reports.get(timeout=POLL_S)
        except queue.Empty:
            if any(worker.is_alive() for worker in workers):
                continue
            break
        if isinstance(report, JobOutcome):
            outcomes.append(report)
        else:
            progress(report)
    for worker in workers:
        worker.join()
    done = {outcome.name for outcome in outcomes}
    missing = '' if stopped() else 'The process that replayed it has died.'
    return outcomes + [JobOutcome(job.name, False, missing) for job in jobs if job.name not in done]


def _work(
    todo: 'Queue[Job | None]', reports: 'Queue[JobOutcome | float]', stop: Event, config: Config, resume: bool
) -> None:
    """One process: jobs until there are none. reports: outcomes, and the seconds that were replayed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and sets stop
    try:
        vlm = load(config)
    except VlmReuseError as error:
        while (job := todo.get()) is not None:
            reports.put(JobOutcome(job.name, False, str(error)))
        return
    while (job := todo.get()) is not None:
        if stop.is_set():
            reports.put(JobOutcome(job.name, False))
        else:
            reports.put(run_job(job, vlm, resume, reports.put, stop.is_set))
    del vlm
    loading.release_thread()
