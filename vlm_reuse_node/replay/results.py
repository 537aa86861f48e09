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

"""results.json: the rows of all bags, their sums and ratios, and under `times` what differs from run to run."""

import json
import os
import platform
from datetime import datetime, timezone
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jsonschema

from vlm_reuse_node import __version__
from vlm_reuse_node.errors import VlmReuseError
from vlm_reuse_node.replay.arms import ARMS, REFERENCE
from vlm_reuse_node.replay.counts import count_rows
from vlm_reuse_node.replay.journal import NAME, read_rows
from vlm_reuse_node.replay.keep_up import measure_keep_up
from vlm_reuse_node.replay.ratios import derive_ratios
from vlm_reuse_node.replay.row_index import RowIndex
from vlm_reuse_node.replay.sessions import choose_sessions, timed_rows
from vlm_reuse_node.replay.times import measure_times, timing_floor

FORMAT = 6
SCHEMA = Path(__file__).with_name('results.schema.json')
PACKAGES = ('mlx', 'mlx-vlm', 'numpy', 'opencv-python', 'opencv-python-headless', 'rosbags')
_OF_A_BAG = ('bag', 'files', 'questions')
_ROWS = ('questions', 'answers', 'pictures', 'upkeep')


class ResultsError(VlmReuseError):
    """Results that cannot be used."""


class NothingAnsweredError(ResultsError):
    """A replay without an answer. lines: sentences on what was found in the bags."""

    def __init__(self, why: str, lines: list[str]) -> None:
        super().__init__(f'Nothing was answered. {why}')
        self.lines = lines


def collect(folders: dict[str, Path], failed: dict[str, str], complete: bool) -> dict:
    """Collect everything that the bags' folders hold.

    folders: by the bag's name. failed: bags that gave nothing, and why.
    complete: whether every bag was replayed to its end.
    Raises NothingAnsweredError when no bag has an answer.
    """
    kept = {name: read_rows(folder / NAME) for name, folder in folders.items()}
    for name, bag_rows in kept.items():
        for row in bag_rows[1:]:
            row['bag'] = name
    rows = RowIndex(row for bag_rows in kept.values() for row in bag_rows[1:])
    problems = [
        *(f"Bag '{name}': {why}" for name, why in failed.items()),
        *(f"Bag '{bag['bag']}': {each}" for bag in rows.bags for each in bag['damage']),
    ]
    notes = [f"Bag '{bag['bag']}': {each}" for bag in rows.bags for each in bag['notes']]
    if not rows.answers:
        raise NothingAnsweredError(_why_nothing(rows.bags, failed), [*problems, *notes])
    counts = count_rows(rows)
    sessions = choose_sessions(rows)
    timed = timed_rows(rows, sessions)
    return {
        'format': FORMAT,
        'complete': complete,
        'settings': _settings(kept),
        'arms': {name: {'sees': ARMS[name].sees, 'compared_with': REFERENCE} for name in rows.arms},
        'problems': problems,
        'notes': notes,
        'counts': counts,
        'ratios': derive_ratios(rows, counts),
        'comparison': None,
        'bags': rows.bags,
        'questions': rows.questions,
        'answers': rows.answers,
        'pictures': rows.pictures,
        'upkeep': rows.upkeep,
        'times': {
            'arms': {arm: {'pairs': 0} for arm in rows.arms} | measure_times(timed),
            'floor': timing_floor(timed),
            'sessions': sessions,
            'keep_up': measure_keep_up(timed),
        },
    }


def _why_nothing(bags: list[dict], failed: dict[str, str]) -> str:
    cameras = [camera for bag in bags for camera in bag['cameras']]
    refused = sum(sum(camera['pictures_refused'].values()) for camera in cameras)
    if refused and not any(camera['pictures_used'] for camera in cameras):
        first = next((line for bag in bags for line in bag['damage'] if 'cannot be used' in line), '')
        return f'Every picture was refused ({refused}). {first}'
    if cameras and not failed and not any(camera['pictures_read'] for camera in cameras):
        return f'There is no picture on {" and ".join(dict.fromkeys(camera["topic"] for camera in cameras))}.'
    return ' '.join(failed.values()) or (
        'No question was due while there were pictures; look at the times in the '
        'questions file, --start and --duration.'
    )


def environment() -> dict[str, str]:
    """Return when and on what kind of machine this runs; nothing that names the machine."""
    return {
        'made': datetime.now(timezone.utc).strftime('%Y-%m-%d %H:%M UTC'),
        'machine': f'{platform.system()} {platform.machine()}, {os.cpu_count()} cores',
    }


def write(results: dict, path: Path) -> None:
    """Write the file, checked against its schema."""
    check(results, str(path))
    with path.open('w', encoding='utf-8') as file:
        json.dump(results, file, indent=1, ensure_ascii=False)
        file.write('\n')


def read(path: Path) -> dict:
    """Read a file that `write` wrote. Raises ResultsError that says what is wrong with it."""
    try:
        results = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise ResultsError(
            f"'{path}' cannot be read as results of a replay: {error}. Expected a results.json."
        ) from error
    check(results, str(path))
    return results


def check(results: dict, name: str) -> None:
    """Raise ResultsError that names the first place where results do not follow results.schema.json."""
    error = jsonschema.exceptions.best_match(_validator().iter_errors(results))
    if error:
        raise ResultsError(
            f"'{name}' does not follow results.schema.json at {error.json_path}: {error.message[:200]}. "
            'Write it anew with this version of the replay.'
        )


def without_times(value: Any) -> Any:
    """Return results, or a part of them, without what differs from run to run."""
    if isinstance(value, dict):
        return {key: without_times(each) for key, each in value.items() if key != 'times'}
    return [without_times(each) for each in value] if isinstance(value, list) else value


@cache
def _validator() -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text(encoding='utf-8')))


def _settings(kept: dict[str, list[dict]]) -> dict:
    """The settings that all bags have in common, and each bag's questions."""
    first = next(rows[0] for rows in kept.values() if rows)
    common = {key: value for key, value in first.items() if key not in (*_OF_A_BAG, 'row')}
    return common | {
        'questions': {name: rows[0]['questions'] for name, rows in kept.items() if rows},
        'versions': _versions(),
    }


def _versions() -> dict[str, str]:
    versions = {'vlm_reuse_node': __version__, 'python': platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            pass
    return versions


def summary(results: dict) -> dict:
    """Return the results for programs: counts, ratios and times of every arm, without rows."""
    return {key: value for key, value in results.items() if key not in _ROWS}
