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

"""Measures one model on some recordings: chooses the limits on every other stretch, and judges them on the rest."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from vlm_reuse_node.calibrate.arm import Arm, Reference
from vlm_reuse_node.calibrate.questions import Asked, questions_about, questions_of
from vlm_reuse_node.calibrate.sample import SIGNALS, Sample, auc, drift
from vlm_reuse_node.calibrate.search import HALOS, Choice, choose
from vlm_reuse_node.calibrate.stretches import Recording, moments, spread
from vlm_reuse_node.config import EXACT_POLICY, Config
from vlm_reuse_node.model.vlm import Vlm
from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.session.answer import Status
from vlm_reuse_node.session.calibration import CalibratedModel, Calibration, PatchLimits, Trial, parameters_of
from vlm_reuse_node.session.drift_bounds import DriftCount
from vlm_reuse_node.session.question import Question

# So many pictures of a recording are looked at for things to ask about.
LISTED_PICTURES = 3


@dataclass
class Judged:
    """What one kind of question came to on the stretches to judge on.

    patched: samples of the limits that were chosen, as the node works. exact: of whole pictures only. unlimited: of
    patches without limits. Remembered answers are in none of them. asked: questions to each of the three.
    patched_ms, exact_ms: the model's work and that of cold-dense, milliseconds.
    """

    patched: list[Sample] = field(default_factory=list)
    exact: list[Sample] = field(default_factory=list)
    unlimited: list[Sample] = field(default_factory=list)
    asked: int = 0
    patched_ms: tuple[float, float] = (0.0, 0.0)
    exact_ms: tuple[float, float] = (0.0, 0.0)

    @property
    def trial(self) -> Trial:
        """As the calibration holds it."""
        approximate = [sample for sample in self.patched if not sample.exact]
        states = len({sample.state for sample in approximate})
        return Trial(drift(approximate), states, _ratio(self.patched_ms), _ratio(self.exact_ms))

    @property
    def asked_twice(self) -> DriftCount:
        """All answers, and how many of them were given again, because a patched state was not sure enough."""
        return DriftCount(len(self.patched), sum(sample.escalated for sample in self.patched))

    @property
    def signals(self) -> dict[str, float | None]:
        """How well each signal tells drifted answers from others (`auc`), of patches without limits."""
        approximate = [sample for sample in self.unlimited if not sample.exact]
        return {name: auc(approximate, signal) for name, signal in SIGNALS.items()}


@dataclass(frozen=True)
class Measured:
    """What the recordings gave.

    fitted: samples by halo, of the stretches that the limits were chosen on. questions, pictures: how many.
    failures: answers that were an error, by its message.
    """

    fitted: dict[int, list[Sample]]
    choice: Choice
    choices: Judged
    texts: Judged
    calibration: Calibration
    questions: int
    pictures: int
    failures: Counter[str]


class Measurement:
    """One run over all recordings. It belongs to the thread that loaded the model."""

    def __init__(
        self,
        vlm: Vlm,
        config: Config,
        recordings: Sequence[Recording],
        every_s: float,
        progress: Callable[[float], None],
        stopped: Callable[[], bool],
    ) -> None:
        """Prepare.

        config: of the node, for everything but the limits. every_s: time between the pictures that are asked about.
        progress: called with the seconds that were read since its last call; every recording is read twice.
        stopped: whether to end with Halt.
        """
        if vlm.device == 'cpu':
            vlm.meter.clock = time.process_time  # what else the machine does meanwhile is no work of the model
        self._vlm, self._recordings = vlm, recordings
        self._exact = config.with_values(
            refresh_policy=EXACT_POLICY, audit_share=0.0, max_age_s=86_400.0, timeout_s=3600.0
        )
        self._every_s, self._progress, self._stopped = every_s, progress, stopped
        self._reference = Reference(vlm, self._exact)
        self._failures: Counter[str] = Counter()
        self._pictures = self._moment = 0

    def run(self) -> Measured:
        """Measure. Raises BagError for a recording that cannot be read, and Halt."""
        asked = [self._questions(recording) for recording in self._recordings]
        fitted: dict[int, list[Sample]] = {halo: [] for halo in HALOS}
        for recording, questions in zip(self._recordings, asked, strict=True):
            self._fit(recording, questions, fitted)
        choice = choose(fitted, self._exact.max_drift)
        judged = Judged(), Judged()
        for recording, questions in zip(self._recordings, asked, strict=True):
            self._judge(recording, questions, choice.limits, judged)
        names = tuple(recording.name for recording in self._recordings)
        choices, texts = judged
        model = CalibratedModel.of(self._vlm)
        parameters = parameters_of(self._exact)
        calibration = Calibration(model, parameters, choice.limits, choices.trial, texts.trial, names)
        return Measured(
            fitted,
            choice,
            choices,
            texts,
            calibration,
            sum(len(of_camera) for each in asked for of_camera in each.values()),
            self._pictures,
            self._failures,
        )

    def _questions(self, recording: Recording) -> dict[str, Asked]:
        """The questions about each camera; where nobody wrote any, also some about what the model sees there."""
        asked = {}
        for camera in recording.cameras:
            questions = questions_of(recording.questions, camera)
            if recording.are_general:
                frames = spread(recording, LISTED_PICTURES, camera)
                questions += questions_about(self._reference, frames)
            asked[camera] = Asked(questions)
        return asked

    def _fit(self, recording: Recording, asked: dict[str, Asked], samples: dict[int, list[Sample]]) -> None:
        """Patch without limits, and note how answers drift, by halo."""
        cameras: dict[str, dict[int, Arm]] = {}
        for moment in moments(recording, True, self._every_s, self._progress, self._stopped):
            if moment.frame.camera not in cameras:
                cameras[moment.frame.camera] = {halo: self._unlimited(halo) for halo in samples}
            arms = cameras[moment.frame.camera]
            if self._see(arms.values(), moment.frame, moment.is_first) and moment.is_asked:
                self._moment += 1
                for questions in asked[moment.frame.camera].about(self._moment):
                    for halo, arm in arms.items():
                        samples[halo] += self._compare(arm, moment.frame, questions)

    def _judge(
        self, recording: Recording, asked: dict[str, Asked], limits: PatchLimits, judged: Sequence[Judged]
    ) -> None:
        """Patch within the limits, as the node does; beside it compute whole pictures only, and patch without limits.

        Choices and texts have arms of their own, so that one kind does not pay for the other.
        """
        cameras: dict[str, list[tuple[Arm, Arm, Arm]]] = {}
        for moment in moments(recording, False, self._every_s, self._progress, self._stopped):
            if moment.frame.camera not in cameras:
                cameras[moment.frame.camera] = [self._judged_arms(limits) for _ in judged]
            arms = cameras[moment.frame.camera]
            all_arms = [arm for kind in arms for arm in kind]
            if self._see(all_arms, moment.frame, moment.is_first) and moment.is_asked:
                self._moment += 1
                for kind, of_kind, questions in zip(
                    judged, arms, asked[moment.frame.camera].about(self._moment), strict=True
                ):
                    kind.asked += len(questions)
                    for samples, arm in zip((kind.patched, kind.exact, kind.unlimited), of_kind, strict=True):
                        samples += self._compare(arm, moment.frame, questions)
        for arms in cameras.values():
            for kind, (patched, exact, _) in zip(judged, arms, strict=True):
                kind.patched_ms = _sum(kind.patched_ms, patched.end())
                kind.exact_ms = _sum(kind.exact_ms, exact.end())

    def _judged_arms(self, limits: PatchLimits) -> tuple[Arm, Arm, Arm]:
        """The arms of one kind of question: within the limits, exact, and without limits."""
        return (
            Arm(self._vlm, limits.configure(self._exact), does_upkeep=True),
            Arm(self._vlm, self._exact, does_upkeep=True),
            self._unlimited(limits.change_halo),
        )

    def _unlimited(self, halo: int) -> Arm:
        """An arm that patches without limits, and without regard to credit."""
        limits = PatchLimits(halo, max_patches=1000, max_patch_share=1.0, min_confidence=0.0, min_text_confidence=0.0)
        return Arm(self._vlm, limits.configure(self._exact))

    def _see(self, arms: Iterable[Arm], frame: Frame, is_first: bool) -> bool:
        """Show a picture to some arms. Returns whether the model can take it."""
        self._pictures += 1
        return all([arm.see(frame, is_first) for arm in arms])

    def _compare(self, arm: Arm, frame: Frame, questions: Sequence[Question]) -> list[Sample]:
        """Ask an arm about the newest picture, and cold-dense; what cannot be compared is counted."""
        if not questions:
            return []
        before = [arm.last.get(question) for question in questions]
        answers = arm.ask(questions)
        samples = []
        for answer, cold, last in zip(
            answers, self._reference.ask((*arm.frames[:-1], frame), questions), before, strict=True
        ):
            if answer.remembered:
                continue  # the same answer of the same state was compared before
            if failed := next((each for each in (answer, cold) if each.status is not Status.OK), None):
                self._failures[failed.message] += 1
            else:
                samples.append(Sample.of(answer, cold, last, arm.state, arm.patches, arm.largest_share, arm.paid_share))
        return samples


def _sum(one: tuple[float, float], other: tuple[float, float]) -> tuple[float, float]:
    return one[0] + other[0], one[1] + other[1]


def _ratio(ms: tuple[float, float]) -> float:
    """Work as a share of that of cold-dense; 0 without a question."""
    return ms[0] / ms[1] if ms[1] else 0.0
