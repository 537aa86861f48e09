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

"""Diagnostics for an operator: one status for each part of the node. Its message gives reason and remedy (REP-107).

The functions here only turn counts into statuses. The node gathers the counts and publishes the statuses.
"""

from collections import Counter
from collections.abc import Mapping

import psutil
from diagnostic_msgs.msg import DiagnosticStatus, KeyValue

from vlm_reuse_node.plain_text import one_line
from vlm_reuse_node.ros.stage import Stage
from vlm_reuse_node.scene.refresh import Level, Refresh
from vlm_reuse_node.serving.worker_stats import WorkerStats
from vlm_reuse_node.session.drift_bounds import DriftCount
from vlm_reuse_node.session.session_status import SessionStatus

OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR
# Warn when less than this share of the host's memory is available: the host starts to swap, and answers take seconds.
LEAST_MEMORY = 0.05


def budget_status(
    node: str, refreshes: list[Refresh], stale: int, sessions: Mapping[str, SessionStatus], seconds: float
) -> DiagnosticStatus:
    """Cost of the pictures of the last interval, and the work of each camera so far against cold-dense.

    It is never a warning: cells may be stale until somebody asks. A look counts a picture, a refresh does not.
    stale: visual tokens that wait for a refresh. sessions: by camera.
    """
    looks = [refresh for refresh in refreshes if refresh.level == Level.REUSE]
    total = sum(look.visual_tokens_total for look in looks)
    paid = sum(refresh.visual_tokens_refreshed for refresh in refreshes)
    levels = Counter(str(refresh.level) for refresh in refreshes)
    values = {
        'pictures looked at': f'{len(looks) / seconds:.1f} Hz',
        'visual tokens': total,
        'visual tokens refreshed': paid,
        'refreshed': f'{100 * paid / total:.1f} %' if total else 'no pictures',
        'visual tokens stale': stale,
        'spent': f'{sum(refresh.spent_ms for refresh in refreshes) / seconds:.1f} ms/s',
        **{f'level: {level}': count for level, count in sorted(levels.items())},
    }
    for camera, session in sorted(sessions.items()):
        totals = session.totals
        values |= {
            f'{camera}: work': f'{totals.work_ms:.0f} ms',
            f'{camera}: work of cold-dense': f'{totals.cold_ms:.0f} ms',
            f'{camera}: work / cold-dense': f'{totals.ratio:.2f}' if totals.cold_ms else 'no question yet',
            f'{camera}: credit': f'{totals.credit_ms:.0f} ms',
        }
    pictures = f'{len(looks) / seconds:.1f} pictures/s looked at, {paid} visual tokens refreshed'
    return status(
        f'{node}: refresh budget', OK, f'{pictures if refreshes else "no pictures"}; {_work(sessions)}', values
    )


def _work(sessions: Mapping[str, SessionStatus]) -> str:
    """The work of all cameras against cold-dense, and of each where there are several."""
    asked = {camera: session.totals for camera, session in sorted(sessions.items()) if session.totals.cold_ms}
    if not asked:
        return 'no question yet'
    spent, cold = (sum(getattr(totals, name) for totals in asked.values()) for name in ('work_ms', 'cold_ms'))
    each = ', '.join(f'{camera} {totals.ratio:.2f}' for camera, totals in asked.items())
    return f'{spent / cold:.2f} times the work of cold-dense' + (f' ({each})' if len(asked) > 1 else '')


def node_status(node: str, stage: Stage, waits_for: str, failure: Exception | None, twin: str = '') -> DiagnosticStatus:
    """Status of the life cycle.

    failure: the error of the last transition, if it failed. twin: what there is to say about other nodes of its name.
    """
    if twin and not failure:
        return status(f'{node}: life cycle', WARN, twin, {'stage': stage})
    if stage is Stage.ACTIVE:
        return status(f'{node}: life cycle', OK, 'Active', {'stage': stage})
    if failure:
        return status(f'{node}: life cycle', ERROR, f'{failure} {waits_for}', {'stage': stage})
    return status(f'{node}: life cycle', WARN, waits_for, {'stage': stage})


def memory_status(node: str, stats: WorkerStats) -> DiagnosticStatus:
    """Memory of the process and the model, and what is available on the host."""
    host, process = psutil.virtual_memory(), psutil.Process().memory_info()
    values = {
        'process': _megabytes(process.rss),
        'model and states': _megabytes(stats.device_bytes),
        'host, available': _megabytes(host.available),
        'host, all': _megabytes(host.total),
    }
    if host.available < LEAST_MEMORY * host.total:
        return status(
            f'{node}: memory',
            WARN,
            f"Only {_megabytes(host.available)} of the host's memory are available; "
            'lower history_frames or max_cache_mb, end other programs, or use a smaller model.',
            values,
        )
    return status(f'{node}: memory', OK, f'{_megabytes(process.rss)} in use', values)


def _megabytes(size: int) -> str:
    return f'{size / 1e6:.1f} MB'


def model_status(node: str, stats: WorkerStats, queue_size: int) -> DiagnosticStatus:
    """Status of the model."""
    level, message = OK, 'Ready'
    if stats.last_error:
        level, message = (
            ERROR,
            (f'{stats.last_error} The next question computes the state again; restart the node if this stays.'),
        )
    elif full := [camera for camera, count in stats.waiting.items() if count >= queue_size]:
        level, message = (
            WARN,
            (
                f'{queue_size} questions about {", ".join(sorted(full))} wait, and new ones get BUSY; ask '
                'less often, or raise queue_size.'
            ),
        )
    values = {
        'model': stats.model,
        'questions waiting': sum(stats.waiting.values()),
        'standing questions': stats.watches,
        **{
            f'state of {camera}': f'{session.frames} pictures, {_megabytes(session.held_bytes)}'
            for camera, session in sorted(stats.sessions.items())
        },
        **{f'answers: {name}': count for name, count in sorted(stats.answers.items())},
        'remembered answers': stats.remembered,
    }
    return status(f'{node}: model', level, message, values, hardware_id=stats.model)


def audit_status(node: str, sessions: Mapping[str, SessionStatus], max_drift: float) -> DiagnosticStatus:
    """Status of the drift audit: how many answers differ from cold-dense. sessions: by camera."""
    audited = {camera: session.audits for camera, session in sessions.items()}
    patched = sum(counts.patched.answers for counts in audited.values())
    exact = sum(counts.exact_answers for counts in audited.values())
    level, message = OK, f'{patched + exact} answers audited, {patched} of them from patched states'
    values: dict[str, object] = {'max_drift': f'{100 * max_drift:g} %'}
    for camera, counts in sorted(audited.items()):
        session = sessions[camera]
        if session.is_calibration_refused and level == OK:
            level, message = WARN, f"Camera '{camera}': {session.policy_reason}"
        values |= {
            f'{camera}: refresh policy': session.policy,
            f'{camera}: because': session.policy_reason,
            f'{camera}: patched, choices': _drift(counts.choices),
            f'{camera}: patched, texts': _drift(counts.texts),
            f'{camera}: exact audited': counts.exact_answers,
            f'{camera}: exact drifted': counts.exact_drifted,
        }
        if not counts.is_trusted and level == OK:
            level, message = (
                WARN,
                (
                    f"Camera '{camera}': too many answers from patched states drifted; changed "
                    'pictures are computed whole for now. Calibrate again, or use refresh_policy exact.'
                ),
            )
        if counts.exact_drifted:
            level, message = (
                ERROR,
                (
                    f"Camera '{camera}': {counts.exact_drifted} of {counts.exact_answers} answers from "
                    f'exact states differ from cold-dense. This is a bug in this software; '
                    f'report it with the model and the versions.'
                ),
            )
    return status(f'{node}: drift audit', level, message, values)


def _drift(count: DriftCount) -> str:
    if not count.answers:
        return 'none audited'
    low, high = (100 * bound for bound in count.bounds)
    return f'{count.drifted} of {count.answers} drifted, {low:.2f} to {high:.2f} % (95 %)'


def status(name: str, level: bytes, message: str, values: Mapping, hardware_id: str = '') -> DiagnosticStatus:
    """Build one status. Every value is converted to text, and every text to one line."""
    pairs = [KeyValue(key=one_line(key), value=one_line(str(value))) for key, value in values.items()]
    return DiagnosticStatus(
        name=one_line(name), level=level, message=one_line(message), hardware_id=one_line(hardware_id), values=pairs
    )
