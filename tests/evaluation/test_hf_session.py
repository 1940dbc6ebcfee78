"""Hugging Face through our session's calls: the same logits as its own, token by token."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from tests.tolerances import HF_TAPS, relative_l2
from workbench.errors import LimitError
from workbench.evaluation.hf_reference import HFReference
from workbench.evaluation.hf_session import HFSession
from workbench.runtime.generate import generate


@pytest.fixture(scope="module")
def reference(small_model):
    model = small_model(kv_heads=2)
    return HFReference.from_weights(model.config, model.weights, torch.float32)


def test_tokens_one_by_one_are_as_all_at_once(reference):
    ids = torch.tensor([[5, 9, 11, 40, 3]])
    whole = reference.logits(ids)[0]
    session = HFSession(reference)
    rows = [session.prefill([[5, 9]]), *(session.decode(torch.tensor([token])) for token in (11, 40, 3))]
    assert all(row.shape == (1, 97) for row in rows)
    assert relative_l2(torch.cat(rows), whole[1:]) < HF_TAPS[torch.float32]
    assert torch.equal(session.logits(ids)[0], whole)


def test_it_generates_what_hugging_face_generates(reference):
    assert generate(HFSession(reference), [[5, 9, 11]], 8) == reference.generate([[5, 9, 11]], 8)


def test_scoring_leaves_a_generation_alone(reference):
    session, other = HFSession(reference), HFSession(reference)
    for each in (session, other):
        each.prefill([[5, 9]])
    session.logits(torch.tensor([[1, 2, 3]]))
    assert torch.equal(session.decode(torch.tensor([7])), other.decode(torch.tensor([7])))


def test_one_prompt_at_a_time(reference):
    with pytest.raises(LimitError, match="2 prompts in one batch; allowed: up to max_batch_size 1"):
        HFSession(reference).prefill([[5], [6]])


def test_limits_are_the_model_s(reference):
    session = HFSession(reference)
    session.prefill([[5] * 64])
    with pytest.raises(LimitError, match="the sequence has 65 tokens"):
        session.decode(torch.tensor([5]))
    with pytest.raises(LimitError, match="token id 97"):
        session.prefill([[97]])


def test_decode_needs_a_prompt(reference):
    session = HFSession(reference)
    with pytest.raises(RuntimeError, match="after a prefill of 0 rows"):
        session.decode(torch.tensor([5]))
    session.prefill([[5]])
    session.close()
    with pytest.raises(RuntimeError, match="after a prefill of 0 rows"):
        session.decode(torch.tensor([5]))


def test_a_closed_session_lets_go_of_the_model(small_model):
    model = small_model()
    session = HFSession(HFReference.from_weights(model.config, model.weights, torch.float32))
    session.prefill([[5]])
    held = weakref.ref(session.reference.model)
    session.close()
    gc.collect()
    assert held() is None
    assert session.config is model.config
    with pytest.raises(RuntimeError, match="is closed; open another"):
        session.logits(torch.tensor([[5]]))
