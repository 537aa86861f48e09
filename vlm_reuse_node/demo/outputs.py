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

"""What the demo writes to its folder at the end: summary.json, report.html and overlay.png."""

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import cv2

from vlm_reuse_node import __version__
from vlm_reuse_node.demo.recorder import Recorder
from vlm_reuse_node.demo.report import render
from vlm_reuse_node.demo.stills import choose_stills, write_still
from vlm_reuse_node.demo.summary import Reply, Row, Summary
from vlm_reuse_node.demo.table import DENOMINATOR, TIME_MEANT, WORK_MEANT
from vlm_reuse_node.replay.video_file import SUFFIX

VIDEO = f'overlay{SUFFIX}'
PACKAGES = ('mlx', 'mlx-vlm', 'ros-rclpy', 'rosbags')


def write_outputs(folder: Path, summary: Summary, recorder: Recorder, settings: Sequence[tuple[str, str]]) -> None:
    """Write everything. settings: of the run, as (name, value)."""
    stills = choose_stills(summary.looks, recorder.stills)
    settings = [*settings, *environment()]
    write_still(stills, folder / 'overlay.png')
    content = {**summary_content(summary), 'settings': dict(settings), 'diagnostics': recorder.diagnostics}
    (folder / 'summary.json').write_text(json.dumps(content, indent=1) + '\n', encoding='utf-8')
    video = VIDEO if (folder / VIDEO).exists() else ''
    page = render(summary, settings=settings, stills=stills, video=video, diagnostics=recorder.diagnostics)
    (folder / 'report.html').write_text(page, encoding='utf-8')


def environment() -> list[tuple[str, str]]:
    """Return when, on what kind of machine and with which versions this runs; nothing that names the machine."""
    made = datetime.now(timezone.utc).strftime('%Y-%m-%d %H:%M UTC')
    machine = f'{platform.system()} {platform.machine()}, {os.cpu_count()} cores'
    versions = [
        ('python', platform.python_version()),
        ('opencv', cv2.__version__),
        *[(name, _version(name)) for name in PACKAGES],
    ]
    return [
        ('made', made),
        ('machine', machine),
        ('vlm_reuse_node', __version__),
        *[(name, number) for name, number in versions if number],
    ]


def summary_content(summary: Summary) -> dict:
    """Return the summary as JSON types: figures, the counts they come from, and every row."""
    camera = summary.camera
    return {
        'work_ms_total': summary.totals.work_ms,
        'cold_ms_total': summary.totals.cold_ms,
        'work_ratio': summary.work_ratio,
        'work': WORK_MEANT,
        'questions': summary.questions,
        'answered': summary.answered,
        'judged': summary.judged,
        'correct': summary.correct,
        'pairs': len(summary.pairs),
        'equal': summary.equal,
        'apart': summary.apart,
        'remembered': summary.remembered,
        'warm_ms_median': summary.warm_ms_median,
        'cold_ms_median': summary.cold_ms_median,
        'speedup': summary.speedup,
        'speedup_denominator': DENOMINATOR,
        'times': TIME_MEANT,
        'frames_sent': camera.sent,
        'frames_received': camera.received,
        'frames_dropped': camera.dropped,
        'frames_refused': camera.refused,
        'frames_looked_at': len(summary.looks),
        'refresh_ratio': summary.refresh_ratio,
        'visual_tokens': summary.tokens,
        'visual_tokens_refreshed': summary.tokens_paid,
        'refresh_levels': summary.refresh_levels,
        'look_ms_total': summary.look_ms,
        'refresh_ms_total': summary.refresh_ms,
        'warm_answers_ms_total': summary.warm_ms,
        'cold_answers_ms_total': summary.cold_ms,
        'rows': [_row_content(row) for row in summary.rows],
    }


def _row_content(row: Row) -> dict:
    question = row.question
    return {
        'at_s': question.at_s,
        'question': question.text,
        'choices': list(question.choices),
        'kind': question.kind,
        'truth': row.truth,
        'right': row.is_right,
        'equal': row.is_equal,
        'warm': _reply_content(row.warm),
        'cold': row.cold and _reply_content(row.cold),
    }


def _reply_content(reply: Reply) -> dict:
    return {**asdict(reply), 'model_ms': reply.model_ms}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ''
