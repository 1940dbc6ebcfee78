"""A whole step in one kernel: its sizes and code without a GPU; with one, its logits beside the plain session's."""

from __future__ import annotations

import ctypes
import itertools
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton", reason="needs triton")

from tests.backends.kernels.test_skinny_gemm import needs_gpu, needs_nvrtc
from tests.runtime.small_models import LIMITS, random_weights, small_config
from tests.tolerances import TOLERANCE, relative_l2
from workbench.backends.kernels import decode_step as kernels
from workbench.backends.kernels.decode_shape import (
    StepShape,
    StepTuning,
    dynamic_shared_bytes,
    options,
    units_and_stages,
)
from workbench.backends.kernels.decode_step import CAPABILITY, DecodeStep, source, why_not
from workbench.backends.kernels.nvrtc import compile_cubin
from workbench.backends.kernels.skinny_gemm import STEP, Kind
from workbench.backends.triton_ops import TritonOps
from workbench.model.config import ModelConfig
from workbench.model.internlm import InternLM
from workbench.model.numerics import pack_int4, quantize_int4_groups
from workbench.model.ops import LayerCache
from workbench.model.rotary import rotary_tables
from workbench.model.weights import Int4GroupWeight, ModelWeights, SmoothQuantWeight
from workbench.runtime import persistent_decode
from workbench.runtime.cuda_session import CudaOptions, CudaSession
from workbench.runtime.persistent_decode import prepared_kernel, step_model, why_it_cannot
from workbench.runtime.session import SessionOptions, TorchSession

HALF = torch.float16
LARGEST_SHARED = {"sm_80": 163 << 10, "sm_89": 99 << 10, "sm_90": 227 << 10, "sm_90a": 227 << 10, "sm_120": 99 << 10}
SHAPE_7B = StepShape(1, Kind.FLOAT16, Kind.FLOAT16, 1, 1, 4096, 11008, 32, 32, 128, 103168)


def _is_new_enough() -> bool:
    return torch.cuda.is_available() and torch.cuda.get_device_capability() == CAPABILITY


needs_hopper = pytest.mark.skipif(not _is_new_enough(), reason="needs a GPU of compute capability 9.0")


def _compiled(shape: StepShape, architecture: str = "sm_90a", extra: str = "") -> bytes:
    shared = dynamic_shared_bytes(shape, StepTuning(), LARGEST_SHARED[architecture])
    return compile_cubin(source() + extra, options(shape, StepTuning(), shared, 132), architecture)


@needs_nvrtc
@pytest.mark.parametrize(("kind", "architecture"), [
    *((kind, "sm_90") for kind in Kind),
    *((Kind.INT4, architecture) for architecture in LARGEST_SHARED if not architecture.startswith("sm_90")),
])  # fmt: skip
def test_it_compiles_for_every_architecture(kind: Kind, architecture: str) -> None:
    shape = replace(SHAPE_7B, kind=kind, subs_per_group=4)
    assert _compiled(shape, architecture).startswith(b"\x7fELF")


@needs_nvrtc
@pytest.mark.parametrize(("kind", "rows", "int8_cache"), [
    (kind, rows, int8_cache)
    for kind, most in kernels.MOST_ROWS.items() for rows in kernels.ROWS if rows <= most for int8_cache in (False, True)
])  # fmt: skip
def test_the_launch_has_the_registers_that_warps_exchange(kind: Kind, rows: int, int8_cache: bool) -> None:
    shape = replace(SHAPE_7B, kind=kind, rows=rows, subs_per_group=4, int8_cache=int8_cache, scale_per_head=True)
    code = _compiled(shape, extra=f"static_assert(LAUNCH_REGISTERS == {kernels.LAUNCH_REGISTERS});")
    attribute = b"\x04\x2f\x08\x00"  # EIATTR_REGCOUNT of .nv.info: then a symbol and its registers
    assert [
        int.from_bytes(code[place + 8 : place + 12], "little")
        for place in range(len(code))
        if code.startswith(attribute, place)
    ] == [kernels.LAUNCH_REGISTERS]


@pytest.mark.parametrize(("registers", "compiled"), [
    (kernels.LAUNCH_REGISTERS, ["sm_90a"]),
    (kernels.LAUNCH_REGISTERS - 8, ["sm_90a", "sm_90"]),
])  # fmt: skip
def test_registers_are_exchanged_only_where_the_launch_has_them(
    monkeypatch: pytest.MonkeyPatch, registers: int, compiled: list[str]
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(kernels, "architecture_of", lambda _: "sm_90")
    monkeypatch.setattr(kernels, "cached_cubin", lambda _, __, architecture: asked.append(architecture))
    monkeypatch.setattr(kernels, "Kernel", lambda *_: SimpleNamespace(registers=registers))
    kernels._kernel.__wrapped__(("-DNB=1",), 0)
    assert asked == compiled


@needs_nvrtc
@pytest.mark.parametrize("shape", [
    replace(SHAPE_7B, rows=8, int8_cache=True, scale_per_head=True),
    replace(SHAPE_7B, rows=8, kind=Kind.W8A8),
    replace(SHAPE_7B, rows=4, kind=Kind.INT4, groups=4, kv_heads=8),
    replace(SHAPE_7B, rows=8, kind=Kind.INT4, hidden=6144, intermediate=16384, heads=48, kv_heads=8, vocab=92544),
    replace(SHAPE_7B, rows=2, kind=Kind.INT8, head_kind=Kind.INT8, kv_heads=2, int8_cache=True),
    replace(SHAPE_7B, rows=2, hidden=2048, intermediate=8192, heads=16, kv_heads=8),
], ids=["kv8", "w8a8", "groups of 32", "20b", "int8 head", "1.8b"])  # fmt: skip
def test_it_compiles_for_published_sizes(shape: StepShape) -> None:
    assert _compiled(shape).startswith(b"\x7fELF")


@needs_nvrtc
@pytest.mark.parametrize("shape", [
    SHAPE_7B,
    replace(SHAPE_7B, rows=8, kind=Kind.INT4, groups=4, hidden=6144, intermediate=16384, heads=48, kv_heads=8),
    replace(SHAPE_7B, rows=2, kind=Kind.W8A8, int8_cache=True),
    replace(SHAPE_7B, rows=4, kind=Kind.INT8, head_kind=Kind.W8A8, kv_heads=2),
], ids=["7b", "20b", "w8a8", "w8a8 head"])  # fmt: skip
def test_shared_memory_is_divided_as_the_kernel_divides_it(shape: StepShape) -> None:
    shared = dynamic_shared_bytes(shape, StepTuning(), LARGEST_SHARED["sm_90"])
    units, stages = units_and_stages(shape, StepTuning(), shared)
    assert _compiled(shape, extra=f"static_assert(UNITS == {units} && STAGES == {stages});")


@needs_nvrtc
def test_structures_are_those_of_the_kernel() -> None:
    sizes = {"Matrix": kernels._Matrix, "Layer": kernels._Layer, "Step": kernels._Step}
    lines = [f"static_assert(sizeof({name}) == {ctypes.sizeof(held)});" for name, held in sizes.items()]
    offsets = [
        f"static_assert(__builtin_offsetof(Step, {name}) == {getattr(kernels._Step, name).offset});"
        for name, _ in kernels._Step._fields_
    ]
    assert _compiled(SHAPE_7B, extra="\n".join([*lines, *offsets]))
    with pytest.raises(RuntimeError, match="static assertion"):
        _compiled(SHAPE_7B, extra="static_assert(sizeof(Layer) == 8);")


def _model(config: ModelConfig, weights: ModelWeights) -> kernels.StepModel | None:
    """On the CPU, with every weight packed: what the kernel would be given."""
    ops = TritonOps(HALF, device="cpu")
    ops.prepared = _packed_anywhere  # type: ignore[method-assign]
    cache = torch.zeros(1, config.num_kv_heads, 8, config.head_dim, dtype=HALF)
    tables = rotary_tables(config, 8)
    return step_model(InternLM(config, weights, tables), ops, [LayerCache(cache, cache)] * config.num_layers)


def _packed_anywhere(weight: object) -> object:
    from workbench.backends.kernels.skinny_gemm import SkinnyLinear
    from workbench.backends.triton_ops import PreparedLinear

    return PreparedLinear(SkinnyLinear(weight, torch.device("cpu")))  # type: ignore[arg-type]


def test_models_that_the_kernel_cannot_run_are_named() -> None:
    config = small_config(4)
    dense = random_weights(config, "dense", int8_cache=False)
    model = _model(config, dense)
    assert model is not None
    assert why_not(model) is None
    int8 = random_weights(config, "int8", int8_cache=False).layers[0]
    mixed = _model(config, replace(dense, layers=[int8, *dense.layers[1:]]))
    assert mixed is not None
    assert why_not(mixed) == "layers of several weight types"
    odd = small_config(4, vocab=321)
    found = _model(odd, random_weights(odd, "dense", int8_cache=False))
    assert found is not None
    assert why_not(found) == "rows that do not divide into tiles of 16"
    narrow = small_config(4, intermediate=352)
    found = _model(narrow, random_weights(narrow, "w8a8", int8_cache=False))
    assert found is not None
    assert why_not(found) == "352 inputs"
    assert (why_not(model, 2), why_not(model, 4)) == (None, "4 rows")
    packed = _model(config, random_weights(config, "int4", int8_cache=False))
    assert packed is not None
    assert why_not(packed, 8) is None
    for layer in packed.layers:
        layer.qkv.k = 10240
    assert (why_not(packed, 4), why_not(packed, 8)) == (None, "8 rows of 10240 values")
    assert why_not(replace(model, head_dim=48)) == "heads of 48 values"
    whole = _model(config, random_weights(config, "w8a8", int8_cache=False))
    assert whole is not None
    assert (why_not(whole, 2), why_not(whole, 4)) == (None, "4 rows")
    assert [why_not(model, rows) for rows in (3, 5, 16)] == ["3 rows", "5 rows", "16 rows"]
    assert dense.lm_head is not None
    integers, scale = quantize_int4_groups(dense.lm_head.weight.float(), 64)
    grouped = random_weights(config, "int4", int8_cache=False)
    other = _model(config, replace(grouped, lm_head=Int4GroupWeight(pack_int4(integers), scale, 64)))
    assert other is not None
    assert why_not(other) == "an INT4 head over other weights"
    assert _model(config, replace(dense, lm_head=None)) is None


def test_other_devices_dtypes_and_batches_decode_operation_by_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config(4)
    model = InternLM(config, random_weights(config, "dense", int8_cache=False), rotary_tables(config, 8))
    cache = torch.zeros(1, 4, 8, 32)
    caches = [LayerCache(cache, cache)] * 3
    ops = TritonOps(HALF, device="cpu")
    ops.prepared = _packed_anywhere  # type: ignore[method-assign]
    assert why_it_cannot(model, ops, caches, 1) == "another device than those that the kernel was measured on"
    state = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int32)
    assert prepared_kernel(model, ops, caches, state) is None
    ops.device = torch.device("cuda")
    monkeypatch.setattr(persistent_decode, "can_run_on", lambda _: True)
    assert why_it_cannot(model, ops, caches, 1) is None
    assert why_it_cannot(model, ops, caches, 3) == "3 rows"
    assert why_it_cannot(model, ops, [], 1) == "no layers"
    ops.dtype = torch.bfloat16
    assert why_it_cannot(model, ops, caches, 1) == "activations in bfloat16"
    ops.dtype = HALF
    monkeypatch.setattr(persistent_decode, "can_run_on", lambda _: False)
    assert why_it_cannot(model, ops, caches, 1) == "another device than those that the kernel was measured on"


CASES = [
    # kind, kv heads, INT8 cache, batch, tuning
    ("dense", 8, False, 1, StepTuning()),
    ("dense", 2, False, 2, StepTuning(split_rows=16)),
    ("dense", 8, True, 2, StepTuning(split_rows=16, splits=3)),
    ("int8", 4, False, 4, StepTuning(units=2, stages=4, in_flight=3)),
    ("int8", 4, False, 4, StepTuning(units=1)),
    ("int8", 8, False, 1, StepTuning()),
    ("int8", 2, True, 4, StepTuning()),
    ("int8", 4, False, 8, StepTuning()),
    ("int8", 2, True, 8, StepTuning(split_rows=16)),
    ("int4", 4, False, 1, StepTuning()),
    ("int4", 8, False, 8, StepTuning(stages=5, in_flight=2)),
    ("int4", 2, True, 8, StepTuning(split_rows=16)),
    ("w8a8", 8, False, 1, StepTuning()),
    ("w8a8", 2, True, 2, StepTuning()),
    ("static", 4, False, 2, StepTuning()),
]
SIZES = [{}, {"intermediate": 352}, {"hidden": 1024, "intermediate": 11008}]


@pytest.mark.gpu
@needs_gpu
@needs_hopper
@pytest.mark.parametrize(("case", "sizes"), itertools.product(CASES, SIZES), ids=str)
@torch.inference_mode()
def test_logits_are_those_of_the_plain_session(
    case: tuple[str, int, bool, int, StepTuning], sizes: dict[str, int]
) -> None:
    kind, kv_heads, int8_cache, batch, tuning = case
    config = small_config(kv_heads, **sizes)
    if kind in ("w8a8", "static") and config.intermediate_size % STEP[Kind.W8A8]:
        pytest.skip("the kernel takes whole steps of W8A8 only")
    weights = random_weights(config, "w8a8" if kind == "static" else kind, int8_cache=int8_cache)
    if kind == "static":
        weights = _calibrated(weights)
    plain = TorchSession(config, weights, SessionOptions(HALF, "torch", LIMITS, "cuda"))
    session = CudaSession(config, weights, CudaOptions(HALF, LIMITS, graphs=False))
    generator = torch.Generator().manual_seed(batch)
    lengths = torch.randint(1, 41, (batch,), generator=generator).tolist()
    prompts = [torch.randint(0, config.vocab_size, (length,), generator=generator).tolist() for length in lengths]
    plain.prefill(prompts)
    session.prefill(prompts)
    held = session._decoding
    assert held is not None
    step = prepared_kernel(
        session.model, session.ops, held.caches, (held.ids, held.start), replace(tuning, watchdog=True)
    )
    assert step is not None
    limit = TOLERANCE[HALF]["model"] * (8 if int8_cache or kind in ("w8a8", "static") else 1)
    for done in range(3):
        ids = held.ids[:batch].cpu()
        found = _run(step)
        assert relative_l2(found[:batch], plain.decode(ids)) < limit
        assert torch.equal(found[:batch].argmax(-1), held.ids[:batch])
        assert held.start[:batch].tolist() == [length + done + 1 for length in lengths]
    held.ids[:batch] = ids.cuda()
    held.start -= 1
    assert torch.equal(_run(step), found)  # sums are put together in one order


def _run(step: DecodeStep) -> torch.Tensor:
    step.poison()
    step()
    torch.cuda.synchronize()
    return step.logits.clone()


def _calibrated(weights: ModelWeights) -> ModelWeights:
    scale = torch.tensor(0.03)
    layers = []
    for layer in weights.layers:
        names = ("qkv", "o", "gate_up", "down")
        linears = {name: getattr(layer, name) for name in names}
        assert all(isinstance(linear, SmoothQuantWeight) for linear in linears.values())
        layers.append(replace(layer, **{name: replace(held, input_scale=scale) for name, held in linears.items()}))
    return replace(weights, layers=layers)
