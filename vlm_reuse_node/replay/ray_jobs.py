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

"""Runs one job for each bag on a Ray cluster. Ray is an extra that is imported only when it is asked for."""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from vlm_reuse_node.errors import VlmReuseError
from vlm_reuse_node.plain_text import one_line
from vlm_reuse_node.replay.job import Job, JobOutcome
from vlm_reuse_node.replay.jobs import POLL_S, remove_pictures, run_job
from vlm_reuse_node.replay.model_thread import load


class RayError(VlmReuseError):
    """Ray is not installed, or there is no cluster."""


def run_on_ray(
    jobs: list[Job], address: str, progress: Callable[[float], None], stopped: Callable[[], bool]
) -> list[JobOutcome]:
    """Run one task for each bag on a Ray cluster; the files they write come back through Ray.

    Bags, questions and a model directory must be at the same paths on every machine of it. address: 'local' starts one
    on this machine. Raises RayError when Ray or the cluster is not there.
    """
    ray = _connect(address)
    try:
        task = ray.remote(_ray_task)
        running = {task.remote(job): job for job in jobs}
        outcomes: list[JobOutcome] = []
        while running and not stopped():
            done, _ = ray.wait(list(running), timeout=POLL_S)
            for reference in done:
                outcomes.append(_fetched(ray, reference, running.pop(reference)))
                progress(0.0)
        for reference in running:
            ray.cancel(reference, force=True)
        return outcomes + [JobOutcome(job.name, False) for job in running.values()]
    finally:
        ray.shutdown()


def _connect(address: str) -> Any:
    """The module, connected to the cluster."""
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


def _ray_task(job: Job) -> tuple[JobOutcome, dict[str, bytes]]:
    """Replay in a folder of the machine it runs on. Returns the files by name."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            vlm = load(job.config)
        except VlmReuseError as error:
            return JobOutcome(job.name, False, str(error)), {}
        outcome = run_job(replace(job, folder=folder), vlm, False, lambda _: None, lambda: False)
        del vlm
        files = [path for path in folder.rglob('*') if path.is_file()]
        return outcome, {str(path.relative_to(folder)): path.read_bytes() for path in files}


def _fetched(ray: Any, reference: Any, job: Job) -> JobOutcome:
    """Write a finished task's files where the job wanted them."""
    try:
        outcome, files = ray.get(reference)
    except Exception as error:
        return JobOutcome(job.name, False, f'Its Ray task failed: {one_line(str(error), 300)}')
    remove_pictures(job.folder)
    for name, data in files.items():
        path = job.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return outcome
