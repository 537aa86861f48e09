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

"""Writes a ROS 2 bag (mcap) of the tabletop, and beside it the questions with their true answers over time.

The same seed writes the same bag.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from vlm_reuse_node.demo.questions import TabletopQuestion, single_question
from vlm_reuse_node.demo.scene_truth import single_truth
from vlm_reuse_node.demo.story import StorySpan, tell
from vlm_reuse_node.demo.tabletop import Sensor, Tabletop, sense
from vlm_reuse_node.scene.frame import TABLETOP_FRAME, Frame
from vlm_reuse_node.terminal import Parser

START_NS = 1_700_000_000_000_000_000
JPEG_QUALITY = 85
SETTLE_S = 0.5  # after an event: the camera needs a moment to deliver it
CLOSE_S = 0.6  # before the next event: the answers must be in
QUESTIONS_PER_SPAN = 3
_KINDS = ('colour', 'shape', 'count', 'exists', 'where', 'relation', 'nearest', 'missing', 'list')
_TYPES = get_typestore(Stores.ROS2_KILTED)


def draw_frames(
    seed: int, seconds: float, rate_hz: float, width: int, height: int, camera: str = 'camera'
) -> tuple[list[StorySpan], Iterator[Frame]]:
    """Return the story of a seed, and its pictures one after the other."""
    rng = np.random.default_rng(seed)
    table = Tabletop(rng, width, height)
    spans = tell(rng, seconds)

    def frames() -> Iterator[Frame]:
        for number in range(round(seconds * rate_hz)):
            time_s = number / rate_hz
            span = next(span for span in spans if time_s < span.to_s)
            rgb = sense(table.picture(span.things_at(time_s)), Sensor(), np.random.default_rng((seed, number)))
            yield Frame(rgb, START_NS + round(time_s * 1e9), TABLETOP_FRAME, camera)

    return spans, frames()


def make_questions(seed: int, spans: list[StorySpan]) -> list[dict]:
    """Return questions for times when nothing moves, each with its true answer in every span that allows one."""
    rng = np.random.default_rng((seed, 1))
    steady = [span for span in spans if span.is_steady]
    entries = []
    for span in steady:
        times = np.linspace(span.from_s + SETTLE_S, span.to_s - CLOSE_S, QUESTIONS_PER_SPAN)
        kinds = iter([_KINDS[index] for index in rng.permutation(len(_KINDS))] * 5)
        for time_s in times:
            question = None
            while question is None:
                question = single_question(rng, span.things, next(kinds))
            # Half of the questions offer choices, so that both ways of answering are used.
            with_choices = bool(rng.random() < 0.5)
            entries.append(_entry(question, round(float(time_s), 3), steady, with_choices))
    return entries


def write_bag(
    directory: Path,
    *,
    seed: int = 0,
    seconds: float = 30.0,
    rate_hz: float = 10.0,
    width: int = 640,
    height: int = 480,
    transport: str = 'raw',
    camera: str = 'camera',
) -> Path:
    """Write `directory` (the bag) and `directory`.questions.yaml; return the latter.

    transport: raw (sensor_msgs/Image, rgb8) or compressed (sensor_msgs/CompressedImage, JPEG).
    Raises rosbags.rosbag2.WriterError where the directory exists already.
    """
    spans, frames = draw_frames(seed, seconds, rate_hz, width, height, camera)
    topic = f'/{camera}/image_raw' + ('/compressed' if transport == 'compressed' else '')
    make = _compressed if transport == 'compressed' else _raw
    kind = 'sensor_msgs/msg/' + ('CompressedImage' if transport == 'compressed' else 'Image')
    with Writer(directory, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        connection = writer.add_connection(topic, kind, typestore=_TYPES)
        for frame in frames:
            writer.write(connection, frame.stamp_ns, _TYPES.serialize_cdr(make(frame), kind))
    sidecar = directory.with_name(f'{directory.name}.questions.yaml')
    content = {
        'bag': directory.name,
        'topic': topic,
        'camera': camera,
        'seed': seed,
        'seconds': seconds,
        'questions': make_questions(seed, spans),
    }
    sidecar.write_text(yaml.safe_dump(content, sort_keys=False, width=120))
    return sidecar


def _entry(question: TabletopQuestion, time_s: float, steady: list[StorySpan], with_choices: bool) -> dict:
    """The question as an entry of the questions file."""
    choices = list(question.choices) if with_choices else []
    answers = []
    for span in steady:
        answer = single_truth(question.topic, question.parts, span.things)
        if answer is not None and (not choices or answer in choices):
            answers.append({'from_s': round(span.from_s, 3), 'to_s': round(span.to_s, 3), 'answer': answer})
    return {'at_s': time_s, 'question': question.text, 'choices': choices, 'kind': question.kind, 'answers': answers}


def _header(frame: Frame) -> Any:
    seconds, nanoseconds = divmod(frame.stamp_ns, 1_000_000_000)
    stamp = _TYPES.types['builtin_interfaces/msg/Time'](sec=seconds, nanosec=nanoseconds)
    return _TYPES.types['std_msgs/msg/Header'](stamp=stamp, frame_id=frame.frame_id)


def _raw(frame: Frame) -> Any:
    height, width = frame.size
    return _TYPES.types['sensor_msgs/msg/Image'](
        header=_header(frame),
        height=height,
        width=width,
        encoding='rgb8',
        is_bigendian=0,
        step=3 * width,
        data=frame.rgb.reshape(-1),
    )


def _compressed(frame: Frame) -> Any:
    _, data = cv2.imencode('.jpg', frame.rgb[..., ::-1], (cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY))
    return _TYPES.types['sensor_msgs/msg/CompressedImage'](
        header=_header(frame), format='rgb8; jpeg compressed bgr8', data=data
    )


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = Parser(
        description=__doc__.split('\n')[0],
        epilog='Exit codes: 0 the bag is written; 1 failed; 2 wrong usage.',
    )
    parser.add_argument('directory', type=Path, help='the bag to write, a directory that does not exist yet')
    parser.add_argument('--seed', type=int, default=0, help='of the scene and its questions')
    parser.add_argument('--seconds', type=float, default=30.0, help='length of the bag')
    parser.add_argument('--rate', type=float, default=10.0, help='pictures a second')
    parser.add_argument('--size', default='640x480', help='width x height in pixels, 4:3')
    parser.add_argument('--transport', choices=('raw', 'compressed'), default='raw', help='how pictures are stored')
    parser.add_argument('--camera', default='camera', help='name of the camera; the topic is /<camera>/image_raw')
    return parser


def main(argv: list[str] | None = None) -> int:
    """Write one bag."""
    args = build_parser().parse_args(argv)
    if args.directory.exists():
        print(
            f"'{args.directory}' exists already; expected a new directory. Remove it or name another.", file=sys.stderr
        )
        return 2
    try:
        width, height = (int(side) for side in args.size.split('x'))
    except ValueError:
        print(f"--size is '{args.size}'; expected width x height, such as 640x480.", file=sys.stderr)
        return 2
    try:
        sidecar = write_bag(
            args.directory,
            seed=args.seed,
            seconds=args.seconds,
            rate_hz=args.rate,
            width=width,
            height=height,
            transport=args.transport,
            camera=args.camera,
        )
    except OSError as error:
        print(f"'{args.directory}' cannot be written: {error.strerror or error}. Name another one.", file=sys.stderr)
        return 1
    print(f'wrote {args.directory} and {sidecar}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
