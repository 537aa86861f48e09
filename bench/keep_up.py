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

"""Whether the replay's figures of what a live node keeps up with are true: simulated against a real worker.

At each rate the same pictures and questions go through the replay's arm `exact`, one after the other, and its times
through `replay/live_node.py`. Then a `ModelWorker` gets them in real time, without ROS. Prints a table, then one JSON
line; the same JSON goes to out/bench/keep_up.json.

python bench/keep_up.py
"""

import argparse
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

from results import publish

from vlm_reuse_node.config import Config
from vlm_reuse_node.demo.bag import draw_frames
from vlm_reuse_node.model.vlm import Vlm
from vlm_reuse_node.replay.live_node import LivePicture, LiveQuestion, LiveRun, simulate
from vlm_reuse_node.replay.model_thread import run_with_model
from vlm_reuse_node.replay.runners.kept_state import Policy
from vlm_reuse_node.replay.runners.runner import ArmContext, replay_config
from vlm_reuse_node.replay.window import Window
from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.serving.worker import ModelWorker
from vlm_reuse_node.session.answer import Answer
from vlm_reuse_node.session.question import Question

OUTPUT = Path(__file__).parents[1] / 'out' / 'bench' / 'keep_up.json'
QUESTION = 'what colour is the square?'
CONFIG = replay_config(Config(refresh_policy='exact'))


def stream(drawn: Sequence[Frame], rate: float, seconds: float) -> list[Frame]:
    """Return pictures at a rate, those that were drawn over and over."""
    begin_ns = drawn[0].stamp_ns
    return [
        replace(drawn[number % len(drawn)], stamp_ns=begin_ns + round(1e9 * number / rate))
        for number in range(int(rate * seconds))
    ]


def question_of(number: int) -> Question:
    """Return the question with this number: another one each time, so that no answer is remembered."""
    return Question(f'{QUESTION} {number}', max_tokens=4)


def simulated(vlm: Vlm, frames: Sequence[Frame], period_s: float) -> LiveRun:
    """Replay one after the other, and simulate a node on the times."""
    arm = Policy(ArmContext(vlm, CONFIG, frames[0].camera, Window(8.0)))
    arm.see(frames[0])
    arm.ask(question_of(-1), frames[0].stamp_ns)  # what happens only once
    pictures: list[LivePicture] = []
    questions: list[LiveQuestion] = []
    for frame in frames:
        at_s = (frame.stamp_ns - frames[0].stamp_ns) / 1e9
        look_ms = sum(refresh.change_ms for refresh in arm.see(frame))
        before = vlm.meter.done
        arm.rest()
        work = vlm.meter.done - before
        pictures.append(LivePicture(at_s, look_ms / 1e3, upkeep_s=work.ms / 1e3))
        while len(questions) * period_s <= at_s:
            answer = arm.ask(question_of(len(questions)), frame.stamp_ns)
            questions.append(LiveQuestion(len(questions) * period_s, answer.total_ms / 1e3))
    return simulate(pictures, questions)


def live(model: str, frames: Sequence[Frame], period_s: float) -> LiveRun:
    """Feed a worker in real time."""
    dropped: list[Frame] = []
    worker = ModelWorker(CONFIG.with_values(model=model), on_dropped=dropped.append)
    worker.start()
    try:
        worker.observe(frames[0])
        worker.ask('', question_of(-1), frames[0].stamp_ns).result()
        dropped.clear()
        answers_s: list[float] = []
        waiting: list[Future[Answer]] = []
        begin_s = time.perf_counter()

        def note(asked_s: float, _: Future[Answer]) -> None:
            answers_s.append(time.perf_counter() - asked_s)

        def ask_all() -> None:
            number = 0
            while number * period_s <= (frames[-1].stamp_ns - frames[0].stamp_ns) / 1e9:
                sleep_until(begin_s + number * period_s)
                asked_s = time.perf_counter()
                future = worker.ask('', question_of(number), frames[0].stamp_ns)
                future.add_done_callback(partial(note, asked_s))
                waiting.append(future)
                number += 1

        asking = threading.Thread(target=ask_all)
        asking.start()
        for frame in frames:
            sleep_until(begin_s + (frame.stamp_ns - frames[0].stamp_ns) / 1e9)
            worker.observe(frame)
        asking.join()
        for future in waiting:
            future.result()
        return LiveRun(len(frames), len(dropped), tuple(answers_s))
    finally:
        worker.stop()


def sleep_until(time_s: float) -> None:
    """Wait for a moment of `time.perf_counter`."""
    time.sleep(max(0.0, time_s - time.perf_counter()))


def row(rate: float, told: LiveRun, real: LiveRun) -> dict:
    """Return one rate's figures."""
    return {
        'rate_hz': rate,
        'pictures': real.pictures,
        'dropped_simulated': told.dropped,
        'dropped_live': real.dropped,
        'questions': len(real.answers_s),
        'answer_median_ms_simulated': round(1e3 * median(told.answers_s), 1),
        'answer_median_ms_live': round(1e3 * median(real.answers_s), 1),
    }


def main(argv: list[str] | None = None) -> None:
    """Run the rates one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', default='tabletop')
    parser.add_argument('--rates', type=float, nargs='+', default=[10.0, 30.0, 100.0, 300.0])
    parser.add_argument('--seconds', type=float, default=5.0)
    parser.add_argument('--period', type=float, default=0.5, help='seconds between two questions')
    args = parser.parse_args(argv)
    drawn = list(draw_frames(1, 6.0, 10.0, 640, 480)[1])
    streams = {rate: stream(drawn, rate, args.seconds) for rate in args.rates}
    told = run_with_model(
        CONFIG.with_values(model=args.model),
        lambda vlm: {rate: simulated(vlm, frames, args.period) for rate, frames in streams.items()},
    )
    rows = [row(rate, told[rate], live(args.model, frames, args.period)) for rate, frames in streams.items()]
    print('  rate Hz  pictures  dropped: simulated  live  answer, median ms: simulated    live')
    for each in rows:
        print(
            f'{each["rate_hz"]:9.0f}{each["pictures"]:10}{each["dropped_simulated"]:20}{each["dropped_live"]:6}'
            f'{each["answer_median_ms_simulated"]:30}{each["answer_median_ms_live"]:8}'
        )
    publish({'model': args.model, 'load': os.getloadavg()[0], 'rows': rows}, OUTPUT)


if __name__ == '__main__':
    main()
