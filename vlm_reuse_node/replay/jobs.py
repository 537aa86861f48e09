"""Runs one job for each bag: in this process, in several, or on a Ray cluster. One process, one thread with a model."""

import multiprocessing
import queue
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path

from vlm_reuse_node.errors import VlmReuseError
from vlm_reuse_node.model import loading
from vlm_reuse_node.model.vlm import Vlm
from vlm_reuse_node.replay.evaluate import Job, Replay
from vlm_reuse_node.replay.journal import Journal
from vlm_reuse_node.replay.salvage import one_line

POLL_S = 0.5


class RayError(VlmReuseError):
    """Ray is not installed, or there is no cluster."""


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    complete: to the end of its bag. error: why there is nothing, '' otherwise. started: whether the rows in its folder
    are of this run.
    """

    name: str
    complete: bool
    error: str = ''
    started: bool = False


def run_here(
    jobs: list[Job], model: str, resume: bool, progress: Callable[[float], None], stopped: Callable[[], bool]
) -> list[Outcome]:
    """One bag after the other, in a thread of its own, which is of no use to MLX afterwards.

    Raises ModelError when there is no model.
    """
    outcomes: list[Outcome] = []
    errors: list[Exception] = []

    def work():
        try:
            vlm = loading.load(model)
            outcomes.extend(run_job(job, vlm, resume, progress, stopped) for job in jobs if not stopped())
        except Exception as error:
            errors.append(error)
        finally:
            vlm = None
            loading.release_thread()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    while thread.is_alive():  # signals come in between
        thread.join(POLL_S)
    if errors:
        raise errors[0]
    return outcomes


def run_job(
    job: Job, vlm: Vlm, resume: bool, progress: Callable[[float], None], stopped: Callable[[], bool]
) -> Outcome:
    """Replay one bag; a bag that was replayed to its end stays as it is when `resume` is set."""
    journal = None
    try:
        journal = Journal(job.folder, job.settings(vlm), resume)
        if journal.is_complete:
            return Outcome(job.name, True, started=True)
        replay = Replay(job, vlm, journal)
        _clear(job.folder)
        journal.start()
        return Outcome(job.name, replay.run(progress, stopped), started=True)
    except (VlmReuseError, OSError) as error:
        return Outcome(job.name, False, str(error))
    except Exception as error:  # one bag's fault costs that bag only
        why = f'{type(error).__name__}: {one_line(error)}'
        return Outcome(job.name, False, f"The replay of '{job.name}' failed: {why}")
    finally:
        if journal:
            journal.close()


def _clear(folder: Path) -> None:
    """Remove an earlier run's pictures and videos; all of them are made again, also by a run that goes on."""
    shutil.rmtree(folder / 'pictures', ignore_errors=True)
    for video in folder.glob('overlay.*'):
        video.unlink()


def run_processes(
    jobs: list[Job],
    model: str,
    resume: bool,
    count: int,
    progress: Callable[[float], None],
    stopped: Callable[[], bool],
) -> list[Outcome]:
    """Several bags at a time, each in a process of its own that loads the model once."""
    context = multiprocessing.get_context('spawn')
    todo, told, stop = context.Queue(), context.Queue(), context.Event()
    for job in [*jobs, *[None] * count]:
        todo.put(job)
    workers = [context.Process(target=_work, args=(todo, told, stop, model, resume), daemon=True) for _ in range(count)]
    for worker in workers:
        worker.start()
    outcomes: list[Outcome] = []
    while len(outcomes) < len(jobs):
        if stopped():
            stop.set()
        try:
            message = told.get(timeout=POLL_S)
        except queue.Empty:
            if any(worker.is_alive() for worker in workers):
                continue
            break
        if isinstance(message, Outcome):
            outcomes.append(message)
        else:
            progress(message)
    for worker in workers:
        worker.join()
    done = {outcome.name for outcome in outcomes}
    return outcomes + [
        Outcome(job.name, False, '' if stopped() else 'The process that replayed it has died.')
        for job in jobs
        if job.name not in done
    ]


def _work(todo, told, stop, model, resume):
    """One process: jobs until there are none."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent was told, and tells
    try:
        vlm = loading.load(model)
    except VlmReuseError as error:
        while (job := todo.get()) is not None:
            told.put(Outcome(job.name, False, str(error)))
        return
    while (job := todo.get()) is not None:
        told.put(Outcome(job.name, False) if stop.is_set() else run_job(job, vlm, resume, told.put, stop.is_set))
    del vlm
    loading.release_thread()


# --- Ray --------------------------------------------------------------------------------------------------------------


def run_on_ray(
    jobs: list[Job], model: str, address: str, progress: Callable[[float], None], stopped: Callable[[], bool]
) -> list[Outcome]:
    """One task for each bag on a Ray cluster; what they write comes back through Ray.

    Bags, questions and a model directory must be at the same paths on every machine of it. address: 'local' starts one
    on this machine. Raises RayError when Ray or the cluster is not there.
    """
    ray = _connect(address)
    try:
        task = ray.remote(_ray_task)
        running = {task.remote(job, model): job for job in jobs}
        outcomes = []
        while running and not stopped():
            done, _ = ray.wait(list(running), timeout=POLL_S)
            outcomes += [_fetched(ray, reference, running.pop(reference), progress) for reference in done]
        for reference in running:
            ray.cancel(reference, force=True)
        return outcomes + [Outcome(job.name, False) for job in running.values()]
    finally:
        ray.shutdown()


def _connect(address):
    try:
        ray = import_module('ray')
    except ImportError as error:
        raise RayError("--ray needs Ray, which is not installed: pip install 'ray[default]', or use --jobs.") from error
    try:
        ray.init(address=address, log_to_driver=False, logging_level='ERROR')
    except Exception as error:
        raise RayError(
            f"There is no Ray cluster at '{address}': {error}. Give the address of one, 'auto' or 'local'."
        ) from error
    return ray


def _ray_task(job: Job, model: str) -> tuple[Outcome, dict[str, bytes]]:
    """Replay in a folder of the machine it runs on. Returns the files by name."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            vlm = loading.load(model)
        except VlmReuseError as error:
            return Outcome(job.name, False, str(error)), {}
        outcome = run_job(replace(job, folder=folder), vlm, False, lambda _: None, lambda: False)
        del vlm
        return outcome, {
            str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob('*') if path.is_file()
        }


def _fetched(ray, reference, job, progress) -> Outcome:
    """Write a finished task's files where the job wanted them."""
    try:
        outcome, files = ray.get(reference)
    except Exception as error:
        return Outcome(job.name, False, f'Its Ray task failed: {" ".join(str(error).split())[:300]}')
    _clear(job.folder)
    for name, data in files.items():
        path = job.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    progress(0.0)
    return outcome
