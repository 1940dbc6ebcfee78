"""Sessions on a GPU against the plain torch session: the same logits, whatever the weights, batch and cache."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.tolerances import TOLERANCE, relative_l2
from workbench.checkpoint.random_model import RandomModelSpec
from workbench.errors import BackendError
from workbench.model.config import DYNAMIC, LINEAR, ModelConfig, RopeScaling
from workbench.model.numerics import pack_int4, quantize_int4_groups, quantize_per_channel
from workbench.model.rotary import stretched
from workbench.model.weights import (
    DenseWeight,
    Int4GroupWeight,
    Int8Weight,
    KVScales,
    LayerWeights,
    LinearWeight,
    ModelWeights,
    SmoothQuantWeight,
)
from workbench.recipe import BuildLimits
from workbench.runtime.session import SessionOptions, TorchSession

pytest.importorskip("triton", reason="needs triton")

from workbench.runtime.cuda_session import CudaOptions, CudaSession, bucket_of

HALF = torch.float16
LIMITS = BuildLimits(max_batch_size=64, max_input_len=48, max_output_len=16)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def _config(kv_heads: int) -> ModelConfig:
    spec = RandomModelSpec(layers=3, hidden=256, heads=8, kv_heads=kv_heads, intermediate=352, vocab=320)
    return spec.config


def _linear(kind: str, rows: int, columns: int, seed: int) -> LinearWeight:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator) / columns**0.5
    bias = torch.randn(rows, generator=generator).half() * 0.1 if seed % 2 else None
    if kind == "dense":
        return DenseWeight(weight.half(), bias)
    if kind == "int4":
        integers, scale = quantize_int4_groups(weight, 32)
        return Int4GroupWeight(pack_int4(integers), scale, 32, bias)
    integers, scale = quantize_per_channel(weight)
    return Int8Weight(integers, scale, bias) if kind == "int8" else SmoothQuantWeight(integers, scale, bias)


def _weights(config: ModelConfig, kind: str, *, int8_cache: bool) -> ModelWeights:
    hidden, inner = config.hidden_size, config.intermediate_size
    generator = torch.Generator().manual_seed(0)

    def norm() -> torch.Tensor:
        return (1 + 0.1 * torch.randn(hidden, generator=generator)).half()

    def layer(index: int) -> LayerWeights:
        return LayerWeights(
            attention_norm=norm(),
            qkv=_linear(kind, config.qkv_features, hidden, 10 * index + 1),
            o=_linear(kind, hidden, config.num_heads * config.head_dim, 10 * index + 3),
            mlp_norm=norm(),
            gate_up=_linear(kind, 2 * inner, hidden, 10 * index + 4),
            down=_linear(kind, hidden, inner, 10 * index + 6),
            kv_scales=KVScales(torch.tensor(0.03), torch.tensor(0.03)) if int8_cache else None,
        )

    embedding = torch.randn(config.vocab_size, hidden, generator=generator).half()
    head = DenseWeight((torch.randn(config.vocab_size, hidden, generator=generator) / hidden**0.5).half())
    return ModelWeights([layer(index) for index in range(config.num_layers)], embedding, norm(), head)


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
    weights = _weights(config, kind, int8_cache=int8_cache)
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
    weights = _weights(config, "dense", int8_cache=False)
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
    weights = _weights(config, "int4", int8_cache=False)
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
def test_taps_are_those_of_the_plain_session() -> None:
    config = _config(4)
    weights = _weights(config, "w8a8", int8_cache=False)
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
    session = CudaSession(config, _weights(config, "dense", int8_cache=False), CudaOptions(HALF, LIMITS))
    with pytest.raises(RuntimeError, match="before any prefill"):
        session.decode_greedy()
    with pytest.raises(RuntimeError, match="after a prefill of 0 rows"):
        session.decode(torch.tensor([1]))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_the_message_says_what_to_use() -> None:
    config = _config(4)
    with pytest.raises(BackendError, match="no CUDA GPU; use the CPU"):
        CudaSession(config, replace(_weights(config, "dense", int8_cache=False), layers=[]), CudaOptions())


@pytest.mark.parametrize(("batch", "bucket"), [(1, 1), (2, 2), (3, 4), (5, 8), (8, 8), (9, 16), (17, 24), (64, 64)])
def test_buckets(batch: int, bucket: int) -> None:
    assert bucket_of(batch) == bucket
