"""The decode kernel's own source on a CPU: all kinds of weights and caches beside the plain session."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="needs triton")

from tests.cuda_on_cpu import cpu_steps
from tests.cuda_on_cpu.cpu_steps import HALF, Pair, pair_of
from tests.cuda_on_cpu.cuda_on_cpu import RaceError, needs_compiler
from tests.runtime.small_models import random_linear, random_weights, small_config
from tests.tolerances import TOLERANCE, relative_l2
from workbench.backends.kernels import decode_shape, decode_step
from workbench.backends.kernels.decode_shape import StepTuning, segment
from workbench.backends.kernels.decode_step import ROWS
from workbench.model.weights import KVScales, LayerWeights, ModelWeights

pytestmark = [needs_compiler, pytest.mark.usefixtures("one_thread")]
SEEDS = (1, 2)
BARRIER = "    consumers_meet();\n    if (here % 32 == 0) warp_values[warp] = value;\n"  # of row_reduced()
LONG = {"intermediate": 5120}
LONG_AND_ODD = {"intermediate": 5184}  # values of k that fill neither a step of INT4 nor a chunk
LINEARS = ("qkv", "o", "gate_up", "down")
EIGHT = [9, 3, 1, 40, 30, 20, 11, 10]


@dataclass(frozen=True)
class Case:
    """One model and how the kernel runs it.

    Attributes:
        sizes: of :func:`small_config`.
        rows_bytes: of shared memory for rows of x: with few of them long rows do not fit.
        quick: looked through for races in every run; together they go through all parts of the kernel.
    """

    kind: str
    lengths: list[int]
    tuning: StepTuning
    blocks: int = 2
    kv_heads: int = 4
    int8_cache: bool = False
    sizes: dict[str, int] = field(default_factory=dict)
    rows_bytes: int = decode_shape.ROWS_BYTES
    quick: bool = False

    @property
    def name(self) -> str:
        cache = " kv8" if self.int8_cache else ""
        return f"{self.kind}{cache} x{len(self.lengths)} {self.blocks} blocks {self.sizes.get('intermediate', '')}"

    @property
    def limit(self) -> float:
        """Integers that round the other way weigh more, as on a GPU."""
        exact = not (self.int8_cache or self.kind.startswith(("w8a8", "static")))
        return TOLERANCE[HALF]["model"] * (1 if exact else 8)


CASES = [
    Case("dense", [5], StepTuning(stages=6)),
    Case("dense", [37], StepTuning(stages=5, splits=4, split_rows=8), 3, sizes={"intermediate": 352}, quick=True),
    Case("dense", [7, 40], StepTuning(stages=4, splits=3, split_rows=8), kv_heads=8, int8_cache=True),
    Case("dense", [7, 40, 3, 2], StepTuning(stages=4, units=2), blocks=3, kv_heads=2),  # odd numbers of units
    Case("dense", EIGHT, StepTuning(stages=3, units=3, split_rows=8), 3, sizes=LONG, rows_bytes=32 << 10),
    Case("static", EIGHT[:2], StepTuning(stages=3, units=3), 3, sizes=LONG, rows_bytes=8 << 10),
    Case("int8", EIGHT[:4], StepTuning(stages=4), 3, sizes=LONG_AND_ODD, rows_bytes=16 << 10),
    Case("int4_64", EIGHT, StepTuning(stages=3, units=3), 3, sizes=LONG_AND_ODD, rows_bytes=32 << 10, quick=True),
    Case("dense", EIGHT, StepTuning(stages=3), blocks=5, sizes={"hidden": 1024}),  # o's rows are streamed, and fit
    Case("int8", [9], StepTuning(stages=5, units=1), blocks=1),
    Case("int8", EIGHT, StepTuning(stages=5), blocks=3, kv_heads=2, int8_cache=True),
    # o's and down's rows are streamed, as a 7B's are.
    Case("int8", EIGHT, StepTuning(stages=5), 3, 3, int8_cache=True, sizes={"hidden": 1152, "heads": 9}),
    Case("int8", EIGHT, StepTuning(stages=3, units=3), blocks=3, sizes=LONG_AND_ODD, rows_bytes=32 << 10),
    Case("int4_32", [9], StepTuning(stages=5), sizes={"intermediate": 352}),
    Case("int4_64", [9, 30], StepTuning(stages=5, units=5), blocks=3, sizes={"hidden": 512}),
    Case("int4_128", EIGHT, StepTuning(stages=4, in_flight=2), kv_heads=8, int8_cache=True),
    Case("int4_0", [9], StepTuning(stages=5), kv_heads=8),
    Case("w8a8", [9], StepTuning(stages=5), kv_heads=8, sizes={"hidden": 512}),
    Case(
        "w8a8",
        [9, 33],
        StepTuning(stages=3, units=2, splits=3, split_rows=8),
        blocks=3,
        kv_heads=2,
        int8_cache=True,
        quick=True,
    ),
    Case("static", [9, 3], StepTuning(stages=5, units=5), blocks=3),
    Case("dense/w8a8", [9, 3], StepTuning(stages=5)),  # an INT8 head under float16 layers
    Case("w8a8/int8", [9], StepTuning(stages=5), blocks=3),
    # Streamed products with one unit at a time, and blocks that have none.
    Case("int4_64", EIGHT, StepTuning(stages=4, units=1), 17, sizes=LONG_AND_ODD, rows_bytes=32 << 10),
    Case("dense", EIGHT[:2], StepTuning(stages=4, units=4), 18, sizes=LONG, rows_bytes=8 << 10),
]


def _weights(case: Case) -> ModelWeights:
    """The small model with two layers, and where one is named a head, of the case's kinds."""
    held = random_weights(small_config(case.kv_heads, **case.sizes), "dense", int8_cache=case.int8_cache)
    kind, _, head = case.kind.partition("/")
    assert held.lm_head is not None
    lm_head = random_linear(head, *held.lm_head.weight.shape, 98) if head else held.lm_head
    layers = [_layer(case, kind, index, layer) for index, layer in enumerate(held.layers[:2])]
    return replace(held, layers=layers, lm_head=lm_head)


def _layer(case: Case, kind: str, index: int, given: LayerWeights) -> LayerWeights:
    linears: dict[str, Any] = {
        name: random_linear(kind, *getattr(given, name).weight.shape, 10 * index + at)
        for at, name in enumerate(LINEARS)
    }
    if case.int8_cache and len(case.lengths) == max(ROWS):  # every head its own scale; one for all in the other cases
        apart = 0.03 + 0.002 * torch.arange(case.kv_heads)
        linears["kv_scales"] = KVScales(apart, apart.flip(0))
    return replace(given, **linears)


def _pair(case: Case, *, races: bool = False) -> Pair:
    config = replace(small_config(case.kv_heads, **case.sizes), num_layers=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode_shape, "ROWS_BYTES", case.rows_bytes)
        return pair_of(config, _weights(case), case.lengths, case.tuning, case.blocks, races=races)


RACED = [
    Case("int8", EIGHT[:4], StepTuning(stages=5), blocks=3),
    Case("int4_128", EIGHT, StepTuning(stages=4, units=3), sizes={"intermediate": 352}, quick=True),
    Case("w8a8", [9], StepTuning(stages=4), blocks=3, kv_heads=2, int8_cache=True),
    Case("w8a8", EIGHT, StepTuning(stages=4), kv_heads=2, int8_cache=True),
    # More blocks than units of attention: all warps of a block take one together.
    Case("w8a8", [37], StepTuning(stages=4, splits=3, split_rows=8), blocks=14, kv_heads=2, int8_cache=True),
]


def _raced(case: Case) -> Any:
    return pytest.param(case, id=case.name, marks=[] if case.quick else pytest.mark.slow)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@torch.inference_mode()
def test_logits_are_those_of_the_plain_session_in_any_order_of_threads(case: Case) -> None:
    pair = _pair(case)
    rows, step = len(case.lengths), pair.step
    for done in range(2):
        ids = step.ids.clone()
        found, caches = pair.run(SEEDS[0]), _copies(pair)
        assert relative_l2(found[:rows], pair.plain.decode(ids[:rows])) < case.limit
        assert torch.equal(found.argmax(-1), step.ids)
        assert step.start[:rows].tolist() == [length + done + 1 for length in case.lengths]
        assert _left_behind(pair) == 0
        if done == 0:
            _wrote_one_row_each(pair, case.lengths)
    step.ids.copy_(ids)
    step.start -= 1
    assert torch.equal(pair.run(SEEDS[1]), found)  # sums are put together in one order
    assert all(torch.equal(a, b) for a, b in zip(_copies(pair), caches, strict=True))


def _copies(pair: Pair) -> list[Tensor]:
    return [tensor.nan_to_num(7.0) for cache in pair.caches for tensor in (cache.key, cache.value)]


def _left_behind(pair: Pair) -> int:
    buffers = pair.step._buffers
    return sum(int(buffers[name].abs().sum()) for name in ("arrived", "largest", "counters"))


def _wrote_one_row_each(pair: Pair, lengths: list[int]) -> None:
    """Of the rows that were spoiled beyond each prompt, one and no more is written; every buffer is."""
    for tensor in _copies(pair):
        spoiled = tensor == (77 if tensor.dtype == torch.int8 else 7.0)
        for row, length in enumerate(lengths):
            assert not spoiled[row, :, length].all(-1).any()
            assert spoiled[row, :, length + 1 :].all()
    for name in ("qkv", "context", "residual", "activated"):
        assert not pair.step._buffers[name].isnan().any()


@torch.inference_mode()
def test_w8a8_is_exact_where_its_inputs_are() -> None:
    pair = _pair(Case("w8a8", [9], StepTuning(stages=5), kv_heads=8))
    ids = pair.step.ids.clone()
    assert torch.equal(pair.run(1), pair.plain.decode(ids))


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.sizes in (LONG, LONG_AND_ODD)], ids=lambda case: case.name
)
def test_rows_of_long_products_do_not_fit_shared_memory(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_shape, "ROWS_BYTES", case.rows_bytes)
    assert 2 * segment(_pair(case).step.shape) < LONG["intermediate"]


def test_a_kernel_without_timestamps_has_none_to_give() -> None:
    with pytest.raises(RuntimeError, match="a kernel without timestamps"):
        _pair(CASES[0]).step.stamps()


@pytest.mark.parametrize("case", [_raced(case) for case in CASES + RACED])
@torch.inference_mode()
def test_no_two_threads_race(case: Case) -> None:
    pair = _pair(case, races=True)
    pair.run(SEEDS[0])  # raises RaceError
    assert not pair.step.logits.isnan().any()


@torch.inference_mode()
def test_a_barrier_less_is_a_race(monkeypatch: pytest.MonkeyPatch) -> None:
    def source() -> str:
        text = decode_step.source()
        assert text.count(BARRIER) == 1
        return text.replace(BARRIER, BARRIER.replace("consumers_meet();", ""))

    monkeypatch.setattr(cpu_steps, "source", source)
    cpu_steps.compiled.cache_clear()
    with pytest.raises(RaceError) as caught:
        _pair(Case("w8a8", [9], StepTuning(stages=5), kv_heads=8), races=True).run(SEEDS[0])
    cpu_steps.compiled.cache_clear()
    assert all("decode_rows.cuh:" in race.before and "decode_rows.cuh:" in race.after for race in caught.value.races)
