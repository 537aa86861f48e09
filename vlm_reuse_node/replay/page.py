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

"""How the pages are made: every text in them is escaped and harmless."""

from typing import Any

from jinja2 import Environment, StrictUndefined

from vlm_reuse_node.plain_text import printable


def page_environment() -> Environment:
    """Return the environment of a page's template."""
    return Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_harmless
    )


def _harmless(value: Any) -> Any:
    """A text from outside without control characters: some change the order in which a browser shows a line."""
    return printable(value) if type(value) is str else value  # markup is a subclass, and the page's own
