"""The driver of all kernels: on a GPU as a whole; elsewhere what Triton's interpreter can run of it."""

from __future__ import annotations

import os

import pytest
import torch

from tests.triton_interpreter import let_the_interpreter_count

pytest.importorskip("triton", reason="needs triton")

from workbench.evaluation import kernel_checks
from workbench.evaluation.gpu_benchmark import GPU_MODES
from workbench.evaluation.kernel_checks import (
    GROUPED,
    SIZES,
    Check,
    check,
    main,
    models,
    poisoned,
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
    monkeypatch.setattr(cuda_session, "require_gpu", lambda _: None)


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
    monkeypatch.setattr(kernel_checks, "require_gpu", lambda _: None)
    monkeypatch.setattr(kernel_checks, "checks", lambda **_: iter([Check("good", 0.0, 0.1), Check("bad", 0.2, 0.1)]))
    assert main([]) == 1
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("ok")
    assert told[1].startswith("FAILED  2.00e-01  bad")
    assert told[2] == "1 of 2 checks passed"


@pytest.mark.gpu
@needs_gpu
def test_every_kernel_passes() -> None:
    assert main(["--quick"]) == 0
