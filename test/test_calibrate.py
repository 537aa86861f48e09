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

"""The parts of `calibrate`: which answers tell drift, which limits follow, and what is said about them."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from html_page import HOSTILE, Page
from hypothesis import given, settings
from hypothesis import strategies as st
from replay_bags import frames, write_bag
from tiny_generic import write_tiny_generic
from tiny_model import picture

from vlm_reuse_node.calibrate import search
from vlm_reuse_node.calibrate.arm import Reference
from vlm_reuse_node.calibrate.cli import main
from vlm_reuse_node.calibrate.measure import Judged
from vlm_reuse_node.calibrate.questions import Asked, named
from vlm_reuse_node.calibrate.sample import SIGNALS, Sample, auc, drift
from vlm_reuse_node.calibrate.search import choose, least_confidence
from vlm_reuse_node.calibrate.stretches import LONGEST_S, SHORTEST_S, Recording, moments, stretch_s
from vlm_reuse_node.calibrate.verdict import Exit, exit_code, headline, verdicts
from vlm_reuse_node.config import Config
from vlm_reuse_node.model import loading
from vlm_reuse_node.replay.bag import Selection
from vlm_reuse_node.scene.frame import Frame
from vlm_reuse_node.session import calibration as calibrations
from vlm_reuse_node.session.answer import Answer, Status
from vlm_reuse_node.session.calibration import PatchLimits
from vlm_reuse_node.session.drift_bounds import DriftCount
from vlm_reuse_node.session.question import Question
from vlm_reuse_node.session.trust import decide


def sample(confidence=0.9, drifted=False, *, exact=False, state=0, patches=1, share=0.1, paid=0.1, **others):
    fields = {'has_choices': True, 'escalated': False, 'margin': confidence, 'flipped': False} | others
    return Sample(
        state=state,
        drifted=drifted,
        exact=exact,
        confidence=confidence,
        patches=patches,
        share=share,
        paid=paid,
        **fields,
    )


def many(count, confidence=0.9, drifted=0, **others):
    return [sample(confidence, number < drifted, state=number, **others) for number in range(count)]


# --- samples ----------------------------------------------------------------------------------------------------------


def test_an_answer_drifts_when_its_choice_or_its_tokens_are_others():
    def compared(one, other):
        return Sample.of(one, other, None, 0, 1, 0.1, 0.1)

    yes = Answer(Status.OK, choice_index=0, choice_scores=(0.7, 0.2, 0.1), confidence=0.7)
    no = Answer(Status.OK, choice_index=1, choice_scores=(0.3, 0.7), confidence=0.7)
    text = Answer(Status.OK, token_ids=(1, 2), confidence=0.4)
    assert compared(yes, no).drifted and not compared(yes, yes).drifted
    assert compared(text, Answer(Status.OK, token_ids=(1,))).drifted and not compared(text, text).drifted
    assert compared(yes, yes).margin == pytest.approx(0.5) and compared(yes, yes).has_choices
    assert compared(text, text).margin == 0.4 and not compared(text, text).has_choices


def test_an_answer_is_flipped_when_the_arm_said_something_else_before():
    yes, no = Answer(Status.OK, choice_index=0), Answer(Status.OK, choice_index=1)
    assert [Sample.of(yes, yes, before, 0, 1, 0.1, 0.1).flipped for before in (None, yes, no)] == [False, False, True]


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=1, max_size=30))
def test_the_auc_is_the_share_of_pairs_in_which_the_drifted_answer_has_the_stronger_signal(given_samples):
    samples = [sample(value / 10, drifted) for drifted, value in given_samples]
    pairs = [
        (bad.confidence, good.confidence) for bad in samples if bad.drifted for good in samples if not good.drifted
    ]
    found = auc(samples, SIGNALS['confidence'])
    if not pairs:
        assert found is None
    else:
        assert found == pytest.approx(np.mean([(bad < good) + (bad == good) / 2 for bad, good in pairs]))


# --- limits -----------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.floats(0.01, 0.99), st.booleans()), min_size=1, max_size=300),
    st.floats(0.001, 0.1),
)
@settings(max_examples=50)
def test_what_is_kept_drifts_less_than_allowed_or_not_at_all(values, max_drift):
    samples = [sample(confidence, drifted) for confidence, drifted in values]
    least = least_confidence(samples, max_drift)
    kept = drift(each for each in samples if each.confidence >= least)
    assert search.LEAST_CONFIDENCE <= least <= 1
    assert kept.drifted == 0 or kept.high <= search.SAFETY * max_drift


def test_the_threshold_lies_above_what_drifted_by_a_margin_and_below_all_else():
    samples = [*many(50, 0.95), *many(3, 0.7, drifted=3), *many(50, 0.6)]
    assert 0.7 < least_confidence(samples, 0.01) < 0.85
    assert least_confidence(many(50, 0.95), 0.01) == search.LEAST_CONFIDENCE
    assert least_confidence([], 0.01) == 1.0
    assert least_confidence(many(50, 0.99999, drifted=20), 0.01) == 1.0  # being sure does not help


def test_some_drift_is_allowed_where_there_are_enough_answers():
    few, lots = many(900, 0.9, drifted=1), many(2000, 0.9, drifted=1)
    assert least_confidence(few, 0.01) > 0.9 and least_confidence(lots, 0.01) == search.LEAST_CONFIDENCE


def test_limits_exclude_what_drifts_although_it_is_sure():
    good = many(400, patches=1, share=0.05)
    long = many(400, drifted=40, patches=8, share=0.05)
    assert choose({0: [*good, *long]}, 0.01).limits.max_patches < 8
    large = many(400, drifted=40, patches=1, share=0.9)
    assert choose({0: [*good, *large]}, 0.01).limits.max_patch_share < 0.9


def test_a_halo_is_chosen_only_where_it_pays():
    bad, good = many(400, drifted=40, paid=0.1), many(400, paid=0.2)
    assert choose({0: bad, 1: good}, 0.01).limits.change_halo == 1
    assert choose({0: many(400, paid=0.1), 1: good}, 0.01).limits.change_halo == 0


def test_the_cost_counts_what_is_computed_again():
    sure = choose({0: many(100, 0.95, paid=0.1)}, 0.01)
    assert sure.cost == pytest.approx(0.1)
    unsure = [*many(100, 0.95, paid=0.1), *many(50, 0.4, drifted=1, paid=0.1)]
    assert choose({0: unsure}, 0.01).cost == pytest.approx(0.1 + 50 / 150)
    exact = [*many(100, 0.95, paid=0.0, exact=True, patches=0)]
    assert choose({0: exact}, 0.01).cost == 0.0


def test_choices_and_texts_get_a_threshold_each():
    samples = [*many(300, 0.9), *many(300, 0.9, drifted=30, has_choices=False)]
    limits = choose({0: samples}, 0.01).limits
    assert limits.min_confidence == search.LEAST_CONFIDENCE and limits.min_text_confidence > 0.9


# --- questions and stretches ------------------------------------------------------------------------------------------


@given(st.integers(0, 40), st.integers(0, 10), st.integers(1, 60))
def test_every_question_is_asked_about_as_often(choices, texts, moments):
    asked = Asked(
        [Question(f'q{number}', ('yes', 'no')) for number in range(choices)]
        + [Question(f't{number}') for number in range(texts)] * 2
    )
    assert len(asked) == choices + texts
    counts = Counter(question for moment in range(moments) for kind in asked.about(moment) for question in kind)
    for kind in (asked.choices, asked.texts):
        often = [counts[question] for question in kind]
        assert not often or max(often) - min(often) <= 1


def test_things_are_read_from_a_list_in_words():
    assert named('A red cup, the dog and two chairs; 3) a TV.') == ['red cup', 'dog', 'chairs', 'tv']
    assert named('I see a picture of a very messy kitchen table') == [] and named('') == []


@pytest.mark.parametrize('seconds, expected', [(1, SHORTEST_S), (120, 12.0), (10_000, LONGEST_S)])
def test_a_stretch_is_a_tenth_of_a_recording_within_limits(seconds, expected):
    assert stretch_s(seconds) == expected


# --- the verdict ------------------------------------------------------------------------------------------------------


def measured(choices=(), texts=(), work=(20.0, 100.0), exact_work=(50.0, 100.0), least=0.7):
    kinds = [
        Judged(list(samples), list(samples), list(samples), len(samples), work, exact_work)
        for samples in (choices, texts)
    ]
    limits = PatchLimits(0, 4, 0.5, least, least)
    return SimpleNamespace(choices=kinds[0], texts=kinds[1], calibration=SimpleNamespace(limits=limits))


def judged(*given_samples, **changes):
    found = verdicts(measured(*given_samples, **changes), 0.01)
    return found, exit_code(found)


def test_patches_are_used_where_the_bound_is_below_and_work_is_saved():
    found, code = judged(many(400))
    assert code is Exit.PATCH and '0 of 400' in found[0].sentence and '0.918 %' in found[0].sentence
    assert 'choices from patched states' in headline(found) and 'None of the questions' in found[1].sentence
    found, code = judged(many(400), exact_work=(20.0, 100.0))
    assert code is Exit.EXACT and 'no less work' in found[0].sentence


def test_too_few_answers_are_told_with_how_many_more_are_needed():
    found, code = judged(many(100))
    assert code is Exit.TOO_LITTLE and 'about 368 such answers' in found[0].sentence
    assert '3.7 times as long' in found[0].sentence and 'cannot be told' in headline(found)


def test_too_much_drift_is_no_lack_of_answers():
    found, code = judged(many(300, drifted=9))
    assert code is Exit.EXACT and 'more than max_drift 1 %' in found[0].sentence
    assert 'whole' in headline(found)


def test_a_recording_without_change_is_told():
    found, code = judged(many(300, exact=True, patches=0, paid=0.0))
    assert code is Exit.TOO_LITTLE and 'too little change' in found[0].sentence


def test_a_picture_that_changes_as_a_whole_is_no_lack_of_change():
    found, code = judged(many(300, exact=True, patches=0, paid=1.0))
    assert code is Exit.EXACT and 'as a whole' in found[0].sentence


def test_a_kind_whose_answers_are_never_sure_is_answered_from_whole_states():
    found, code = judged(many(300), least=1.0)
    assert code is Exit.EXACT and 'less sure than the limit' in found[0].sentence


def test_one_kind_is_enough_for_patches():
    found, code = judged(many(400), many(300, drifted=30, has_choices=False))
    assert code is Exit.PATCH and [verdict.exit for verdict in found] == [Exit.PATCH, Exit.EXACT]


def test_the_trial_counts_only_answers_of_patched_states():
    kind = Judged([*many(10, drifted=1), *many(5, exact=True), *many(5, exact=True, escalated=True)])
    assert kind.trial.drift == DriftCount(10, 1) and kind.asked_twice == DriftCount(20, 5)


# --- the program ------------------------------------------------------------------------------------------------------


HOSTILE_NAME = HOSTILE.replace('/', '|')  # a recording may be called anything that a folder may


def with_corner(frame, number):
    """The picture with a corner that is another one every time."""
    rgb = frame.rgb.copy()
    rgb[:8, :8] = (40 * number) % 256
    return Frame(rgb, frame.stamp_ns, frame.frame_id, frame.camera)


@pytest.fixture(scope='module')
def changing(tmp_path_factory):
    pictures = [with_corner(frame, number) for number, frame in enumerate(frames(22, changes_at=()))]
    return write_bag(tmp_path_factory.mktemp('bags') / HOSTILE_NAME, {'/camera/image_raw': pictures})


def run(capsys, *arguments):
    code = main([*map(str, arguments)])
    return code, capsys.readouterr()


def test_a_recording_is_measured_and_what_is_written_can_be_used(capsys, changing, model_dir, tmp_path):
    out = tmp_path / 'out'
    code, said = run(capsys, changing, '--model', model_dir, '--out', out)
    assert code in (Exit.EXACT, Exit.TOO_LITTLE), said.err  # 11 s of pictures are never enough
    assert 'computes every changed picture whole' in said.out and 'choices: ' in said.out and 'texts: ' in said.out
    found = calibrations.read(out / 'calibration.json')
    assert found.recordings == (HOSTILE_NAME,)
    parameters = yaml.safe_load((out / 'params.yaml').read_text())['/**']['ros__parameters']
    config = Config(**parameters)
    assert (config.refresh_policy, config.calibration) == ('auto', str(out / 'calibration.json'))
    vlm = loading.load(config.model)
    decided = decide(vlm, config)
    assert not decided.is_refused and decided.used.refresh_policy == 'exact' and HOSTILE_NAME in decided.why
    page = (out / 'calibration.html').read_text()
    assert found.model.fingerprint in page and 'http' not in page.replace('http://www.w3.org', '')
    read = Page(page)
    assert 'svg' in read.tags and not {'script', 'img'} & set(read.tags)
    assert not [name for name, _ in read.attributes if name.startswith('on')]


def test_the_limits_are_never_judged_on_the_stretches_they_were_chosen_on(changing):
    recording = Recording(changing, 'changing', Selection(), ('camera',), (), are_general=False)
    halves = [
        [moment.frame.stamp_ns for moment in moments(recording, fitted, 1.0, lambda _: None, lambda: False)]
        for fitted in (True, False)
    ]
    assert halves[0] and halves[1] and not set(halves[0]) & set(halves[1])
    assert len(halves[0]) + len(halves[1]) == 22


def test_a_recording_in_which_nothing_changes_says_so(capsys, model_dir, tmp_path):
    bag = write_bag(tmp_path / 'still', {'/camera/image_raw': frames(22, changes_at=())})
    code, said = run(capsys, bag, '--model', model_dir, '--out', tmp_path / 'out')
    assert code == Exit.TOO_LITTLE and 'too little change' in said.out


def test_a_model_that_cannot_be_patched_has_an_exit_code_of_its_own(capsys, changing, tmp_path):
    model = write_tiny_generic(tmp_path / 'model', 'idefics3')
    code, said = run(capsys, changing, '--model', model, '--out', tmp_path / 'out')
    assert code == Exit.CANNOT_PATCH and 'cannot compute single cells' in said.err
    assert not any((tmp_path / 'out').iterdir())


def test_bad_input_is_one_sentence_and_writes_nothing(capsys, changing, model_dir, tmp_path):
    earlier = tmp_path / 'earlier'
    earlier.mkdir()
    (earlier / 'calibration.html').touch()
    for code, words, arguments in (
        (Exit.FAILED, 'nowhere', ('nowhere',)),
        (Exit.FAILED, 'no model directory', (changing, '--model', tmp_path / 'none')),
        (Exit.FAILED, 'questions file', (changing, '--questions', tmp_path / 'none.yaml')),
        (Exit.USAGE, '--every is 0', (changing, '--every', '0')),
        (Exit.USAGE, 'refresh_policy', (changing, '--param', 'refresh_policy=patch')),
        (Exit.USAGE, 'cannot be a folder', (changing, '--out', __file__)),
        (Exit.USAGE, '--overwrite', (changing, '--out', earlier)),
    ):
        found, said = run(capsys, '--out', tmp_path / 'out', *arguments)
        assert found == code and words in said.err and said.err.count('\n') == 1, said.err
    assert not any((tmp_path / 'out').iterdir())


def test_cold_answers_are_remembered_for_the_same_pictures_only(vlm):
    reference, question = Reference(vlm, Config(refresh_policy='exact')), Question('what is it ?', ('red', 'green'))
    one, other = (picture(seed) for seed in (1, 2))
    assert one.stamp_ns == other.stamp_ns  # as those of two recordings may be
    (first,) = reference.ask([one], [question])
    passes = vlm.meter.done.passes
    (again,) = reference.ask([one], [question])
    assert first is again and vlm.meter.done.passes == passes
    (third,) = reference.ask([other], [question])
    assert third.choice_scores != first.choice_scores and vlm.meter.done.passes > passes
