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

"""Which runner answers for which arm."""

from collections.abc import Callable

from vlm_reuse_node.config import EXACT_POLICY, PATCH_POLICY
from vlm_reuse_node.replay.arms import ARMS, POLICY, REFERENCE
from vlm_reuse_node.replay.runners.dense import Dense
from vlm_reuse_node.replay.runners.kept_state import Eager, Policy, StaleReuse
from vlm_reuse_node.replay.runners.prompt_cache import MlxVlm
from vlm_reuse_node.replay.runners.runner import ArmContext, Runner
from vlm_reuse_node.scene.frame import Frame

MOST_UPKEEP = 1000.0  # the largest upkeep_share


def make_runners(context: ArmContext, names: tuple[str, ...]) -> dict[str, Runner]:
    """Make a runner for each name, in the order of the table of arms; cold and auto always."""
    policy = Policy(context)
    wanted = {REFERENCE, POLICY, *names}
    return {name: _MAKERS[name](context, policy) for name in ARMS if name in wanted}


def _cold(context: ArmContext, policy: Policy) -> Dense:
    """Cold-dense sees the keyframes of auto, and the newest picture in the live one's place."""

    def choose() -> list[Frame]:
        return [*policy.session.frames[:-1], context.window.newest]

    return Dense(context, choose)


def _eager(context: ArmContext, refresh_policy: str) -> Eager:
    """The eager way needs no credit but for history rollovers, so it gets as much as there can be."""
    return Eager(context, context.config.with_values(refresh_policy=refresh_policy, upkeep_share=MOST_UPKEEP))


_MAKERS: dict[str, Callable[[ArmContext, Policy], Runner]] = {
    'cold': _cold,
    'cold-again': _cold,
    POLICY: lambda context, policy: policy,
    'cold-cached': lambda context, policy: Dense(context, lambda: list(policy.session.frames)),
    'exact': lambda context, policy: Policy(context, context.config.with_values(refresh_policy=EXACT_POLICY)),
    'on-demand': lambda context, policy: Policy(
        context, context.config.with_values(refresh_policy=EXACT_POLICY, upkeep_share=0.0)
    ),
    'patch': lambda context, policy: Policy(context, context.config.with_values(refresh_policy=PATCH_POLICY)),
    'eager': lambda context, policy: _eager(context, EXACT_POLICY),
    'eager-patch': lambda context, policy: _eager(context, PATCH_POLICY),
    'reuse': lambda context, policy: StaleReuse(context),
    'low-rate': lambda context, policy: Dense(context, context.window.spread),
    'last-4': lambda context, policy: Dense(context, context.window.last),
    'newest': lambda context, policy: Dense(context, lambda: [context.window.newest]),
    'mlx-vlm': lambda context, policy: MlxVlm.with_prompt_cache(context),
    'mlx-vlm-apc': lambda context, policy: MlxVlm.with_prefix_cache(context),
}
