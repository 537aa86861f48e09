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

"""The README says what the code does."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from vlm_reuse_node.config import Config

ROOT = Path(__file__).parent.parent
README = (ROOT / 'README.md').read_text()


def test_the_readme_names_the_ten_parameters_that_people_set_and_the_docs_all():
    """The tables themselves are compared with the code in test_interfaces.py."""
    named = re.search(r'<!-- parameters: ([\w ]+) -->', README)[1].split()
    assert len(named) == 10 and set(named) <= {parameter.name for parameter in fields(Config)}
    page = (ROOT / 'docs' / 'parameters.md').read_text()
    assert all(f'| `{parameter.name}` |' in page for parameter in fields(Config))


@pytest.mark.parametrize(
    'page', [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))], ids=lambda page: page.name
)
def test_what_a_page_links_to_is_there(page: Path) -> None:
    """Pictures, files, and headings of pages, as GitHub makes anchors from them."""
    for name, anchor in re.findall(r'\]\(([^)#]*)(?:#([^)]+))?\)', page.read_text()):
        target = page.parent / name if name else page
        assert target.exists(), name
        if anchor:
            headings = re.findall(r'^#+ (.+)$', target.read_text(), re.M)
            assert anchor in [re.sub(r'[^\w -]', '', heading.lower()).replace(' ', '-') for heading in headings]


def test_the_figures_are_filled_in():
    """Of the README, and of the page with all of them."""
    assert all(
        len((ROOT / page).read_text().split('<!-- measured -->')[1].split('<!-- /measured -->')[0].strip()) > 200
        for page in ('README.md', 'docs/measurements.md')
    )


def test_the_file_tree_names_files_that_exist():
    """What the page sends a newcomer to is there, in the folder it is shown in."""
    package = ROOT / 'vlm_reuse_node'
    tree = (ROOT / 'docs' / 'architecture.md').read_text().split('## Files')[1].split('```')[1]
    folder, named, missing = '', 0, []
    for line in tree.splitlines():
        words = line.split('  ')
        indent = len(line) - len(line.lstrip())
        first = line.strip().split(' ')[0]
        if indent == 2:
            folder = first if first.endswith('/') else ''
        for word in [name for part in words[:6] for name in part.split() if name.endswith('.py')]:
            named += 1
            if not (package / folder / word).exists():
                missing.append(f'{folder}{word}')
    assert named > 30 and missing == []


def test_what_the_architecture_page_names_is_there():
    """Files, as `folder/file.py`."""
    page = (ROOT / 'docs' / 'architecture.md').read_text()
    files = re.findall(r'`((?:[a-z_]+/)+[a-z_]*(?:\.py)?)', page)
    assert len(files) > 30
    assert [name for name in files if not any((ROOT / at / name).exists() for at in ('vlm_reuse_node', ''))] == []
