"""The most probable token of a row: on a GPU where there is one, in Triton's interpreter otherwise."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="needs triton")

from workbench.backends.kernels.choice import ELEMENTS, choose_most_probable

pytestmark = [pytest.mark.usefixtures("poisoned")]
NAN, INF = float("nan"), float("inf")


def _chosen(logits: torch.Tensor) -> list[int]:
    ids = torch.full((len(logits),), -7, device=logits.device)
    start = torch.arange(len(logits), dtype=torch.int32, device=logits.device)
    choose_most_probable(logits, ids, start)
    assert start.tolist() == [row + 1 for row in range(len(logits))]
    return ids.tolist()


@pytest.mark.parametrize("vocab", [1, 5, 1000, ELEMENTS, 2 * ELEMENTS + 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_the_most_probable_token_is_chosen(triton_device: str, vocab: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(vocab)
    logits = (torch.randn(3, vocab, generator=generator) - 5).to(dtype).to(triton_device)
    logits[2] = -logits[2].abs() - 100  # all below zero
    assert _chosen(logits) == logits.float().argmax(-1).tolist()


def test_rows_apart_are_refused(triton_device: str) -> None:
    with pytest.raises(ValueError, match="rows must follow each other"):
        _chosen(torch.zeros(4, 8, device=triton_device)[:, :4])


def test_of_equals_the_first_and_nan_before_all(triton_device: str) -> None:
    logits = torch.zeros(6, ELEMENTS + 50, device=triton_device)
    logits[0, [9, 3, ELEMENTS + 1]] = 4.0
    logits[1, [7, ELEMENTS + 2]] = torch.tensor([INF, NAN], device=triton_device)
    logits[2] = -INF
    logits[3, 0] = -0.0
    logits[4] = -1.0
    logits[4, 11] = -0.5
    logits[5, 40:] = torch.finfo(torch.float32).max
    assert _chosen(logits) == [3, ELEMENTS + 2, 0, 0, 11, 40]
