"""The fast CPU op set against the oracle, op by op and as a whole model."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.random_model import SMALL, random_linear, random_weights
from tests.tolerances import TOLERANCE, relative_l2
from workbench.backends import cpu_attention, cpu_ops, packed
from workbench.backends.cpu_ops import CpuOps
from workbench.backends.torch_ops import TorchOps
from workbench.checkpoint.lazy_layers import LazyLayers
from workbench.model.ops import AttentionSpec, LayerCache, NewRows, Step, WholeCache
from workbench.model.rotary import rotary_tables
from workbench.model.weights import DenseWeight, Int8Weight, KVScales, SmoothQuantWeight
from workbench.runtime.session import SessionOptions, TorchSession

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
KINDS = [DenseWeight, Int8Weight, SmoothQuantWeight]


def within(value: Tensor, exact: Tensor, oracle: Tensor, dtype: torch.dtype) -> None:
    """``value`` is near the oracle, and no further from the float64 answer than twice the oracle is."""
    assert value.dtype == oracle.dtype
    assert value.shape == oracle.shape
    assert relative_l2(value, oracle) < TOLERANCE[dtype]["op"]
    assert relative_l2(value, exact) < max(2 * relative_l2(oracle, exact), TOLERANCE[dtype]["op"] / 8)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 3, 5, 16, 17, 40])
@pytest.mark.parametrize("bias", [True, False])
def test_linear(dtype: torch.dtype, kind: type, rows: int, bias: bool) -> None:
    torch.manual_seed(rows)
    x = torch.randn(1, rows, 96).to(dtype)
    weight = random_linear(80, 96, kind, dtype, bias)
    oracle = TorchOps(dtype).linear(x, weight, "lm_head")
    ops = CpuOps(dtype)
    y = ops.linear(x, weight, "lm_head")
    assert torch.equal(ops.linear(x, weight, "lm_head"), y)
    within(y, TorchOps(torch.float64).linear(x.double(), weight, "lm_head"), oracle, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", [DenseWeight, Int8Weight])
@pytest.mark.parametrize("rows", [1, 24])
def test_linear_without_packed_layouts(
    dtype: torch.dtype, kind: type, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "can_pack", lambda _: False)
    x = torch.randn(2, rows, 96).to(dtype)
    weight = random_linear(80, 96, kind, dtype, True)
    exact = TorchOps(torch.float64).linear(x.double(), weight, "lm_head")
    within(CpuOps(dtype).linear(x, weight, "lm_head"), exact, TorchOps(dtype).linear(x, weight, "lm_head"), dtype)


def test_weights_in_another_dtype_are_rounded_to_the_op_sets() -> None:
    x = torch.randn(1, 2, 96).bfloat16()
    weight = random_linear(80, 96, DenseWeight, torch.float32, True)
    assert CpuOps(torch.bfloat16).linear(x, weight, "lm_head").dtype == torch.bfloat16


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lazy", [True, False])
def test_what_was_prepared_goes_with_its_weight(kind: type, lazy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: weakref.WeakSet[object] = weakref.WeakSet()
    made = []

    def watched(prepare: type) -> Callable[..., object]:
        def make(weight: object, dtype: torch.dtype) -> object:
            alive.add(prepared := prepare(weight, dtype))
            made.append(prepare)
            return prepared

        return make

    for name in ("PackedDense", "PackedInt8"):
        monkeypatch.setattr(cpu_ops, name, watched(getattr(packed, name)))
    layers = LazyLayers(2, lambda index: random_weights(kind=kind).layers[index])
    kept = layers if lazy else list(layers)
    ops = CpuOps(torch.float32)

    def walk() -> None:
        for layer in kept:
            for linear in (layer.qkv, layer.o, layer.gate_up, layer.down):
                rows = torch.ones(1, 3, linear.weight.shape[1])
                assert torch.equal(ops.linear(rows, linear, "lm_head"), ops.linear(rows, linear, "lm_head"))

    for _ in range(3):
        walk()
    prepared = 0 if kind is SmoothQuantWeight else 2 * 4
    assert len(alive) == (0 if lazy else prepared)
    assert len(made) == prepared * (3 if lazy else 1)
    kept = layers
    assert not alive


def test_the_float32_scale_of_int8_weights_keeps_its_effect() -> None:
    # 1.003 lies midway between two bfloat16 values: a kernel that took it rounded would be off by 0.3 %.
    x = torch.ones(1, 1, 64).bfloat16()
    weight = Int8Weight(torch.full((16, 64), 100, dtype=torch.int8), torch.full((16,), 1.003))
    scaled = CpuOps(torch.bfloat16).linear(x, weight, "lm_head").double()
    unscaled = CpuOps(torch.bfloat16).linear(x, dataclasses.replace(weight, weight_scale=torch.ones(16)), "lm_head")
    assert torch.equal(scaled, (unscaled.double() * 1.003).bfloat16().double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_digits_put_together_are_the_activations(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    rows = torch.randn(3, 512).to(dtype)
    rows[0, 7], rows[1] = 900, 0
    places = packed.digit_places(dtype)
    digits, largest = packed.digits_of(rows, places)
    assert int(digits.int().abs().max()) <= 65
    again = (digits.double() / places.double()[:, None, None]).sum(0) * largest
    step = largest.double() / places[-1]
    assert ((again - rows.double()).abs() <= step + rows.double().abs() * 2**-22).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_what_is_not_finite_stays_so(dtype: torch.dtype, value: float) -> None:
    x = torch.ones(1, 2, 96).to(dtype)
    x[0, 1, 3] = value
    y = CpuOps(dtype).linear(x, random_linear(80, 96, Int8Weight, dtype, False), "lm_head")
    assert y[0, 0].isfinite().all()
    assert not y[0, 1].isfinite().any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("first", [True, False])
def test_add_rms_norm_holds_a_residual_of_21500(dtype: torch.dtype, first: bool) -> None:
    torch.manual_seed(0)
    x, residual = torch.randn(2, 3, 64).to(dtype), torch.randn(2, 3, 64).to(dtype)
    (x if first else residual)[0, 0, 5] = 21500
    weight = (1 + 0.1 * torch.randn(64)).to(dtype)
    given = (x, None) if first else (x, residual)
    oracle, summed = TorchOps(dtype).add_rms_norm(*given, weight, 1e-5)
    wide = None if first else residual.double()
    exact, _ = TorchOps(torch.float64).add_rms_norm(x.double(), wide, weight.double(), 1e-5)
    normed, residual_out = CpuOps(dtype).add_rms_norm(*given, weight, 1e-5)
    assert torch.equal(residual_out, summed)
    within(normed, exact, oracle, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_swiglu(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    gate_up = (3 * torch.randn(2, 5, 64)).to(dtype)
    exact = TorchOps(torch.float64).swiglu(gate_up.double())
    oracle, found = TorchOps(dtype).swiglu(gate_up), CpuOps(dtype).swiglu(gate_up)
    within(found, exact, oracle, dtype)
    # Rounded once: silu in a half type would be rounded before it is multiplied, a quarter of the results with it.
    assert (found != oracle).float().mean() < 0.01


def attention_case(
    start: list[int], seq: int, dtype: torch.dtype, *, int8: bool = False
) -> tuple[Tensor, Step[Tensor], LayerCache[Tensor], AttentionSpec]:
    """New tokens of sequences that hold ``start`` rows each; head_dim 8, 4 query heads, 2 KV heads."""
    torch.manual_seed(len(start) + seq)
    batch, rows = len(start), max(start) + seq + 3
    first = torch.tensor(start, dtype=torch.int32)
    positions = first.long()[:, None] + torch.arange(seq)
    key, value = (torch.randn(batch, 2, rows, 8).to(dtype) for _ in range(2))
    scales = KVScales(torch.tensor([0.03, 0.02]), torch.tensor(0.025)) if int8 else None
    if int8:
        key, value = (torch.randint(-127, 128, (batch, 2, rows, 8), dtype=torch.int8) for _ in range(2))
    tables = rotary_tables(dataclasses.replace(SMALL, max_position_embeddings=400), 400)
    spec = AttentionSpec("layers.0.attention", 4, 2, 8, tables, scales)
    qkv = torch.randn(batch, seq, 64).to(dtype)
    return qkv, Step(positions, positions, first), LayerCache(key, value), spec


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize(
    ("start", "seq"), [([0], 1), ([0, 0], 7), ([4], 1), ([4, 4], 3), ([5, 0, 2], 1), ([5, 0], 4), ([3], 300)]
)
def test_attention_writes_the_oracles_cache_in_place(
    dtype: torch.dtype, int8: bool, start: list[int], seq: int
) -> None:
    qkv, step, cache, spec = attention_case(start, seq, dtype, int8=int8)
    expected, update = TorchOps(dtype).attention(qkv, step, cache, spec)
    assert isinstance(update, NewRows if int8 else WholeCache)
    wide = torch.int8 if int8 else torch.float32
    ours = LayerCache(cache.key.to(wide), cache.value.to(wide))
    exact_cache = cache if int8 else LayerCache(cache.key.double(), cache.value.double())
    exact, _ = TorchOps(torch.float64).attention(qkv.double(), step, exact_cache, spec)
    context, whole = CpuOps(dtype).attention(qkv, step, ours, spec)
    within(context, exact, expected, dtype)
    assert isinstance(whole, WholeCache)
    assert whole.key is ours.key
    assert whole.value is ours.value
    for row, first in enumerate(start):
        at = slice(first, first + seq)
        new = (update.key[row], update.value[row]) if int8 else (update.key[row, :, at], update.value[row, :, at])
        for written, rows in zip((ours.key[row, :, at], ours.value[row, :, at]), new, strict=True):
            if int8:
                assert int((written.int() - rows.int()).abs().max()) <= 1
            else:
                assert relative_l2(written, rows) < TOLERANCE[dtype]["op"]
    untouched = torch.ones_like(ours.key, dtype=torch.bool)
    for row, first in enumerate(start):
        untouched[row, :, first : first + seq] = False
    assert torch.equal(ours.key[untouched], cache.key.to(wide)[untouched])


def test_attention_in_blocks_equals_attention_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        qkv, step, cache, spec = attention_case([3, 3], 50, dtype)
        at_once, _ = CpuOps(dtype).attention(qkv, step, LayerCache(cache.key.clone(), cache.value.clone()), spec)
        monkeypatch.setattr(cpu_attention, "QUERY_BLOCK", 7)
        in_blocks, _ = CpuOps(dtype).attention(qkv, step, cache, spec)
        assert relative_l2(in_blocks, at_once) < TOLERANCE[dtype]["op"]


def test_a_row_outside_the_cache_is_refused() -> None:
    qkv, step, cache, spec = attention_case([4], 3, torch.float32)
    short = LayerCache(cache.key[:, :, :6], cache.value[:, :, :6])
    with pytest.raises(IndexError, match="cache rows up to 6, but it holds 6"):
        CpuOps(torch.float32).attention(qkv, step, short, spec)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("int8_cache", [False, True])
def test_model_equals_the_oracles(dtype: torch.dtype, kind: type, int8_cache: bool) -> None:
    weights = random_weights(dtype=dtype, kind=kind, int8_cache=int8_cache)
    ids = torch.randint(0, SMALL.vocab_size, (2, 24), generator=torch.Generator().manual_seed(1))
    fast, plain = (
        TorchSession(SMALL, weights, SessionOptions(dtype, backend)).logits(ids) for backend in ("cpu", "torch")
    )
    # Quantized activations and caches turn a rounding into an integer step, in either op set.
    steps = 4 if int8_cache or kind is SmoothQuantWeight else 1
    assert relative_l2(fast, plain) < steps * TOLERANCE[dtype]["model"]
