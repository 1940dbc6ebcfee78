"""The model over its op sets: the hardest users of the protocol, on a two-layer random model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.random_model import SMALL, random_weights
from tests.tolerances import TOLERANCE, relative_l2
from workbench.backends.torch_ops import TorchOps
from workbench.checkpoint.sharding import shard
from workbench.engine.network import DecoderNetwork, build_network
from workbench.model.internlm import InternLM
from workbench.model.ops import LayerCache, NewRows, Step, WholeCache
from workbench.model.rotary import rotary_tables
from workbench.model.taps import tap_names
from workbench.model.weights import DenseWeight, Int8Weight, ModelWeights, SmoothQuantWeight
from workbench.parallel.communicator import Communicator, ThreadGroup
from workbench.parallel.mapping import Mapping
from workbench.recipe import BuildLimits

LIMITS = BuildLimits(max_batch_size=4, max_input_len=12, max_output_len=4)
IDS = torch.tensor([[3, 4, 5, 6, 7], [9, 8, 0, 0, 0], [1, 2, 3, 4, 0]])
LAST = torch.tensor([4, 1, 3], dtype=torch.int32)
STEP = Step(IDS, torch.arange(5).expand(3, 5).contiguous(), torch.zeros(3, dtype=torch.int32), LAST)


def caches(count: int, dtype: torch.dtype, kv_heads: int = SMALL.num_kv_heads) -> list[LayerCache[Tensor]]:
    shape = (3, kv_heads, LIMITS.max_seq_len, SMALL.head_dim)
    return [LayerCache(torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)) for _ in range(count)]


def model(weights: ModelWeights, mapping: Mapping | None = None) -> InternLM:
    return InternLM(SMALL, weights, rotary_tables(SMALL, LIMITS.max_seq_len), mapping)


def torch_logits(weights: ModelWeights, dtype: torch.dtype = torch.float32, cache: torch.dtype | None = None) -> Tensor:
    logits = model(weights).forward(TorchOps(dtype), STEP, caches(SMALL.num_layers, cache or dtype)).logits
    assert logits is not None
    return logits


def interpreted(
    weights: ModelWeights, dtype: torch.dtype, mapping: Mapping | None = None
) -> tuple[DecoderNetwork, Any]:
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    from workbench.engine.kernels import collecting_logger

    builder = trt.Builder(collecting_logger(trt))
    return build_network(trt, builder, model(weights, mapping), dtype, LIMITS), trt


def run_network(
    network: DecoderNetwork,
    trt: Any,
    cache: torch.dtype,
    more: dict[str, Tensor] | None = None,
    collective: Callable[[str, Tensor], Tensor] | None = None,
) -> dict[str, Tensor]:
    from workbench.engine.interpreter import Interpreter

    feeds = {
        "input_ids": IDS.int(),
        "position_ids": STEP.positions,
        "start": STEP.start,
        "last_token": LAST,
        **(more or {}),
    }
    kept = zip(
        network.model.layer_indices,
        caches(len(network.model.layer_indices), cache, network.model.num_kv_heads),
        strict=True,
    )
    for index, held in kept:
        feeds |= {f"past_key.{index}": held.key, f"past_value.{index}": held.value}
    interpreter = Interpreter(trt, network.network, network.record.constants, collective=collective)
    return interpreter.run({name: feeds[name] for name in network.input_names})


@pytest.mark.parametrize("kind", [DenseWeight, Int8Weight, SmoothQuantWeight])
@pytest.mark.parametrize("int8_cache", [False, True])
def test_network_equals_torch(kind: type, int8_cache: bool) -> None:
    weights = random_weights(SMALL, torch.float16, kind, int8_cache=int8_cache)
    cache = torch.int8 if int8_cache else torch.float16
    expected = torch_logits(weights, torch.float16, cache)
    found = run_network(*interpreted(weights, torch.float16), cache)
    assert relative_l2(found["logits"], expected) < TOLERANCE[torch.float16]["model"]


def test_int8_cache_returns_only_new_rows() -> None:
    weights = random_weights(SMALL, torch.float32, int8_cache=True)
    output = model(weights).forward(TorchOps(torch.float32), STEP, caches(2, torch.int8))
    assert all(isinstance(update, NewRows) for update in output.updates)
    assert output.updates[0].key.shape == (3, SMALL.num_kv_heads, 5, SMALL.head_dim)
    assert output.updates[0].key.dtype == torch.int8
    network, trt = interpreted(weights, torch.float32)
    assert {name for name in network.output_names if name != "logits"} == {
        f"new_{part}.{layer}" for part in ("key", "value") for layer in range(2)
    }
    found = run_network(network, trt, torch.int8)
    difference = (found["new_value.1"].int() - output.updates[1].value.int()).abs()
    assert difference.max() <= 1


def test_dense_cache_returns_the_whole_cache() -> None:
    held = caches(2, torch.float32)
    output = model(random_weights()).forward(TorchOps(torch.float32), STEP, held)
    assert all(isinstance(update, WholeCache) for update in output.updates)
    assert output.updates[1].key[:, :, :5].abs().sum() > 0
    assert held[1].key.abs().sum() == 0, "the plain op set does not write in place"


def test_smoothquant_quantizes_each_token_by_itself() -> None:
    weights = random_weights(SMALL, torch.float32, SmoothQuantWeight)
    first = weights.layers[0].qkv
    ops = TorchOps(torch.float32)
    x = torch.randn(2, 3, SMALL.hidden_size, generator=torch.Generator().manual_seed(0))
    alone = ops.linear(x[:, :1], first, "layers.0.attention.qkv")
    louder = torch.cat([x[:, :1], x[:, 1:] * 1000], dim=1)
    assert torch.equal(ops.linear(louder, first, "layers.0.attention.qkv")[:, :1], alone)


def run_ranks(weights: ModelWeights, tp: int, pp: int, dtype: torch.dtype) -> list[Tensor]:
    """Logits of every rank of the last stage; ranks are threads in lockstep."""
    stages = [ThreadGroup(tp) for _ in range(pp)]
    line = ThreadGroup(tp * pp)

    class Rank:
        """All-reduce within the stage, send and receive along the pipeline."""

        def __init__(self, mapping: Mapping) -> None:
            self.rank, self.size = mapping.tp_rank, tp
            self.stage = stages[mapping.pp_rank].member(mapping.tp_rank)
            self.line = line.member(mapping.rank)

        def all_reduce(self, tensor: Tensor) -> Tensor:
            return self.stage.all_reduce(tensor)

        def send(self, tensor: Tensor, to: int) -> None:
            self.line.send(tensor, to)

        def receive(self, source: int) -> Tensor:
            return self.line.receive(source)

    def rank(number: int) -> Tensor | None:
        mapping = Mapping(tp, pp, number)
        communicator: Communicator = Rank(mapping)
        ops = TorchOps(dtype, communicator, neighbours=(number - tp, number + tp))
        part = model(shard(weights, SMALL, mapping), mapping)
        held = caches(len(part.layer_indices), dtype, part.num_kv_heads)
        return part.forward(ops, STEP, held).logits

    with ThreadPoolExecutor(tp * pp) as pool:
        results = list(pool.map(rank, range(tp * pp)))
    assert all(logits is None for logits in results[:-tp])
    return [logits for logits in results[-tp:] if logits is not None]


@pytest.mark.parametrize(("tp", "pp"), [(2, 1), (1, 2), (2, 2)])
@pytest.mark.parametrize("kind", [DenseWeight, Int8Weight])
def test_ranks_equal_one(kind: type, tp: int, pp: int) -> None:
    weights = random_weights(SMALL, torch.float32, kind)
    expected = torch_logits(weights)
    for logits in run_ranks(weights, tp, pp, torch.float32):
        assert relative_l2(logits, expected) < TOLERANCE[torch.float32]["model"]


def test_tensor_parallel_networks_equal_one() -> None:
    weights = random_weights(SMALL, torch.float32)
    expected = torch_logits(weights)
    group = ThreadGroup(2)

    def rank(number: int) -> Tensor:
        mapping = Mapping(2, 1, number)
        network, trt = interpreted(shard(weights, SMALL, mapping), torch.float32, mapping)
        member = group.member(number)
        return run_network(network, trt, torch.float32, collective=lambda _, x: member.all_reduce(x))["logits"]

    with ThreadPoolExecutor(2) as pool:
        for logits in pool.map(rank, range(2)):
            assert relative_l2(logits, expected) < TOLERANCE[torch.float32]["model"]


def test_pipeline_stage_networks_equal_one() -> None:
    weights = random_weights(SMALL, torch.float32)
    hidden: dict[str, Tensor] = {}
    for number in range(2):
        mapping = Mapping(1, 2, number)
        network, trt = interpreted(shard(weights, SMALL, mapping), torch.float32, mapping)
        assert ("input_ids" in network.input_names) == (number == 0)
        found = run_network(network, trt, torch.float32, more=hidden)
        hidden = {"hidden_in": found["hidden_out"]} if number == 0 else {}
    assert relative_l2(found["logits"], torch_logits(weights)) < TOLERANCE[torch.float32]["model"]


def test_every_declared_tap_is_offered_in_order_by_every_op_set() -> None:
    weights = random_weights()
    met: list[str] = []
    ops = TorchOps(torch.float32, on_tap=lambda name, _: met.append(name))
    model(weights).forward(ops, STEP, caches(2, torch.float32))
    assert met == tap_names(SMALL.num_layers)
    network, _ = interpreted(weights, torch.float32)
    assert list(network.record.taps) == tap_names(SMALL.num_layers)


def test_float16_survives_a_residual_of_21500() -> None:
    weights = random_weights(SMALL, torch.float16)
    assert weights.embedding is not None
    weights.embedding[:, 3] = 21500.0
    exact = dataclasses.replace(weights)
    expected = torch_logits(exact, torch.float64)
    found = torch_logits(weights, torch.float16)
    assert torch.isfinite(found).all()
    assert relative_l2(found, expected) < 10 * TOLERANCE[torch.float16]["model"]
