"""Models that answer in step: sessions by hand where their words must be known, real ones where numbers must agree."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from tests.random_model import SMALL, random_weights
from workbench.errors import Cancelled, LimitError, WorkbenchError
from workbench.evaluation.hf_reference import HFReference
from workbench.evaluation.hf_session import HFSession
from workbench.evaluation.side_by_side import Prompt, Speaker, converse, distinct, has_chat_template, read_along
from workbench.recipe import BuildLimits
from workbench.runtime.generate import generate
from workbench.runtime.session import SessionOptions, TorchSession

LIMITS = BuildLimits(max_batch_size=1, max_input_len=8, max_output_len=8)
END = SMALL.eos_token_ids[0]


class _Script:
    """A session that says what is written, whatever it reads; the next-best token has half the probability."""

    backend = "script"
    config = SMALL
    limits = LIMITS

    def __init__(self, *script):
        self.script, self.read = script, []

    def _logits(self):
        row = torch.full((1, SMALL.vocab_size), -30.0)
        token = self.script[len(self.read) - 1]
        row[0, token], row[0, (token + 1) % SMALL.vocab_size] = math.log(2), 0.0
        return row

    def prefill(self, prompts):
        self.read = [list(prompts[0])]
        return self._logits()

    def decode(self, ids):
        self.read.append(ids.tolist())
        return self._logits()

    def close(self):
        pass


class _Names:
    chat_template = None

    def convert_ids_to_tokens(self, token):
        return f"t{token}"

    def decode(self, ids):
        return f"t{ids[0]}"


def _speakers(*scripts):
    return [Speaker(f"model {number}", _Script(*script)) for number, script in enumerate(scripts)]


def test_answers_are_the_most_probable_tokens():
    rounds = []
    talk = converse(
        _speakers((10, 11, 12), (10, 21, 22)), [3, 4], 3, lambda now: rounds.append(len(now.answers[0].ids))
    )
    assert [answer.ids for answer in talk.answers] == [[10, 11, 12], [10, 21, 22]]
    assert rounds == [1, 2, 3]
    assert talk.answers[0].tokens[0].probability == pytest.approx(2 / 3, rel=1e-4)
    assert [token for token, _ in talk.answers[0].tokens[0].alternatives[:2]] == [10, 11]


def test_where_answers_part_each_says_what_it_thought_of_the_other():
    talk = converse(_speakers((10, 11, 12, 13), (10, 12, 22, 13)), [3], 4)
    assert talk.parting(1) == 1
    assert talk.differing(1) == [1, 2]
    ours, theirs = talk.answers[0].tokens[1], talk.answers[1].tokens[1]
    # 12 is the next best of the first; the second thinks nothing of 11.
    assert theirs.others[0] == pytest.approx(1 / 3, rel=1e-4)
    assert ours.others[1] == pytest.approx(0, abs=1e-6)
    assert talk.answers[1].tokens[2].others[0] is None
    assert talk.answers[1].tokens[3].others[0] is None
    assert talk.answers[0].tokens[0].others == pytest.approx((2 / 3, 2 / 3), rel=1e-4)


def test_an_end_is_a_token_and_a_difference():
    talk = converse(_speakers((10, END), (10, 11, 12, END)), [3], 6)
    assert [answer.ids for answer in talk.answers] == [[10, END], [10, 11, 12, END]]
    assert all(answer.ended for answer in talk.answers)
    assert talk.parting(1) == 1
    assert talk.answers[1].tokens[2].others[0] is None


def test_equal_answers_never_part():
    talk = converse(_speakers((10, 11), (10, 11), (10, 12)), [3], 2)
    assert (talk.parting(1), talk.differing(1)) == (None, [])
    assert talk.parting(2) == 1
    assert talk.parting(1, 2) == 1


def test_the_frame_has_a_row_per_position():
    talk = converse(_speakers((10, 11, END), (10, 12, 22, 23)), [3], 4)
    frame = talk.frame(_Names())
    assert list(frame["position"]) == [0, 1, 2, 3]
    assert list(frame["same"]) == [True, False, False, False]
    assert list(frame["token [model 1]"]) == ["t10", "t12", "t22", "t23"]
    assert frame["p [model 1] under [model 0]"].iloc[1] == pytest.approx(1 / 3, rel=1e-4)
    assert frame.drop(columns="position").iloc[3].filter(like="[model 0]").isna().all()


def test_a_stop_leaves_what_was_said():
    said = []

    def stop(event):
        if event.done == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        converse(_speakers((10, 11, 12), (10, 21, 22)), [3], 3, said.append, stop)
    assert [answer.ids for answer in said[-1].answers] == [[10, 11], [10, 21]]


def test_limits_are_refused_before_anybody_speaks():
    speakers = _speakers((10,), (10,))
    with pytest.raises(LimitError, match="max_output_len 9; allowed: 1 to 8"):
        converse(speakers, [3], 9)
    with pytest.raises(LimitError, match="prompt 1 has 9 tokens"):
        converse(speakers, [3] * 9, 2)
    assert speakers[0].session.read == []


def test_everybody_reads_the_first_answer():
    speakers = _speakers((10, 11, 12), (10, 12, 12))
    reading = read_along(speakers, [3], [10, 11, 12])
    assert speakers[1].session.read == [[3], [10], [11]]
    assert reading.differing(0) == []
    assert reading.differing(1) == [1]
    assert reading.choices.tolist() == [[10, 11, 12], [10, 12, 12]]
    assert reading.probabilities[1].tolist() == pytest.approx([2 / 3, 0, 2 / 3], rel=1e-4, abs=1e-6)
    assert reading.choice_probabilities[0, 1, 1] == pytest.approx(1 / 3, rel=1e-4)
    frame = reading.frame(_Names())
    assert list(frame["same"]) == [True, False, True]
    assert list(frame["choice [model 1]"]) == ["t10", "t12", "t12"]


def test_reading_tells_its_progress_and_needs_a_text():
    events = []
    read_along(_speakers((10, 11), (10, 11)), [3], [10, 11], events.append)
    assert [(event.done, event.total) for event in events] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    with pytest.raises(LimitError, match="the text is empty"):
        read_along(_speakers((10,)), [3], [])


def test_real_models_say_what_they_say_alone():
    config = replace(SMALL, eos_token_ids=())
    weights = random_weights(config)
    reference = HFSession(HFReference.from_weights(config, weights, torch.float32))
    ours = TorchSession(config, weights, SessionOptions(torch.float32, "torch"))
    talk = converse([Speaker("HF", reference), Speaker("ours", ours)], [5, 9, 11], 6)
    assert talk.answers[0].ids == talk.answers[1].ids == generate(ours, [[5, 9, 11]], 6)[0]
    assert all(answer.tokens_per_s for answer in talk.answers)
    for token in talk.answers[0].tokens:
        assert token.others[1] == pytest.approx(token.probability, rel=1e-3)
    reading = read_along([Speaker("HF", reference), Speaker("ours", ours)], [5, 9, 11], talk.answers[0].ids)
    own = [token.probability for token in talk.answers[0].tokens]
    assert reading.probabilities[0].tolist() == pytest.approx(own, rel=1e-3)


def test_two_of_a_name_are_told_apart():
    assert distinct(["a", "b", "a"]) == ["a (1)", "b", "a (2)"]


class _Chat(_Names):
    chat_template = "something"

    def encode(self, text):
        return list(text.encode())

    def apply_chat_template(self, messages, **how):
        assert how == {"add_generation_prompt": True, "tokenize": True, "return_dict": False}
        if messages[0]["role"] == "system" and messages[0]["content"] == "no":
            raise ValueError("roles must\nalternate")
        return [len(messages), *messages[-1]["content"].encode()]


def test_a_prompt_as_text_or_as_a_chat():
    assert Prompt("hi").ids(_Chat()) == [104, 105]
    assert Prompt("hi", chat=True).ids(_Chat()) == [1, 104, 105]
    assert Prompt("hi", "be brief", chat=True).ids(_Chat()) == [2, 104, 105]


@pytest.mark.parametrize(
    ("prompt", "tokenizer", "message"),
    [
        (Prompt("  "), _Chat(), "the prompt is empty; type a text"),
        (Prompt("hi", chat=True), _Names(), "the tokenizer has no chat template; ask without it"),
        (Prompt("hi", "no", chat=True), _Chat(), r"refuses the messages \(roles must alternate\); leave the system"),
    ],
)
def test_prompts_that_cannot_be_asked(prompt, tokenizer, message):
    with pytest.raises(WorkbenchError, match=message):
        prompt.ids(tokenizer)


def test_a_real_chat_template(demo_tokenizer):
    assert has_chat_template(demo_tokenizer)
    ids = Prompt("Why?", "Be brief.", chat=True).ids(demo_tokenizer)
    text = demo_tokenizer.decode(ids)
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhy?")
    assert text.endswith("<|im_start|>assistant\n")
