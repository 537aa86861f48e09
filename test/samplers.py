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

"""A sampler for tests."""

import mlx.core as mx

from vlm_reuse_node.model.sampling import Sampler


class Script(Sampler):
    """Picks what is written, whatever the logits; keeps the accepted tokens."""

    def __init__(self, tokens):
        self._tokens, self.accepted = iter(tokens), []

    def __call__(self, logits):
        return mx.array(next(self._tokens))

    def accept(self, token):
        self.accepted.append(token)
