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

from vlm_reuse_node.config import Config

README = (Path(__file__).parent.parent / 'README.md').read_text()


def test_the_readme_names_the_ten_parameters_that_people_set_and_the_docs_all():
    """The tables themselves are compared with the code in test_interfaces.py."""
    root = Path(__file__).parent.parent
    named = re.search(r'<!-- parameters: ([\w ]+) -->', README)[1].split()
    assert len(named) == 10 and set(named) <= {parameter.name for parameter in fields(Config)}
    page = (root / 'docs' / 'parameters.md').read_text()
    assert all(f'| `{parameter.name}` |' in page for parameter in fields(Config))


def test_what_the_readme_links_to_is_there():
    """Pictures and files; and the figures are filled in."""
    root = Path(__file__).parent.parent
    linked = re.findall(r'\]\(([^)#]+)\)', README)
    assert linked and [name for name in linked if not (root / name).exists()] == []
    assert len(README.split('<!-- measured -->')[1].split('<!-- /measured -->')[0].strip()) > 200


def test_the_file_tree_names_files_that_exist():
    """What the README sends a newcomer to is there, in the folder it is shown in."""
    package = Path(__file__).parent.parent / 'vlm_reuse_node'
    tree = README.split('## Files')[1].split('```')[1]
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
    """Files, as `folder/file.py`, and links."""
    root = Path(__file__).parent.parent
    page = (root / 'docs' / 'architecture.md').read_text()
    files = re.findall(r'`((?:[a-z_]+/)+[a-z_]*(?:\.py)?)', page)
    assert len(files) > 30
    assert [name for name in files if not any((root / at / name).exists() for at in ('vlm_reuse_node', ''))] == []
    assert [name for name in re.findall(r'\]\(([^)#]+)\)', page) if not (root / 'docs' / name).exists()] == []
