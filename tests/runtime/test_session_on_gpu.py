"""The torch op set on a CUDA device against the same on the CPU."""

from __future__ import annotations

import pytest
import torch

from tests.random_model import SMALL, random_weights
from tests.tolerances import TOLERANCE, relative_l2
from workbench.model.weights import DenseWeight, Int8Weight, SmoothQuantWeight
from workbench.recipe import BuildLimits
from workbench.runtime.generate import generate
from workbench.runtime.session import SessionOptions, TorchSession

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

LIMITS = BuildLimits(max_batch_size=4, max_input_len=40, max_output_len=10)
PROMPTS = [[5, 9, 11, 60, 3], [7], [12, 13, 14], [90, 2, 33, 4]]


def session(dtype: torch.dtype, kind: type, device: str, *, int8_cache: bool = False) -> TorchSession:
    weights = random_weights(dtype=dtype, kind=kind, int8_cache=int8_cache)
    return TorchSession(SMALL, weights, SessionOptions(dtype, "torch", limits=LIMITS, device=device))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", [DenseWeight, Int8Weight, SmoothQuantWeight])
@pytest.mark.parametrize("int8_cache", [False, True])
def test_logits_equal_those_of_the_cpu(dtype: torch.dtype, kind: type, int8_cache: bool) -> None:
    here, there = (session(dtype, kind, device, int8_cache=int8_cache) for device in ("cpu", "cuda"))
    # One integer that rounds the other way is worth more than float32's noise.
    integers = kind is SmoothQuantWeight or int8_cache
    limit = TOLERANCE[torch.float16 if integers and dtype == torch.float32 else dtype]["model"]
    assert relative_l2(there.prefill(PROMPTS).cpu(), here.prefill(PROMPTS)) < limit
    ids = torch.tensor([4, 5, 6, 7])
    assert relative_l2(there.decode(ids.cuda()).cpu(), here.decode(ids)) < limit


def test_greedy_tokens_equal_those_of_the_cpu() -> None:
    found = [generate(session(torch.float32, DenseWeight, device), PROMPTS, 8) for device in ("cpu", "cuda")]
    assert found[0] == found[1]
