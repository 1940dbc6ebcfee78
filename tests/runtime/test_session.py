from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.random_model import SMALL, random_weights
from tests.tolerances import TOLERANCE, relative_l2
from workbench.errors import BackendError, LimitError
from workbench.model.weights import DenseWeight, Int8Weight, ModelWeights, SmoothQuantWeight
from workbench.recipe import BuildLimits
from workbench.runtime.session import SessionOptions, TorchSession

PROMPTS = [[5, 9, 11, 60, 3], [7], [12, 13, 14], [90, 2, 33, 4]]
CONTINUED = [[21, 22, 23], [31, 32, 33], [41, 42, 43], [51, 52, 53]]
LIMITS = BuildLimits(max_batch_size=4, max_input_len=40, max_output_len=10)


def session(
    backend: str = "cpu", dtype: torch.dtype = torch.float32, weights: ModelWeights | None = None
) -> TorchSession:
    held = random_weights(dtype=dtype) if weights is None else weights
    return TorchSession(SMALL, held, SessionOptions(dtype, backend, limits=LIMITS))


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("kind", [DenseWeight, Int8Weight, SmoothQuantWeight])
@pytest.mark.parametrize("int8_cache", [False, True])
def test_ragged_batch_equals_one_by_one(backend: str, kind: type, int8_cache: bool) -> None:
    held = session(backend, weights=random_weights(kind=kind, int8_cache=int8_cache))
    together = [held.prefill(PROMPTS)]
    together += [held.decode(torch.tensor(column)) for column in zip(*CONTINUED, strict=True)]
    for row, prompt in enumerate(PROMPTS):
        alone = [held.prefill([prompt])] + [held.decode(torch.tensor([token])) for token in CONTINUED[row]]
        for step, logits in enumerate(alone):
            assert relative_l2(together[step][row], logits[0]) < TOLERANCE[torch.float32]["model"]


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_prefill_and_decode_equal_logits_of_the_whole_sequence(backend: str) -> None:
    held = session(backend)
    ids = torch.tensor([[3, 4, 5, 6, 7, 8]])
    whole = held.logits(ids)
    assert whole.shape == (1, 6, SMALL.vocab_size)
    assert whole.dtype == torch.float32
    steps = [held.prefill([[3, 4, 5]])] + [held.decode(torch.tensor([token])) for token in (6, 7, 8)]
    for position, logits in enumerate(steps, start=2):
        assert relative_l2(logits[0], whole[0, position]) < TOLERANCE[torch.float32]["model"]


def test_logits_does_not_disturb_a_generation_and_offers_taps_once() -> None:
    held = session()
    held.prefill([[3, 4, 5]])
    expected = held.decode(torch.tensor([6]))
    held.prefill([[3, 4, 5]])
    seen: dict[str, torch.Tensor] = {}
    held.logits(torch.tensor([[9, 9, 9, 9]]), on_tap=seen.__setitem__)
    assert seen["layers.1.mlp.down"].shape == (1, 4, SMALL.hidden_size)
    assert seen["layers.0.attention.key"].shape == (1, SMALL.num_kv_heads, 4, SMALL.head_dim)
    count = len(seen)
    assert torch.equal(held.decode(torch.tensor([6])), expected)
    assert len(seen) == count


def test_decode_grows_the_cache_past_its_first_block() -> None:
    config = dataclasses.replace(SMALL, max_position_embeddings=600)
    limits = BuildLimits(max_batch_size=1, max_input_len=300, max_output_len=290)
    held = TorchSession(config, random_weights(config), SessionOptions(torch.float32, limits=limits))
    ids = torch.randint(0, SMALL.vocab_size, (1, 258))
    held.prefill(ids[:, :255].tolist())
    for position in range(255, 258):
        logits = held.decode(ids[:, position])
    assert relative_l2(logits[0], held.logits(ids)[0, -1]) < TOLERANCE[torch.float32]["model"]


def refusal(call: str, *arguments: object) -> str:
    held = session()
    with pytest.raises(LimitError) as raised:
        getattr(held, call)(*arguments)
    return str(raised.value)


def test_no_prompts_are_refused() -> None:
    assert "no prompts were given" in refusal("prefill", [])


def test_a_batch_above_max_batch_size_is_refused() -> None:
    message = refusal("prefill", [[1]] * 5)
    assert "5 prompts in one batch" in message
    assert "max_batch_size 4" in message


def test_an_empty_prompt_is_refused() -> None:
    assert "prompt 2 is empty" in refusal("prefill", [[1], []])


def test_a_prompt_longer_than_max_input_len_is_refused() -> None:
    message = refusal("prefill", [[1] * 41])
    assert "prompt 1 has 41 tokens" in message
    assert "max_input_len 40" in message


@pytest.mark.parametrize("token", [-1, 97])
def test_a_token_outside_the_vocabulary_is_refused(token: int) -> None:
    message = refusal("prefill", [[1], [3, token]])
    assert f"prompt 2 has the token id {token}; allowed: 0 to 96" in message
    assert f"the input has the token id {token}" in refusal("logits", torch.tensor([[token]]))


def test_an_input_without_tokens_is_refused() -> None:
    assert "at least 1 token" in refusal("logits", torch.zeros(1, 0, dtype=torch.int64))


def test_more_tokens_than_positions_are_refused() -> None:
    message = refusal("logits", torch.ones(1, 65, dtype=torch.int64))
    assert "65 tokens" in message
    assert "max_position_embeddings 64" in message


def test_decode_past_max_seq_len_is_refused() -> None:
    held = session()
    held.prefill([[1] * 40, [1]])
    for _ in range(10):
        held.decode(torch.tensor([1, 1]))
    with pytest.raises(LimitError, match=r"a sequence of 51 tokens.*max_input_len 40 [+] max_output_len 10"):
        held.decode(torch.tensor([1, 1]))


def test_decode_past_the_last_position_is_refused() -> None:
    limits = BuildLimits(max_batch_size=1, max_input_len=64, max_output_len=64)
    held = TorchSession(SMALL, random_weights(), SessionOptions(torch.float32, limits=limits))
    held.prefill([[1] * 64])
    with pytest.raises(LimitError, match=r"65 tokens.*max_position_embeddings 64"):
        held.decode(torch.tensor([1]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (SessionOptions(torch.float32, "triton"), "backend 'triton'; allowed: cpu, torch"),
        (
            SessionOptions(torch.float64, "cpu"),
            "backend 'cpu' in float64; allowed: float32, float16, bfloat16; use backend 'torch' for float64",
        ),
        (
            SessionOptions(torch.float32, "cpu", device="meta"),
            "backend 'cpu' on device 'meta'; use backend 'torch' for that device",
        ),
    ],
)
def test_a_backend_that_cannot_run_says_which_can(options: SessionOptions, message: str) -> None:
    with pytest.raises(BackendError) as raised:
        TorchSession(SMALL, random_weights(), options)
    assert message in str(raised.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_cuda_without_a_gpu_is_refused() -> None:
    with pytest.raises(BackendError, match="device 'cuda' is not there: torch finds no CUDA GPU; use device 'cpu'"):
        TorchSession(SMALL, random_weights(), SessionOptions(torch.float32, "torch", device="cuda"))


def test_decode_without_prefill_is_a_programming_error() -> None:
    with pytest.raises(RuntimeError, match="after a prefill of 0 rows"):
        session().decode(torch.tensor([1]))
