"""A test run of a loaded model: one frame and two questions."""

import numpy as np

from vlm_reuse_node.config import Config
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
    session = SceneSession(vlm, config)
    grey = Frame(np.full((480, 640, 3), 128, np.uint8))
    for question in (Question('what is this?', max_tokens=2), Question('what is this?', choices=('a', 'b'))):
        answer = session.ask(question, now_ns=0, newest=lambda: grey)
        if answer.status in (Status.MODEL_ERROR, Status.NO_IMAGE):
            raise ModelError(f"The model '{vlm.name}' was loaded but cannot answer. {answer.message}")
