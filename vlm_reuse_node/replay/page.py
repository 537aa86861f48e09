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

"""How every page is made: one frame and style (base.html), parts that all use (parts.html), and a template for each."""

import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from vlm_reuse_node.plain_text import printable

_UNIT = re.compile(r'(?<=\d) (?=[%×])')  # between a figure and its unit, where no line is to end


def render_page(template: Path, **values: Any) -> str:
    """Return a self-contained page as HTML; every text in it is escaped and harmless.

    template: extends base.html. Its sections begin with `heading` of parts.html, which enters them in the contents.
    """
    page = page_environment(template.parent).get_template(template.name).render(sections=[], **values)
    return _UNIT.sub('\N{NO-BREAK SPACE}', page)


def page_environment(folder: Path) -> Environment:
    """Return the environment of the templates in a folder."""
    return Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_harmless,
        loader=FileSystemLoader([folder, Path(__file__).parent]),
    )


def _harmless(value: Any) -> Any:
    """A text from outside without control characters: some change the order in which a browser shows a line."""
    return printable(value) if type(value) is str else value  # markup is a subclass, and the page's own
