"""The engine session over the interpreter in the place of TensorRT's execution context."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.random_model import SMALL, random_weights
from tests.tolerances import TOLERANCE, relative_l2
from workbench.checkpoint.unified import load_checkpoint
from workbench.engine.build import network_of
from workbench.engine.interpreted import InterpretedContext
from workbench.engine.kernels import collecting_logger
from workbench.engine.network import DECODE_PROFILE, PREFILL_PROFILE, build_network
from workbench.engine.session import EngineSession, EngineShape
from workbench.errors import BackendError, LimitError
from workbench.evaluation.hf_reference import HFReference
from workbench.model.config import ModelConfig
from workbench.model.internlm import InternLM
from workbench.model.rotary import rotary_tables
from workbench.model.weights import DenseWeight, Int8Weight, ModelWeights
from workbench.recipe import BuildLimits, Recipe
from workbench.runtime.generate import generate
from workbench.runtime.session import SessionOptions, TorchSession

trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")

LIMITS = BuildLimits(max_batch_size=3, max_input_len=16, max_output_len=12)
PROMPTS = [[5, 9, 11, 60, 3], [7], [12, 13, 14]]


def open_session(
    weights: ModelWeights, dtype: torch.dtype, *, config: ModelConfig = SMALL, int8_cache: bool = False
) -> EngineSession:
    model = InternLM(config, weights, rotary_tables(config, LIMITS.max_seq_len))
    network = build_network(trt, trt.Builder(collecting_logger(trt)), model, dtype, LIMITS)
    shape = EngineShape(config, LIMITS, torch.int8 if int8_cache else dtype, int8_cache, torch.device("cpu"))
    return EngineSession(InterpretedContext(trt, network), shape, (network,))


@pytest.mark.parametrize("kind", [DenseWeight, Int8Weight])
@pytest.mark.parametrize("int8_cache", [False, True])
def test_ragged_generation_equals_the_oracle(kind: type, int8_cache: bool) -> None:
    weights = random_weights(SMALL, torch.float32, kind, int8_cache=int8_cache)
    engine = open_session(weights, torch.float32, int8_cache=int8_cache)
    oracle = TorchSession(SMALL, weights, SessionOptions(torch.float32, "torch", limits=LIMITS))
    found = generate(engine, PROMPTS, 8, eos_token_ids=())
    assert found == generate(oracle, PROMPTS, 8, eos_token_ids=())
    assert all(len(row) == 8 for row in found)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_logits_in_half_precision(dtype: torch.dtype) -> None:
    weights = random_weights(SMALL, dtype)
    engine = open_session(weights, dtype)
    oracle = TorchSession(SMALL, weights, SessionOptions(dtype, "torch", limits=LIMITS))
    assert relative_l2(engine.prefill(PROMPTS), oracle.prefill(PROMPTS)) < TOLERANCE[dtype]["model"]
    ids = torch.tensor([4, 5, 6])
    assert relative_l2(engine.decode(ids), oracle.decode(ids)) < TOLERANCE[dtype]["model"]


def test_a_new_prefill_forgets_the_last_one() -> None:
    engine = open_session(random_weights(), torch.float32)
    first = engine.prefill(PROMPTS).clone()
    engine.decode(torch.tensor([1, 2, 3]))
    engine.prefill([[90, 91, 92, 93]])
    assert torch.equal(engine.prefill(PROMPTS), first)


def test_profiles_are_switched() -> None:
    engine = open_session(random_weights(), torch.float32)
    context = engine._context
    assert isinstance(context, InterpretedContext)
    engine.prefill(PROMPTS)
    assert context.profile == PREFILL_PROFILE
    engine.decode(torch.tensor([1, 2, 3]))
    assert context.profile == DECODE_PROFILE


def test_the_cache_is_updated_in_place() -> None:
    engine = open_session(random_weights(), torch.float32)
    engine.prefill(PROMPTS)
    address, before = engine._caches["key.1"].data_ptr(), engine._caches["key.1"].clone()
    engine.decode(torch.tensor([1, 2, 3]))
    assert engine._caches["key.1"].data_ptr() == address
    changed = (engine._caches["key.1"] != before).any(-1).any(1)
    assert changed.nonzero().tolist() == [[0, 5], [1, 1], [2, 3]], "one row each, at the sequence's own position"


def test_a_refusal_of_the_context_says_what_was_refused() -> None:
    engine = open_session(random_weights(), torch.float32)
    # A cache of another shape than the network's: what a wrong allocation would bind.
    engine.config = dataclasses.replace(SMALL, head_dim=SMALL.head_dim + 1)
    with pytest.raises(BackendError, match=r"TensorRT refused past_key\.0 \[3, 2, 28, 9\].*--backend cpu"):
        engine.prefill(PROMPTS)


def test_a_session_is_used_in_order_and_not_after_its_end() -> None:
    engine = open_session(random_weights(), torch.float32)
    with pytest.raises(RuntimeError, match=r"decode of ids \[3\] after a prefill of 0 rows"):
        engine.decode(torch.tensor([1, 2, 3]))
    engine.prefill(PROMPTS)
    with pytest.raises(RuntimeError, match=r"decode of ids \[2\] after a prefill of 3 rows"):
        engine.decode(torch.tensor([1, 2]))
    engine.close()
    with pytest.raises(RuntimeError, match="after a prefill of 0 rows"):
        engine.decode(torch.tensor([1, 2, 3]))
    with pytest.raises(RuntimeError, match="this session is closed"):
        engine.prefill(PROMPTS)


def test_limits_are_named() -> None:
    engine = open_session(random_weights(), torch.float32)
    with pytest.raises(LimitError, match="max_batch_size 3"):
        engine.prefill([[1]] * 4)
    with pytest.raises(LimitError, match="max_input_len 16"):
        engine.prefill([[1] * 17])
    engine.prefill([[1] * 16])
    for _ in range(12):
        engine.decode(torch.tensor([1]))
    with pytest.raises(LimitError, match=r"max_output_len 12"):
        engine.decode(torch.tensor([1]))


@pytest.mark.parametrize(
    ("dtype", "weights", "tokens"),
    [
        ("float32", None, 6),
        pytest.param("float32", None, 32, marks=pytest.mark.slow),
    ],
)
def test_greedy_text_of_the_demo_engine_is_that_of_hugging_face(
    dtype: str,
    weights: None,
    tokens: int,
    demo_model_dir: Path,
    demo_tokenizer: Any,
    demo_checkpoint: Callable[[Recipe], Path],
) -> None:
    limits = BuildLimits(max_batch_size=2, max_input_len=64, max_output_len=32)
    checkpoint = load_checkpoint(demo_checkpoint(Recipe(dtype=dtype, weights=weights, build=limits)))
    builder = trt.Builder(collecting_logger(trt))
    network = network_of(trt, builder, checkpoint, checkpoint.recipe)
    shape = EngineShape(checkpoint.config, limits, torch.float32, False, torch.device("cpu"))
    engine = EngineSession(InterpretedContext(trt, network), shape, (network,))
    texts = ["Large language models are", "The capital of France is a city of"]
    prompts = [demo_tokenizer(text)["input_ids"] for text in texts]
    found = generate(engine, prompts, tokens)
    reference = HFReference.open(demo_model_dir, torch.float32)
    assert found == [reference.generate([prompt], tokens)[0] for prompt in prompts]
