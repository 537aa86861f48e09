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

"""Asks a model about one picture, without ROS."""

from pathlib import Path
from typing import TextIO

from vlm_reuse_node.ask.follow import Follower
from vlm_reuse_node.config import Config
from vlm_reuse_node.errors import ImageError, VlmReuseError
from vlm_reuse_node.model.vlm import Vlm
from vlm_reuse_node.replay.bag import Bag, Selection
from vlm_reuse_node.replay.model_thread import run_with_model
from vlm_reuse_node.replay.storage.channel import BagError
from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.scene.picture_file import rgb_of_file
from vlm_reuse_node.session.answer import Answer
from vlm_reuse_node.session.embedded_model import check_words, marked
from vlm_reuse_node.session.progress import Progress
from vlm_reuse_node.session.question import Question
from vlm_reuse_node.session.scene_session import SceneSession
from vlm_reuse_node.session.turn import Turn


class PictureError(VlmReuseError):
    """A file that holds no usable picture."""


def ask(config: Config, frame: Frame, question: Question, follow: TextIO | None) -> Answer:
    """Load the configuration's model and answer about one picture. follow: where to show a text while it grows.

    Raises ModelError, PictureError, or InvalidRequestError for words that the embedded model does not know.
    """
    check_words(config.model, question)
    follower = Follower(follow)

    def listen(progress: Progress) -> None:
        follower.show(progress.text)

    def answer(vlm: Vlm) -> Answer:
        session = SceneSession(vlm, config.with_values(refresh_policy='exact'), frame.camera)
        try:
            session.look(frame)
        except ImageError as error:
            raise PictureError(f'The model cannot take this picture: {error}') from error
        return marked(session.ask(question, now_ns=frame.stamp_ns, turn=Turn(listener=listen)))

    try:
        return run_with_model(config, answer)
    finally:
        follower.end()


def frame_of_file(path: Path) -> Frame:
    """Read a picture file. Raises PictureError or OSError."""
    try:
        return Frame(rgb_of_file(path.read_bytes(), '', Config().max_image_pixels), camera=path.stem)
    except ImageError as error:
        raise PictureError(f"'{path}' cannot be used as a picture: {error}") from error


def frame_of_recording(path: Path, topic: str, at_s: float) -> Frame:
    """Read a recording's first picture from `at_s` on. topic: '' takes the only one. Raises BagError."""
    bag = Bag(path, Selection((topic,) if topic else (), start_s=at_s, max_pixels=Config().max_image_pixels))
    try:
        for frame in bag.frames():
            return frame
    finally:
        bag.close()
    raise BagError(f"The recording '{path}' has no usable picture from {at_s:g} s on; it is {bag.seconds:.1f} s long.")
