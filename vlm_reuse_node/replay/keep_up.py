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

"""Whether a live node on this machine would keep up with what was replayed: a replay itself drops nothing.

The measured times go through `simulate`. What that leaves out: DDS, the load that the threads put on one another,
standing questions, and questions that share a pass.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from statistics import mean, median

import numpy as np

from vlm_reuse_node.replay.figures import counted, milliseconds, share_text
from vlm_reuse_node.replay.live_node import LivePicture, LiveQuestion, LiveRun, simulate
from vlm_reuse_node.replay.row_index import RowIndex

# The arms that are what a node can do.
POLICIES = ('auto', 'exact', 'on-demand', 'patch')
# A node keeps up as long as it drops no more of the pictures than this.
MOST_DROPPED = 0.01
# How long each rate is tried in the simulation, seconds, and how often the range of rates is halved.
TRIED_S, HALVINGS = 20.0, 10
# At high rates so many pictures tell as much, and the simulation of more would take seconds.
MOST_TRIED = 4000
LEFT_OUT = (
    'Simulated from the times of this replay, with the rules of the node. Left out: DDS, the load that looks, model '
    'and cameras put on one another, standing questions, and questions that share a pass. A busy machine keeps up with '
    'less.'
)


def measure_keep_up(rows: RowIndex) -> dict[str, dict]:
    """Return the figures of each policy's arm; times in milliseconds."""
    return {arm: figures for arm in rows.arms if arm in POLICIES and (figures := _figures(rows, arm))}


def keep_up_lines(results: dict) -> list[str]:
    """Say it in sentences: one for each arm, and what the simulation leaves out. None where nothing was measured."""
    found = results['times']['keep_up']
    return [*(_line(arm, figures) for arm, figures in found.items()), LEFT_OUT] if found else []


def most_pictures_per_s(pictures: Sequence[LivePicture], questions: Sequence[LiveQuestion], span_s: float) -> float:
    """Return the highest rate of evenly spaced pictures that a node keeps up with.

    Pictures and questions are used with their costs, over and over; questions at their mean rate over span_s, seconds.
    """
    slowest_s = max(mean(picture.look_s for picture in pictures), mean(picture.convert_s for picture in pictures))
    asked = _questions_at(questions, len(questions) / span_s) if questions and span_s > 0 else []
    low, high = 0.0, 1.05 / max(slowest_s, 1e-4)
    for _ in range(HALVINGS):
        rate = (low + high) / 2
        run = simulate(_pictures_at(pictures, rate), asked)
        low, high = (rate, high) if run.dropped <= MOST_DROPPED * run.pictures else (low, rate)
    return low


def _pictures_at(pictures: Sequence[LivePicture], rate: float) -> list[LivePicture]:
    """Pictures at a rate for TRIED_S, or MOST_TRIED of them, without upkeep, which no picture waits for."""
    each = (pictures[number % len(pictures)] for number in range(min(int(TRIED_S * rate), MOST_TRIED)))
    return [LivePicture(number / rate, one.look_s, convert_s=one.convert_s) for number, one in enumerate(each)]


def _questions_at(questions: Sequence[LiveQuestion], rate: float) -> list[LiveQuestion]:
    """Questions at a rate for TRIED_S."""
    each = (questions[number % len(questions)] for number in range(int(TRIED_S * rate)))
    return [LiveQuestion(number / rate, one.answer_s) for number, one in enumerate(each)]


def _figures(rows: RowIndex, arm: str) -> dict | None:
    """One arm; None where no picture was looked at or no question answered."""
    pictures, questions = _pictures(rows, arm), _questions(rows, arm)
    if not any(pictures.values()) or not any(questions.values()):
        return None
    runs = [simulate(pictures[bag], questions.get(bag, ())) for bag in pictures]
    all_pictures = list(chain.from_iterable(pictures.values()))
    all_questions = list(chain.from_iterable(questions.values()))
    span_s = sum(each[-1].at_s - each[0].at_s for each in pictures.values())
    answers_ms = [1e3 * answer_s for run in runs for answer_s in run.answers_s]
    service_ms = [1e3 * question.answer_s for question in all_questions]
    return {
        'pictures': _count(runs, 'pictures'),
        'dropped': _count(runs, 'dropped'),
        'recorded_per_s': (len(all_pictures) - len(pictures)) / span_s if span_s else None,
        'pictures_per_s': most_pictures_per_s(all_pictures, all_questions, span_s),
        'look_ms': 1e3 * mean(picture.look_s for picture in all_pictures),
        'conversion_ms': 1e3 * mean(picture.convert_s for picture in all_pictures),
        'questions': len(answers_ms),
        'questions_per_s': 1e3 / mean(service_ms),
        'service_median_ms': median(service_ms),
        'answer_median_ms': median(answers_ms),
        'answer_p95_ms': float(np.percentile(answers_ms, 95)),
        'answer_most_ms': max(answers_ms),
    }


def _count(runs: Iterable[LiveRun], name: str) -> int:
    return sum(getattr(run, name) for run in runs)


def _pictures(rows: RowIndex, arm: str) -> dict[str, list[LivePicture]]:
    """The pictures of each bag, in time."""
    upkeep_ms: Counter[tuple[str, str, float]] = Counter()
    for row in rows.upkeep:
        if row['arm'] == arm:
            upkeep_ms[row['bag'], row['camera'], row['picture_s']] += row['times']['work_ms']
    convert_ms = {
        (bag['bag'], camera['camera']): camera['times']['conversion_ms']
        for bag in rows.bags
        for camera in bag['cameras']
    }
    found: dict[str, list[LivePicture]] = {}
    for row in rows.seen(arm):
        key = row['bag'], row['camera'], row['picture_s']
        picture = LivePicture(
            row['picture_s'],
            row['times']['change_ms'] / 1e3,
            row['camera'],
            convert_ms.get(key[:2], 0.0) / 1e3,
            upkeep_ms[key] / 1e3,
        )
        found.setdefault(row['bag'], []).append(picture)
    return {bag: sorted(pictures, key=lambda picture: picture.at_s) for bag, pictures in found.items()}


def _questions(rows: RowIndex, arm: str) -> dict[str, list[LiveQuestion]]:
    """The questions of each bag that the arm answered."""
    found: dict[str, list[LiveQuestion]] = {}
    for pair in rows.pairs(arm, arm):
        question = LiveQuestion(pair.question['at_s'], pair.answer['times']['total_ms'] / 1e3, pair.question['camera'])
        found.setdefault(pair.question['bag'], []).append(question)
    return found


def _line(arm: str, figures: dict) -> str:
    rate = f' ({figures["recorded_per_s"]:.1f} a second)' if figures['recorded_per_s'] else ''
    return (
        f'{arm}: this machine keeps up with {figures["pictures_per_s"]:.3g} pictures a second (drops at most '
        f'{share_text(MOST_DROPPED)} of them); a look takes {milliseconds(figures["look_ms"])} ms, a conversion '
        f'{milliseconds(figures["conversion_ms"])} ms. At the rate of the recording{rate} it drops '
        f'{counted(figures["dropped"], figures["pictures"])} of the pictures. It answers up to '
        f'{figures["questions_per_s"]:.3g} such questions a second. Asked as in this replay, an answer comes after '
        f'{milliseconds(figures["answer_median_ms"])} ms (median; 95 %: {milliseconds(figures["answer_p95_ms"])} ms, '
        f'at most {milliseconds(figures["answer_most_ms"])} ms); without waiting for its turn the median is '
        f'{milliseconds(figures["service_median_ms"])} ms.'
    )
