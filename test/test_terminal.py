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

"""What a person sees of the programs: help with defaults and exit codes, progress that a file can be followed by."""

import argparse
from importlib import import_module

import pytest

from vlm_reuse_node.terminal import HelpFormatter, ProgressLines, progress

PARSERS = {
    'demo': 'demo.run',
    'make_bag': 'demo.bag',
    'ask': 'ask.cli',
    'calibrate': 'calibrate.cli',
    'check': 'check.cli',
    'replay': 'replay.options',
}


def parser_of(program):
    return import_module(f'vlm_reuse_node.{PARSERS[program]}').build_parser()


@pytest.mark.parametrize('program', PARSERS)
def test_a_part_of_an_options_name_is_not_that_option(program, capsys):
    parser = parser_of(program)
    option = max((name for action in parser._actions for name in action.option_strings), key=len)
    with pytest.raises(SystemExit):
        parser.parse_args(['given', f'{option[:-1]}=1'])
    said = capsys.readouterr().err
    assert 'unrecognized arguments' in said and f'{option[:-1]}=1' in said


@pytest.mark.parametrize('program', PARSERS)
def test_the_help_tells_every_default_and_the_exit_codes(program):
    parser = parser_of(program)
    told = parser.format_help()
    assert 'Exit codes: 0' in told and '2 wrong usage' in ' '.join(told.split())
    formatter = parser.formatter_class(program)
    assert isinstance(formatter, HelpFormatter)
    for action in parser._actions:
        if action.nargs != 0 and action.default not in (None, '', [], argparse.SUPPRESS):
            assert 'default' in formatter._expand_help(action), action.option_strings
    assert 'default: None' not in told and 'default: []' not in told


def test_a_default_is_told_once():
    parser = parser_of('check')
    assert parser.format_help().count('default: 36') == 1


def test_without_a_terminal_progress_is_whole_lines_that_are_written_at_once(capfd):
    with progress(20, 'replay', 's') as bar:
        assert isinstance(bar, ProgressLines)
        said = []
        for _ in range(20):
            bar.update()
            said.append(capfd.readouterr().err)
        bar.set_description('the last part')
    assert ''.join(said).count('\n') == 10 and said[1] == 'replay: 2 of 20 s\n' and said[2] == ''
    assert '\r' not in ''.join(said) and capfd.readouterr().err == 'replay: the last part\n'
