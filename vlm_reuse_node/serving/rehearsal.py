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

"""A test run of a loaded model: one frame and two questions."""

import numpy as np

from vlm_reuse_node.config import EXACT_POLICY, Config
from vlm_reuse_node.errors import ModelError
from vlm_reuse_node.model.vlm import Vlm
from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.session.answer import Status
from vlm_reuse_node.session.question import Question
from vlm_reuse_node.session.scene_session import SceneSession


def rehearse(vlm: Vlm, config: Config) -> None:
    """Answer two questions about a grey frame. This compiles the kernels, and finds a model that cannot run.

    Raises ModelError when the model cannot answer. Raises ConfigError when config.system_prompt holds special tokens of
    the model.
    """
    session = SceneSession(vlm, config.with_values(refresh_policy=EXACT_POLICY))
    grey = Frame(np.full((480, 640, 3), 128, np.uint8))
    for question in (Question('what is this?', max_tokens=2), Question('what is this?', choices=('a', 'b'))):
        answer = session.ask(question, now_ns=0, newest=lambda: grey)
        if answer.status in (Status.MODEL_ERROR, Status.NO_IMAGE):
            raise ModelError(f"The model '{vlm.name}' was loaded but cannot answer. {answer.message}")
