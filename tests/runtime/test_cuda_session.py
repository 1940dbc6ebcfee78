"""Sessions on a GPU against the plain torch session: the same logits, whatever the weights, batch and cache."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from tests.runtime.small_models import LIMITS, random_weights, small_config
from tests.tolerances import TOLERANCE, relative_l2
from tests.triton_interpreter import let_the_interpreter_count
from workbench.errors import BackendError, LimitError
from workbench.model.config import DYNAMIC, LINEAR, ModelConfig, RopeScaling
from workbench.model.rotary import stretched
from workbench.recipe import BuildLimits
from workbench.runtime.generate import generate
from workbench.runtime.sampling import SamplingOptions
from workbench.runtime.session import Session, SessionOptions, TokenSession, TorchSession

pytest.importorskip("triton", reason="needs triton")

from workbench.runtime import cuda_session
from workbench.runtime.cuda_session import CudaOptions, CudaSession, bucket_of

HALF = torch.float16
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def _config(kv_heads: int) -> ModelConfig:
    return small_config(kv_heads, intermediate=352)


def _limit(*, integers: bool) -> float:
    """A float16 rounding that falls the other way moves up to 6 % of the integers made from it by one step."""
    return TOLERANCE[HALF]["model"] * (8 if integers else 1)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize(("kind", "kv_heads", "int8_cache"), [
    ("dense", 8, False), ("dense", 2, False), ("dense", 2, True), ("int8", 8, False), ("int4", 4, False),
    ("w8a8", 8, False), ("w8a8", 8, True),
])  # fmt: skip
@pytest.mark.parametrize("batch", [1, 3, 20])
def test_logits_are_those_of_the_plain_session(kind: str, kv_heads: int, int8_cache: bool, batch: int) -> None:
    config = _config(kv_heads)
    weights = random_weights(config, kind, int8_cache=int8_cache)
    plain = TorchSession(config, weights, SessionOptions(HALF, "torch", LIMITS, "cuda"))
    fast = CudaSession(config, weights, CudaOptions(HALF, LIMITS))
    generator = torch.Generator().manual_seed(batch)
    lengths = torch.randint(1, 41, (batch,), generator=generator).tolist()
    prompts = [torch.randint(0, 320, (length,), generator=generator).tolist() for length in lengths]
    limit = _limit(integers=kind == "w8a8" or int8_cache)
    assert relative_l2(fast.prefill(prompts), plain.prefill(prompts)) < limit
    for _ in range(6):
        ids = torch.randint(0, 320, (batch,), generator=generator)
        assert relative_l2(fast.decode(ids), plain.decode(ids)) < limit
    whole = torch.randint(0, 320, (2, 24), generator=generator)
    assert relative_l2(fast.logits(whole), plain.logits(whole)) < limit


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("scaling", [RopeScaling(LINEAR, 4.0), RopeScaling(DYNAMIC, 2.0)], ids=str)
def test_scaled_positions_are_those_of_the_plain_session(scaling: RopeScaling) -> None:
    plain_rope = _config(2)
    config = replace(plain_rope, rope_scaling=scaling)
    config = stretched(config, 2 * config.max_position_embeddings)
    weights = random_weights(config, "dense", int8_cache=False)
    plain = TorchSession(config, weights, SessionOptions(HALF, "torch", LIMITS, "cuda"))
    fast, unscaled = (CudaSession(one, weights, CudaOptions(HALF, LIMITS)) for one in (config, plain_rope))
    prompts, ids = [list(range(40)), list(range(7))], torch.tensor([3, 4])
    expected = plain.prefill(prompts)
    assert relative_l2(fast.prefill(prompts), expected) < _limit(integers=False)
    assert relative_l2(unscaled.prefill(prompts), expected) > _limit(integers=False)
    assert relative_l2(fast.decode(ids), plain.decode(ids)) < _limit(integers=False)


@pytest.mark.gpu
@needs_gpu
def test_greedy_decoding_on_the_device_chooses_what_the_host_would() -> None:
    config = _config(4)
    weights = random_weights(config, "int4", int8_cache=False)
    prompts = [[1, 2, 3], [5, 6, 7, 8, 9]]
    graph = CudaSession(config, weights, CudaOptions(HALF, LIMITS))
    eager = CudaSession(config, weights, CudaOptions(HALF, LIMITS, graphs=False))
    chosen = eager.prefill(prompts).argmax(-1)
    graph.prefill(prompts)
    for _ in range(8):
        found = graph.decode_greedy().clone()
        chosen = eager.decode(chosen.cpu()).argmax(-1)
        assert torch.equal(found, chosen)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("kind", ["dense", "int4", "w8a8"])
@pytest.mark.parametrize("batch", [1, 3, 20])
def test_a_step_waits_for_nothing(kind: str, batch: int) -> None:
    config = _config(4)
    session = CudaSession(config, random_weights(config, kind, int8_cache=False), CudaOptions(HALF, LIMITS))
    session.prefill([[1, 2, 3]] * batch)
    session.decode_greedy()  # captures the graph
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(4):
            session.decode_greedy()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@needs_gpu
def test_taps_are_those_of_the_plain_session() -> None:
    config = _config(4)
    weights = random_weights(config, "w8a8", int8_cache=False)
    plain = TorchSession(config, weights, SessionOptions(HALF, "torch", LIMITS, "cuda"))
    fast = CudaSession(config, weights, CudaOptions(HALF, LIMITS))
    ids = torch.arange(20)[None]
    seen: dict[str, torch.Tensor] = {}
    found: dict[str, torch.Tensor] = {}
    plain.logits(ids, lambda name, x: seen.__setitem__(name, x.clone()))
    fast.logits(ids, lambda name, x: found.__setitem__(name, x.clone()))
    assert list(found) == list(seen)
    for name, value in seen.items():
        assert relative_l2(found[name], value) < _limit(integers=True), name


@pytest.mark.gpu
@needs_gpu
def test_decoding_needs_a_prefill() -> None:
    config = _config(4)
    session = CudaSession(config, random_weights(config, "dense", int8_cache=False), CudaOptions(HALF, LIMITS))
    with pytest.raises(RuntimeError, match="before any prefill"):
        session.decode_greedy()
    with pytest.raises(RuntimeError, match="after a prefill of 0 rows"):
        session.decode(torch.tensor([1]))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_the_message_says_what_to_use() -> None:
    config = _config(4)
    with pytest.raises(BackendError, match="no CUDA GPU; use the CPU"):
        CudaSession(config, replace(random_weights(config, "dense", int8_cache=False), layers=[]), CudaOptions())


@pytest.mark.parametrize(("batch", "most", "bucket"), [
    (1, 64, 1), (2, 64, 2), (3, 64, 4), (3, 3, 4), (5, 64, 8), (5, 5, 8), (6, 7, 8), (8, 8, 8), (9, 64, 16),
    (9, 9, 9), (17, 64, 24), (63, 63, 63), (64, 64, 64),
])  # fmt: skip
def test_buckets(batch: int, most: int, bucket: int) -> None:
    assert bucket_of(batch, most) == bucket


SAMPLED = SamplingOptions(
    temperature=1.2, top_k=40, top_p=0.95, repetition_penalty=1.1, frequency_penalty=0.1, random_seed=4
)


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> Iterator[CudaSession]:
    """On a GPU, or with Triton's kernels interpreted and no graph."""
    on_gpu = torch.cuda.is_available()
    if not on_gpu and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("needs a CUDA device, or TRITON_INTERPRET=1 for Triton's interpreter")
    if not on_gpu:
        let_the_interpreter_count()
    monkeypatch.setattr(cuda_session, "require_gpu", lambda *_, **__: None)
    monkeypatch.setattr(cuda_session, "ROOM", 8)
    config = replace(_config(2), num_layers=1, max_position_embeddings=40)
    limits = BuildLimits(max_batch_size=4, max_input_len=32, max_output_len=48)
    options = CudaOptions(HALF, limits, "cuda" if on_gpu else "cpu", graphs=on_gpu)
    held = CudaSession(config, random_weights(config, "dense", int8_cache=False), options)
    yield held
    held.close()


def _plain(session: CudaSession) -> TorchSession:
    weights = random_weights(session.config, "dense", int8_cache=False)
    return TorchSession(session.config, weights, SessionOptions(HALF, "torch", session.limits))


def test_the_cache_grows_as_it_is_needed(session: CudaSession) -> None:
    """Step by step through two places where it is made anew, up to the last position."""
    plain, prompts = _plain(session), [[1, 2, 3, 4, 5], [9]]
    assert relative_l2(session.prefill(prompts).cpu(), plain.prefill(prompts)) < _limit(integers=False)
    rooms = []
    for step in range(16):
        ids = torch.tensor([step, 2 * step])
        assert relative_l2(session.decode(ids).cpu(), plain.decode(ids)) < _limit(integers=False)
        assert session._decoding is not None
        rooms.append(session._decoding.max_len)
    assert rooms == [16] * 11 + [32] * 5
    session.prefill([[1] * 31])
    for _ in range(9):
        session.decode(torch.tensor([1]))
    assert session._decoding is not None
    assert session._decoding.max_len == 40
    with pytest.raises(LimitError, match="max_position_embeddings 40"):
        session.decode(torch.tensor([1]))


@pytest.mark.parametrize("options", [SamplingOptions(), SAMPLED], ids=["greedy", "sampled"])
def test_texts_are_those_that_the_host_would_choose(session: CudaSession, options: SamplingOptions) -> None:
    """The same session through ``decode``: only who chooses differs."""

    class Hosted:
        """Hides that the session can choose."""

        config, limits, backend = session.config, session.limits, session.backend
        prefill, decode, close = session.prefill, session.decode, session.close

    assert isinstance(session, TokenSession)
    hosted: Session = Hosted()
    assert not isinstance(hosted, TokenSession)
    prompts = [[1, 2, 3, 4], [5], [1, 2, 3, 4]]
    expected = generate(hosted, prompts, 8, eos_token_ids=[], sampling=options)
    assert generate(session, prompts, 8, eos_token_ids=[], sampling=options) == expected
    end = expected[0][3]
    assert generate(session, prompts, 8, eos_token_ids=[end], sampling=options) == [
        row[: row.index(end)] if end in row else row for row in expected
    ]
    assert len(generate(session, [[1] * 32], 8, eos_token_ids=[], sampling=options)[0]) == 8  # to the last position


def test_a_cache_without_memory_says_what_to_do(session: CudaSession, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.cuda.OutOfMemoryError

    monkeypatch.setattr(session, "_new_caches", full)
    with pytest.raises(LimitError, match=r"a KV cache of 4 x 16 tokens takes 0\.0 GB, which the GPU .*; run fewer"):
        session.prefill([[1], [2], [3] * 7])
