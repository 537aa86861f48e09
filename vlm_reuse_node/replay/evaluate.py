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

"""Replays one bag: every arm sees the same pictures in the same order and is asked the same questions."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from hashlib import blake2b
from typing import TypeVar

from vlm_reuse_node.config import Config
from vlm_reuse_node.errors import ImageError
from vlm_reuse_node.model.vlm import Vlm
from vlm_reuse_node.model.work import Work
from vlm_reuse_node.plain_text import error_line
from vlm_reuse_node.replay.arm_answer import ArmAnswer
from vlm_reuse_node.replay.arms import ARMS, POLICY, REFERENCE
from vlm_reuse_node.replay.bag import Bag
from vlm_reuse_node.replay.camera_run import CameraRun
from vlm_reuse_node.replay.job import Job
from vlm_reuse_node.replay.journal import Journal
from vlm_reuse_node.replay.order import ArmOrder
from vlm_reuse_node.replay.questions import QuestionEntry, read_questions
from vlm_reuse_node.replay.rows import answer_row, differs, is_pair, picture_rows, question_row, upkeep_row
from vlm_reuse_node.replay.runners.kept_state import Policy
from vlm_reuse_node.replay.runners.makers import make_runners
from vlm_reuse_node.replay.runners.runner import ArmContext, Runner, replay_config
from vlm_reuse_node.replay.samples import Samples
from vlm_reuse_node.replay.schedule import DueQuestion, Schedule
from vlm_reuse_node.replay.stills import save_drift
from vlm_reuse_node.replay.video import Video
from vlm_reuse_node.replay.video_file import SUFFIX
from vlm_reuse_node.replay.window import Window
from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.scene.refresh import Refresh
from vlm_reuse_node.session.answer import Answer, Status
from vlm_reuse_node.session.embedded_model import means_nothing
from vlm_reuse_node.session.question import Question

T = TypeVar('T')

MOST_STILLS = 12  # of each arm


class Replay:
    """One bag on its way through all arms. It belongs to the thread that loaded the model."""

    def __init__(self, job: Job, vlm: Vlm, journal: Journal) -> None:
        """Open the bag. Raises BagError or QuestionsError when there is nothing to replay or to ask."""
        self._job = job
        self._vlm = vlm
        self._journal = journal
        self.bag = Bag(job.bag, job.selection)
        names = tuple(topic.camera for topic in self.bag.topics)
        entries = read_questions(job.questions, names)
        config = replay_config(job.config)
        self._template = vlm.template(config.system_prompt, 1)
        self._order = ArmOrder(job.order_seed, has_history=config.history_frames > 0)
        self._cameras = {name: self._camera(name, config, entries) for name in names}
        self._digest = blake2b(digest_size=16)
        self._asked = 0

    def run(self, progress: Callable[[float], None], stopped: Callable[[], bool]) -> bool:
        """Replay to the end; return False when it was stopped before.

        progress: called with the seconds of the bag that were replayed since its last call.
        stopped: whether to stop after the answer that is being given.
        """
        done_s = self._job.selection.start_s
        try:
            for frame in self.bag.frames():
                if stopped() or not self._take(frame, stopped):
                    return False
                progress(max(0.0, self.bag.at_s(frame) - done_s))
                done_s = max(done_s, self.bag.at_s(frame))
            return self._finish(stopped)
        finally:
            self.bag.close()
            for camera in self._cameras.values():
                camera.video.close()

    def _camera(self, name: str, config: Config, entries: tuple[QuestionEntry, ...]) -> CameraRun:
        context = ArmContext(self._vlm, config, name, Window(self._job.window_s))
        return CameraRun(
            context,
            Schedule(entries, name, self._job.config.max_age_s),
            Video(self._job.folder / f'overlay.{_file_part(name)}{SUFFIX}'),
            make_runners(context, self._job.arms),
            Samples(self._job.folder / 'pictures'),
        )

    def _take(self, frame: Frame, stopped: Callable[[], bool]) -> bool:
        """One picture: first what was asked before it, then the picture, then what is asked because of it."""
        camera = self._cameras[frame.camera]
        at_s = self.bag.at_s(frame)
        if not self._ask_all(camera, camera.schedule.before(at_s), stopped):
            return False
        if camera.last_s is None:
            self._warm_up(camera, frame)
        self._rest(camera, at_s)
        self._digest.update(frame.rgb.tobytes())
        camera.begin(at_s, self.bag.restarts(frame.camera), self._job.config.max_age_s)
        camera.is_foreign |= means_nothing(self._vlm.name, frame.frame_id)
        camera.context.window.add(frame)
        self._take_turns(camera, lambda name: self._see(camera, name, frame))
        return self._ask_all(camera, camera.schedule.at(at_s, frame), stopped)

    def _warm_up(self, camera: CameraRun, frame: Frame) -> None:
        """Pay what happens only once in a process before anything is timed."""
        context = replace(camera.context, window=Window(self._job.window_s))
        context.window.add(frame)
        runners = make_runners(context, (REFERENCE,))
        try:
            for runner in runners.values():
                runner.see(frame)
                runner.ask(Question('what is this?', max_tokens=2), frame.stamp_ns)
        except ImageError:
            pass  # the arms will say so

    def _take_turns(self, camera: CameraRun, turn: Callable[[str], list[dict]]) -> None:
        """Give every arm its turn, in a random order, and record what each cost, in the order of the arms."""
        rows = {name: turn(name) for name in self._order.of_a_picture(camera.runners)}
        for row in (row for name in camera.runners for row in rows[name]):
            self._journal.write(row)

    def _see(self, camera: CameraRun, name: str, frame: Frame) -> list[dict]:
        """Let one arm take the picture. Returns the rows of what it cost."""
        try:
            return self._keep_up(camera, name, lambda: camera.runners[name].see(frame))
        except ImageError as error:
            if name == POLICY:
                self.bag.refuse(frame.camera, 'model', str(error))
            return []

    def _rest(self, camera: CameraRun, until_s: float) -> None:
        """Give every arm the idle time after the newest picture, once, if the next event comes later than it."""
        if camera.last_s is None or camera.has_rested or until_s <= camera.last_s:
            return
        camera.has_rested = True
        self._take_turns(camera, lambda name: self._keep_up(camera, name, camera.runners[name].rest))

    def _keep_up(self, camera: CameraRun, name: str, call: Callable[[], list[Refresh]]) -> list[dict]:
        """Let one arm do what no question waits for. Returns the rows of what it cost."""
        refreshes, work = self._on_the_meter(call)
        rows = self._picture_rows(camera, name, refreshes)
        if work.tokens and camera.last_s is not None:
            rows.append(upkeep_row(camera.context.camera, name, camera.last_s, work))
        return rows

    def _on_the_meter(self, call: Callable[[], T]) -> tuple[T, Work]:
        """Call. Returns the result, and the model's work meanwhile."""
        before = self._vlm.meter.done
        return call(), self._vlm.meter.done - before

    def _picture_rows(
        self, camera: CameraRun, name: str, refreshes: Iterable[Refresh], question: int | None = None
    ) -> list[dict]:
        """The rows of an arm's looks and refreshes; those of auto go into the video too."""
        runner = camera.runners[name]
        if not ARMS[name].observes or not isinstance(runner, Policy):
            return []
        rows: list[dict] = []
        for refresh in refreshes:
            at_s = self.bag.seconds_of(refresh.stamp_ns)
            status = runner.session.status
            held = (status.frames, status.held_bytes)
            rows += picture_rows(refresh.camera, name, at_s, [refresh], held, question)
            if name == POLICY and (frame := runner.session.newest):
                camera.video.add(frame, refresh, at_s)
        return rows

    def _ask_all(self, camera: CameraRun, due: Iterable[DueQuestion], stopped: Callable[[], bool]) -> bool:
        """Ask what is due, unless there is no picture yet; return False when it was stopped."""
        if camera.last_s is None:
            return True
        for question in due:
            self._rest(camera, question.at_s)
            if not self._ask(camera, question, camera.last_s, stopped):
                return False
        return True

    def _ask(self, camera: CameraRun, due: DueQuestion, picture_s: float, stopped: Callable[[], bool]) -> bool:
        """Ask every arm one question about the picture of that time; return False when it was stopped."""
        entry = due.entry
        question = Question(entry.text, entry.choices, max_tokens=entry.max_tokens)
        now_ns = max(camera.context.window.newest.stamp_ns, self.bag.first_ns + round(1e9 * due.at_s))
        self._asked += 1
        row = question_row(self._asked, due, camera.context.camera, picture_s, self._choice_tokens(entry.choices))
        answers: dict[str, dict] = {}
        given: dict[str, ArmAnswer] = {}
        for name in self._order.of_a_question(camera.runners):
            if stopped():
                return False
            earlier = self._journal.earlier(row, name)
            if earlier is not None and not ARMS[name].keeps_state:
                answers[name] = earlier
                continue
            given[name], work = self._on_the_meter(partial(_answer, camera.runners[name], question, now_ns))
            pictures_s = [self.bag.at_s(frame) for frame in given[name].frames]
            answers[name] = answer_row(row, name, given[name], pictures_s, work)
        rows = [row, *(answers[name] for name in camera.runners)]
        for name in (name for name in camera.runners if name in given):
            answer = given[name]
            rows += self._picture_rows(camera, name, answer.refreshes, self._asked)
            self._keep_stills(camera, answers, name, answer)
        camera.samples.add(self._asked, camera.context.window.newest)
        for each in rows:  # all or nothing: a resumed run asks the rest
            self._journal.write(each)
        return True

    def _keep_stills(self, camera: CameraRun, answers: dict[str, dict], name: str, answer: ArmAnswer) -> None:
        """Keep both pictures of an answer that drifted: what cold-dense saw, and what the arm's state is of."""
        is_shown = ARMS[name].keeps_state and isinstance(camera.runners[name], Policy)
        count = camera.stills.get(name, 0)
        if not is_shown or count == MOST_STILLS:
            return
        row = answers[name]
        if is_pair(row, answers[REFERENCE]) and differs(row, answers[REFERENCE]):
            camera.stills[name] = count + 1
            stem = self._job.folder / 'pictures' / f'{row["question"]:04d}.{name}'
            save_drift(stem, camera.context.window.newest, answer.frames[-1], self._job.config.static_threshold)

    def _choice_tokens(self, choices: tuple[str, ...]) -> int:
        try:
            return sum(map(len, self._template.choices(choices)))
        except Exception:  # a question that cannot be asked is every arm's INVALID_REQUEST
            return 0

    def _finish(self, stopped: Callable[[], bool]) -> bool:
        """Ask what is due shortly after the last picture, and record what the bag was."""
        selection = self._job.selection
        for camera in self._cameras.values():
            if camera.last_s is not None:
                end_s = min(camera.last_s + self._job.config.max_age_s, selection.start_s + selection.duration_s)
                if not self._ask_all(camera, camera.schedule.before(end_s), stopped):
                    return False
        self._journal.write(self._bag_row())
        return True

    def _bag_row(self) -> dict:
        bag, cameras = self.bag, self._cameras
        max_age_s = self._job.config.max_age_s
        return {
            'row': 'bag',
            'seconds': max((camera.last_s or 0.0 for camera in cameras.values()), default=0.0),
            'frames_digest': self._digest.hexdigest(),
            'damage': bag.damage,
            'notes': [*bag.notes, *(note for camera in cameras.values() for note in camera.notes(max_age_s))],
            'questions_asked': self._asked,
            'cameras': [
                {
                    'camera': topic.camera,
                    'topic': topic.name,
                    'type': topic.channel.type,
                    **cameras[topic.camera].row(),
                    'clock_steps': dict(sorted(bag.steps(topic.camera).items())),
                    'pictures_read': bag.read[topic.camera],
                    'pictures_used': bag.used[topic.camera],
                    'pictures_refused': dict(sorted(bag.refused.get(topic.camera, {}).items())),
                    'pictures_left_out': dict(sorted(bag.left_out.get(topic.camera, {}).items())),
                    'times': {'conversion_ms': 1e3 * bag.conversion_s[topic.camera] / max(1, bag.used[topic.camera])},
                }
                for topic in bag.topics
            ],
        }


def _answer(runner: Runner, question: Question, now_ns: int) -> ArmAnswer:
    """An arm's answer; one that fails altogether says so, and the others go on."""
    try:
        return runner.ask(question, now_ns)
    except Exception as error:
        return ArmAnswer(Answer(Status.MODEL_ERROR, error_line(error)))


def _file_part(camera: str) -> str:
    """A camera's name as part of a file's."""
    return camera.replace('/', '-') or 'camera'
