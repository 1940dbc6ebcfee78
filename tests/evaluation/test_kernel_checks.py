"""The driver of all kernels: on a GPU as a whole; elsewhere what Triton's interpreter can run of it."""

from __future__ import annotations

import os
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.triton_interpreter import let_the_interpreter_count

pytest.importorskip("triton", reason="needs triton")

from workbench.backends.kernels import decode_shape, wide_gemm
from workbench.backends.kernels.decode_shape import StepShape, StepTuning, dynamic_shared_bytes, units_and_stages
from workbench.backends.kernels.skinny_gemm import STEP, Kind, SkinnyLinear
from workbench.evaluation import kernel_checks
from workbench.evaluation.gpu_options import GPU_MODES
from workbench.evaluation.kernel_checks import (
    GROUPED,
    SIZES,
    Check,
    check,
    checks,
    greedy_error,
    main,
    models,
    one_kernel_rows,
    poisoned,
    product_checks,
    quick_models,
    row_checks,
    sampling_check,
    session_check,
)
from workbench.runtime import cuda_session

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("for machines without a GPU, with TRITON_INTERPRET=1")
    let_the_interpreter_count()
    monkeypatch.setattr(kernel_checks, "DEVICE", "cpu")
    monkeypatch.setattr(cuda_session, "require_gpu", lambda *_, **__: None)


@pytest.mark.usefixtures("interpreted")
def test_rows_and_sampling_pass_in_the_interpreter() -> None:
    with poisoned(), torch.inference_mode():
        found = [*row_checks(), sampling_check()]
    assert len(found) == 9
    assert [each.name for each in found if not each.passed] == []


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(("sizes", "mode"), [(SIZES, "w8a8+kv8"), (GROUPED, "float16")], ids=["w8a8+kv8", "float16"])
def test_a_small_model_passes_in_the_interpreter(sizes: object, mode: str) -> None:
    with poisoned(), torch.inference_mode():
        found = session_check(sizes, mode, 2, graphs=False)  # type: ignore[arg-type]
    assert found.name.startswith(f"model in {mode}, 2 rows, ")
    assert found.passed, found


def test_the_quick_models_have_every_weight_type_cache_and_grouping() -> None:
    quick = list(quick_models())
    assert {mode.partition("+")[0] for _, mode, _ in quick} == {mode.partition("+")[0] for mode in GPU_MODES}
    for grouped in (False, True):
        modes = {mode for sizes, mode, _ in quick if (sizes.num_heads != sizes.num_kv_heads) == grouped}
        assert {mode.endswith("+kv8") for mode in modes} == {False, True}
    assert len(quick) < len(list(models()))


@pytest.fixture
def no_kernels(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """A Hopper GPU whose products are all ones; the biases of the weights that were multiplied."""
    biases: list[Tensor] = []

    def ones(linear: SkinnyLinear, x: Tensor, *_: object, glu: bool = False, **__: object) -> Tensor:
        assert linear.bias is not None
        biases.append(linear.bias)
        return torch.ones(len(x), linear.rows // 2 if glu else linear.rows)

    monkeypatch.setattr(kernel_checks, "DEVICE", "cpu")
    monkeypatch.setattr(wide_gemm, "_device", lambda _: (wide_gemm.HOPPER, 132))
    monkeypatch.setattr(SkinnyLinear, "__call__", ones)
    monkeypatch.setattr(SkinnyLinear, "expanded", lambda self: torch.ones(self.rows, self.k))
    monkeypatch.setattr(kernel_checks, "wide_linear", ones)
    monkeypatch.setattr(kernel_checks, "int8_linear", lambda given, *_, **__: torch.ones(len(given.integers), 352))
    monkeypatch.setattr(
        kernel_checks.rowwise, "quantize_rows", lambda x, _: SimpleNamespace(integers=x, scale=torch.ones(1))
    )
    for name in ("row_checks", "models", "quick_models"):
        monkeypatch.setattr(kernel_checks, name, lambda: iter(()))
    monkeypatch.setattr(kernel_checks, "sampling_check", lambda: Check("sampling", 0.0, 0.0))
    return biases


@pytest.mark.usefixtures("no_kernels")
@pytest.mark.parametrize("quick", [True, False])
def test_products_of_many_rows_are_compared_on_hopper_even_quickly(quick: bool) -> None:
    names = [each.name for each in checks(quick=quick)]
    for kind in kernel_checks.KINDS:
        wide = [name for name in names if name.startswith(f"{kind}, 40 rows, k 352, WideTiles(")]
        assert [name.endswith("SwiGLU") for name in wide] == [False, True]


def test_a_comparison_draws_the_same_numbers_every_time(no_kernels: list[Tensor]) -> None:
    for seed in (1, 2):
        torch.manual_seed(seed)
        list(product_checks("float16", None, (1, 160)))
    assert torch.equal(no_kernels[0], no_kernels[-1])


def test_one_kernel_is_expected_only_where_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    for runs, rows in ((True, [2, 2, 8, 8]), (False, [0, 0, 0, 0])):
        monkeypatch.setattr(kernel_checks, "can_run_on", lambda _, runs=runs: runs)
        assert [one_kernel_rows(mode) for mode in ("float16", "w8a8+kv8", "int8", "int4")] == rows


def test_batches_between_the_kernels_rows_are_among_the_models() -> None:
    for found in (models(), quick_models()):
        assert {("int8", 3), ("int4", 5)} <= {(mode, batch) for _, mode, batch in found}


def test_streamed_rows_and_long_prompts_are_among_the_models() -> None:
    """The widths of k from which 8 rows are streamed are those of ``decode_layout.cuh``: two chunks."""
    chunk = {kind: decode_shape.CHUNK_STEPS * STEP[kind] for kind in (Kind.INT8, Kind.INT4)}
    for found in (list(models()), list(quick_models())):
        eight = [(mode, sizes) for sizes, mode, batch in found if batch == 8]
        assert max(sizes.num_heads * sizes.head_dim for mode, sizes in eight if mode == "int8") > chunk[Kind.INT8]
        assert max(sizes.intermediate_size for mode, sizes in eight if mode == "int4") > chunk[Kind.INT4]
        assert {("float16", 2), ("w8a8+kv8", 2)} <= {(mode, batch) for _, mode, batch in found}
    wide = kernel_checks.WIDE
    shape = StepShape(
        8, Kind.INT8, Kind.FLOAT16, 1, 1, wide.hidden_size, wide.intermediate_size, 18, 18, 64, wide.vocab_size
    )
    units, stages = units_and_stages(shape, StepTuning(), dynamic_shared_bytes(shape, StepTuning(), 227 << 10))
    units_of_the_head = wide.vocab_size // 16 // 132
    assert units_of_the_head > units  # sums of two rounds
    assert units_of_the_head * 2 > stages  # of two chunks each: the ring is filled again
    longest = {sizes.num_kv_heads: sizes.max_position_embeddings for sizes, _, _ in models()}
    assert min(longest[SIZES.num_kv_heads], longest[GROUPED.num_kv_heads]) * kernel_checks.LONGEST >= 2000


@pytest.mark.usefixtures("interpreted")
def test_prompts_are_as_long_as_a_third_of_the_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = replace(kernel_checks.LONG, num_layers=1, max_position_embeddings=450)
    with poisoned(), torch.inference_mode():
        quick = session_check(sizes, "int4", 2, graphs=False)
        monkeypatch.setattr(kernel_checks, "SANITIZED_TOKENS", 10**6)
        found = session_check(sizes, "w8a8+kv8", 2, graphs=False)
    assert (quick.name, quick.passed) == ("model in int4, 2 rows, 4 heads on 4, prompts of up to 32 tokens", True)
    assert (found.name.partition(", prompts")[2], found.passed) == (" of up to 150 tokens", True)


def test_a_token_that_is_not_the_most_probable_fails() -> None:
    logits = torch.tensor([[0.0, 2.0, 2.0], [5.0, 4.0, 3.0]])
    assert greedy_error(logits, torch.tensor([2, 0])) == 0.0  # either of two equals
    assert greedy_error(logits, torch.tensor([1, 1])) == float("inf")


@pytest.mark.usefixtures("interpreted")
def test_a_session_that_chooses_badly_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    step = cuda_session.CudaSession.decode_greedy

    def second_best(self: Any) -> Tensor:
        chosen = step(self)
        chosen.copy_(self._logits(len(chosen)).topk(2).indices[:, 1])
        return chosen

    monkeypatch.setattr(cuda_session.CudaSession, "decode_greedy", second_best)
    with poisoned(), torch.inference_mode():
        assert session_check(SIZES, "float16", 3, graphs=False).error == float("inf")


def test_what_a_kernel_left_out_or_missed_fails() -> None:
    expected = torch.ones(4)
    assert check("same", expected, expected, 0.0).passed
    assert not check("far", expected * 1.1, expected, 1e-2).passed
    assert not check("left out", torch.tensor([1.0, 1, 1, float("nan")]), expected, 1e9).passed
    with poisoned():
        assert torch.empty(3).isnan().all()


def test_a_failure_is_told_and_ends_with_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kernel_checks, "require_gpu", lambda *_, **__: None)
    monkeypatch.setattr(kernel_checks, "checks", lambda **_: iter([Check("good", 0.0, 0.1), Check("bad", 0.2, 0.1)]))
    assert main([]) == 1
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("ok")
    assert told[1].startswith("FAILED  2.00e-01  bad")
    assert told[2].startswith("decode_step: code ")
    assert told[3].startswith("wide_gemm: code ")
    assert told[4:] == ["1 of 2 checks passed"]


@pytest.mark.gpu
@needs_gpu
def test_every_kernel_passes() -> None:
    assert main(["--quick"]) == 0
