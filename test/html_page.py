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

"""What the tests of pages read a page with."""

from dataclasses import dataclass, field
from html.parser import HTMLParser

HOSTILE = '"><script>alert(1)</script>\'<img src=x onerror=alert(2)>&{{ 7 * 6 }}'
VOID = {'meta', 'img', 'br', 'link'}


class Page(HTMLParser):
    """Collects tags and attributes; whatever is opened must be closed."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.open = [], [], []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag


@dataclass
class Element:
    """An element with its attributes, its text (that of its children too), and the elements around it."""

    tag: str
    attributes: dict
    around: list
    text: str = ''
    children: list = field(default_factory=list)

    def get(self, name):
        return self.attributes.get(name) or ''


class _Tree(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.found, self.open = [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        element = Element(tag, dict(attributes), list(self.open))
        for each in self.open:
            each.children.append(element)
        self.found.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in VOID:
            self.open.pop()

    def handle_data(self, data):
        for each in self.open:
            each.text += data


def elements(html):
    """Every element of a page, in order."""
    return _Tree(html).found
