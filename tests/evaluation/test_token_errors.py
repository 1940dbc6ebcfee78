from __future__ import annotations

import math

import pytest
import torch

from workbench.errors import WorkbenchError
from workbench.evaluation.token_errors import TokenErrors

IDS = torch.arange(10).view(2, 5)


def _errors(values, texts=(tuple("abcde"), tuple("fghij"))):
    return TokenErrors(IDS, {"logits": torch.tensor(values, dtype=torch.float32).view(2, 5)}, texts)


def test_the_worst_come_first_with_their_neighbours():
    errors = _errors([1, 2, 3, 4, 5, 9, 0, 0, 8, 0])
    worst = errors.worst("logits", 3)
    assert list(worst["relative_l2"]) == [9, 8, 5]
    assert list(worst["text"]) == ["f", "i", "e"]
    assert list(worst["before"]) == ["", "fgh", "abcd"]
    assert list(worst["after"]) == ["ghij", "j", ""]
    assert list(worst["id"]) == [5, 8, 4]
    assert list(zip(worst["window"], worst["position"], strict=True)) == [(1, 0), (1, 3), (0, 4)]


def test_what_is_not_a_number_is_the_worst():
    assert _errors([1, 2, math.nan, 4, 5, 9, 0, 0, 8, 0]).worst("logits", 1)["text"].item() == "c"


def test_without_texts_there_are_ids():
    errors = _errors(range(10), ())
    assert errors.window_texts(1) == ("<5>", "<6>", "<7>", "<8>", "<9>")
    assert errors.worst("logits", 1)["text"].item() == "<9>"


def test_an_unknown_tap():
    with pytest.raises(WorkbenchError, match="tap 'embedding' has no errors per token; choose one"):
        _errors(range(10)).of("embedding")
