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

"""The engine in somebody's own program: arrays and texts are enough, and docs/engine.md says what is true."""

import re
import subprocess
import sys
import time

import numpy as np
import pytest
from patience import PATIENCE_S
from PIL import Image
from programs import ROOT, environment
from tiny_model import SECOND_NS, picture

from vlm_reuse_node.config import Config
from vlm_reuse_node.errors import ImageError
from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.session.answer import Status
from vlm_reuse_node.session.question import Question, question_of
from vlm_reuse_node.session.scene_session import SceneSession

TEXT, CHOICES = 'what color is the square ?', ['red', 'green']
PAGE = (ROOT / 'docs' / 'engine.md').read_text()


def asked(session):
    """What a text and a choice come to."""
    return session.ask(TEXT).token_ids, session.ask(TEXT, CHOICES).choice_scores


def test_an_array_and_a_text_are_enough(vlm):
    by_record, plain = SceneSession(vlm, Config(), 'camera'), SceneSession(vlm)
    by_record.look(picture(1))
    plain.look(picture(1).rgb)
    told = by_record.ask(Question(TEXT), now_ns=0), by_record.ask(Question(TEXT, tuple(CHOICES)), now_ns=0)
    assert asked(plain) == (told[0].token_ids, told[1].choice_scores) and all(asked(plain))
    assert plain.ask_cold(TEXT, CHOICES).choice_index == told[1].choice_index
    assert plain.observe(picture(2).rgb).visual_tokens_refreshed > 0


def test_what_is_written_to_an_array_later_does_not_change_the_picture(vlm):
    session, buffer = SceneSession(vlm), picture(1).rgb.copy()
    session.look(buffer)
    before = asked(session)
    buffer[:] = 255 - buffer
    assert buffer.flags.writeable and np.array_equal(session.newest.rgb, picture(1).rgb)
    session.reset()
    session.look(picture(1).rgb)
    assert asked(session) == before


@pytest.mark.parametrize('stamp_ns', [None, 0, 7, 1_790_000_000 * SECOND_NS], ids=['array', 'zero', 'small', 'epoch'])
def test_without_a_time_no_picture_is_too_old_whatever_clock_stamps_it(vlm, stamp_ns):
    session = SceneSession(vlm, Config(max_age_s=0.001))
    assert session.ask(TEXT).status == Status.NO_IMAGE
    rgb = picture(1).rgb
    session.look(rgb if stamp_ns is None else Frame(rgb, stamp_ns))
    for text in (TEXT, 'is it red ?'):  # the first one computes the picture, which takes longer than a millisecond
        answer = session.ask(text, CHOICES)
        assert (answer.status, answer.image_age_s) == (Status.OK, 0.0)
    late_ns = session.newest.stamp_ns + SECOND_NS
    assert session.ask(TEXT, CHOICES, now_ns=late_ns).status == Status.STALE


def test_arrays_are_stamped_by_the_steady_clock(vlm):
    session, before_ns = SceneSession(vlm), time.monotonic_ns()
    session.look(picture(1).rgb)
    first_ns = session.newest.stamp_ns
    session.look(picture(2).rgb)
    assert before_ns <= first_ns < session.newest.stamp_ns <= time.monotonic_ns()
    assert session.ask(TEXT, CHOICES, now_ns=time.monotonic_ns()).image_age_s > 0


@pytest.mark.parametrize(
    'pixels',
    [picture(1).rgb[..., 0], picture(1).rgb / 255, picture(1).rgb[..., :2], np.zeros((4, 4, 4), np.uint8), 'a.png'],
    ids=['grey', 'fractions', 'two channels', 'alpha', 'a name'],
)
def test_what_is_no_picture_is_refused_and_changes_nothing(vlm, pixels):
    session = SceneSession(vlm)
    session.look(picture(1).rgb)
    with pytest.raises(ImageError, match='expected .height, width, 3. of uint8') as refused:
        session.look(pixels)
    assert refused.value.cause == 'encoding' and np.array_equal(session.newest.rgb, picture(1).rgb)


def test_choices_are_any_sequence_of_texts_but_not_one_text(vlm):
    session = SceneSession(vlm)
    session.look(picture(1).rgb)
    refused = session.ask(TEXT, 'red')
    assert refused.status == Status.INVALID_REQUEST and 'choices is a str' in refused.message
    assert session.ask(TEXT, CHOICES).choice_scores == session.ask(TEXT, tuple(CHOICES)).choice_scores


def test_a_questions_own_choices_stay_unless_others_are_given():
    own = Question(TEXT, ('yes', 'no'), max_tokens=3)
    assert question_of(own) is own
    assert question_of(own, CHOICES) == Question(TEXT, tuple(CHOICES), max_tokens=3)
    assert question_of(TEXT) == Question(TEXT)


def test_the_code_on_the_engines_page_runs(tmp_path):
    for seed, name in enumerate(('first.png', 'second.png')):
        Image.fromarray(picture(seed).rgb).save(tmp_path / name)
    blocks = re.findall(r'```python\n(.*?)```', PAGE.split('## Reference')[0], re.S)
    done = subprocess.run(
        [sys.executable, '-c', '\n'.join(blocks)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env=environment(),
    )
    assert done.returncode == 0 and len(blocks) == 4, done.stderr
    first, second, ratio = done.stdout.splitlines()
    assert first.split()[0] in ('red', 'green', 'blue', 'yellow') and 'kept' in second and 'cold-dense' in ratio


def test_the_names_in_the_text_of_the_page_are_in_its_reference():
    text, reference = PAGE.split('## Reference')
    named = set(re.findall(r'`(?:[a-z]+\.)?(\w+)`', text)) - {'None'}
    assert len(named) > 8
    assert [name for name in named if not re.search(rf'\b{name}\b', reference + str(Config()))] == []
