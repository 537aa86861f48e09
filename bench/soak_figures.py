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

"""The counts of a soak, the figures that follow from them, and what is wrong. No ROS."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

# Memory jumps up and down for moments, by megabytes: the middle half of a stretch's samples knows nothing of that.
STRETCHES = 16
# A correlation of neighbours that is estimated as higher than this says only that too little is known.
MOST_CORRELATION = 0.9
CONFIDENCE = 0.95
FRAMES_PER_SLOPE = 10_000


@dataclass(frozen=True)
class Sample:
    """The node at one moment.

    seconds: from the first picture. frames: pictures received by then. waiting: questions that wait.
    rss_mb: resident memory without shared_mb, the lowest since the sample before. shared_mb: resident pages that other
    processes may have too: program files, and the DDS segments through which the cameras hand over their pictures.
    """

    seconds: float
    frames: int
    rss_mb: float
    shared_mb: float
    waiting: int


@dataclass(frozen=True)
class Slope:
    """Growth of memory, megabytes per 10,000 pictures received; low_mb, high_mb: its 95 % confidence interval."""

    mb: float
    low_mb: float
    high_mb: float

    def __str__(self) -> str:
        return f'{self.mb:.2f} MB per 10,000 pictures (95 %: {self.low_mb:.2f} to {self.high_mb:.2f})'


@dataclass(frozen=True)
class Soak:
    """The counts of one soak; figures that follow from them are properties.

    seconds: from the first picture to the last question. samples: one a second. sent: pictures, by the cameras.
    counts: of the node's cameras together, by name: received, lost, dropped, refused. levels: pictures looked at.
    asked: questions. statuses: their answers, by name. stopped: why it ended early, '' when it did not.
    """

    seconds: float
    warmup_s: float
    samples: Sequence[Sample]
    sent: int
    counts: Mapping[str, int]
    levels: Mapping[str, int]
    asked: int
    statuses: Mapping[str, int]
    answer_ms: Sequence[float]
    stopped: str = ''

    @property
    def frames(self) -> int:
        """Pictures that the node received."""
        return self.counts.get('received', 0)

    @property
    def unanswered(self) -> int:
        """Questions that got neither an answer nor a refusal."""
        return self.asked - sum(self.statuses.values())

    @property
    def warm(self) -> Sequence[Sample]:
        """The samples after the warm-up."""
        return [sample for sample in self.samples if sample.seconds >= self.warmup_s]

    @property
    def queue_longest(self) -> int:
        """Most questions that were seen waiting."""
        return max((sample.waiting for sample in self.samples), default=0)

    @property
    def queue_left(self) -> int:
        """Fewest questions that were seen waiting in the last third: a queue that does not grow is empty at times."""
        return min((sample.waiting for sample in self.samples[len(self.samples) * 2 // 3 :]), default=0)

    @property
    def slope(self) -> Slope | None:
        """Growth of memory after the warm-up, see `memory_slope`."""
        return memory_slope(self.warm)

    @property
    def slope_with_shared(self) -> Slope | None:
        """The same for all resident pages, those of DDS and the cameras included."""
        return memory_slope([replace(sample, rss_mb=sample.rss_mb + sample.shared_mb) for sample in self.warm])


def memory_slope(samples: Sequence[Sample]) -> Slope | None:
    """Least squares of memory over the pictures received, on the mean of the middle half of each of 16 stretches.

    Stretches resemble their neighbours, so plain least squares would be too sure: with a correlation r of neighbouring
    residuals (AR(1)), n stretches tell as much as n (1 - r) / (1 + r) independent ones. A fitted line takes about
    (2 + 4 r) / n of r away, which is put back.
    None when there are too few samples, or no picture came between the first and the last.
    """
    if len(samples) < 2 * STRETCHES or samples[0].frames == samples[-1].frames:
        return None
    series = np.array([(sample.frames / FRAMES_PER_SLOPE, sample.rss_mb) for sample in samples])  # (samples, 2)
    stretches = np.array_split(series, STRETCHES)
    frames = np.array([each[:, 0].mean() for each in stretches])
    memory = np.array([stats.trim_mean(each[:, 1], 0.25) for each in stretches])
    mb, start_mb = np.polyfit(frames, memory, 1)
    residuals = memory - start_mb - mb * frames
    power = (residuals**2).sum()
    seen = (residuals[1:] * residuals[:-1]).sum() / power if power else 0.0
    correlation = np.clip((STRETCHES * seen + 2) / (STRETCHES - 4), 0.0, MOST_CORRELATION)
    independent = STRETCHES * (1 - correlation) / (1 + correlation)
    error = np.sqrt(power / (STRETCHES - 2) * STRETCHES / independent / ((frames - frames.mean()) ** 2).sum())
    reach = stats.t.ppf((1 + CONFIDENCE) / 2, max(independent - 2, 2.0)) * error
    return Slope(float(mb), float(mb - reach), float(mb + reach))


def is_growing(slope: Slope | None, limit_mb: float) -> bool | None:
    """Whether memory grows by more than the limit; None when the interval holds the limit, or there is none."""
    if slope is None or slope.low_mb <= limit_mb < slope.high_mb:
        return None
    return slope.low_mb > limit_mb


def memory_verdict(slope: Slope | None, limit_mb: float) -> str:
    """The same as a sentence with the figure."""
    if slope is None:
        return 'Not long enough to tell whether memory grows: too little was measured after the warm-up.'
    return {
        True: f'Memory grows by {slope}, more than {limit_mb:g}.',
        False: f'Memory grows by {slope}, not more than {limit_mb:g}.',
        None: f'Not long enough to tell: memory grows by {slope}, and the limit is {limit_mb:g}; soak longer.',
    }[is_growing(slope, limit_mb)]


def faults(soak: Soak, max_slope_mb: float) -> list[str]:
    """Return what went wrong, in full sentences; empty when nothing did."""
    errors = soak.statuses.get('MODEL_ERROR')
    checks = [
        (soak.stopped, f'It ended early: {soak.stopped}'),
        (soak.unanswered, f'{soak.unanswered} of {soak.asked} questions got neither an answer nor a status.'),
        (not soak.statuses.get('OK'), f'None of {soak.asked} questions was answered.'),
        (errors, f"{errors} of {soak.asked} answers are MODEL_ERROR; see the node's log."),
        (soak.queue_left, f'Questions pile up: in the last third never fewer than {soak.queue_left} waited.'),
        (soak.frames * 2 < soak.sent, f'Only {soak.frames} of {soak.sent} pictures reached the node.'),
        (is_growing(soak.slope, max_slope_mb), memory_verdict(soak.slope, max_slope_mb)),
    ]
    return [sentence for is_so, sentence in checks if is_so]


def as_json(soak: Soak, max_slope_mb: float) -> dict:
    """Return everything as JSON types, units in the names."""
    slope = soak.slope
    slope_with_shared = soak.slope_with_shared
    warm = soak.warm
    times = soak.answer_ms
    return {
        'minutes': round(soak.seconds / 60, 2),
        'warmup_minutes': round(soak.warmup_s / 60, 2),
        'frames': soak.frames,
        'frames_sent': soak.sent,
        **{f'frames_{name}': soak.counts[name] for name in soak.counts if name != 'received'},
        'frames_looked_at': soak.levels['reuse'],
        'levels': dict(soak.levels),
        'rss_slope_mb_per_10k_frames': slope and round(slope.mb, 3),
        'rss_slope_95': slope and [round(slope.low_mb, 3), round(slope.high_mb, 3)],
        'memory': memory_verdict(slope, max_slope_mb),
        'rss_slope_with_shared_mb_per_10k_frames': slope_with_shared and round(slope_with_shared.mb, 3),
        'rss_mb_after_warmup': round(warm[0].rss_mb, 1) if warm else None,
        'rss_mb_end': round(warm[-1].rss_mb, 1) if warm else None,
        'shared_mb_end': round(warm[-1].shared_mb, 1) if warm else None,
        'questions': soak.asked,
        'unanswered': soak.unanswered,
        'statuses': dict(soak.statuses),
        **{
            f'answer_ms_{name}': round(float(np.percentile(times, percentile)), 1) if times else None
            for name, percentile in (('median', 50), ('p95', 95), ('longest', 100))
        },
        'queue_longest': soak.queue_longest,
        'queue_left': soak.queue_left,
        'faults': faults(soak, max_slope_mb),
    }
