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

"""The engine without ROS, about two picture files in turn: python engine.py FIRST.png SECOND.png [MODEL]."""

import sys

import numpy as np
from PIL import Image

from vlm_reuse_node.model.loading import load
from vlm_reuse_node.session.scene_session import SceneSession

first, second, model = (*sys.argv[1:], 'tabletop')[:3]
session = SceneSession(load(model))
for path in (first, second):
    session.look(np.asarray(Image.open(path).convert('RGB')))
    for answer in (
        session.ask('is there a red square ?', choices=['yes', 'no']),
        session.ask('what objects are there ?'),
    ):
        cost = f'{answer.tokens_prefilled} prompt tokens computed, {answer.tokens_reused} kept'
        print(f'{path}: {answer.text or answer.message} (level {answer.level}, {cost})')
