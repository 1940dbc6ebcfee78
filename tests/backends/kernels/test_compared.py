"""Kernels are used by themselves only in the state in which a GPU compared them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("triton", reason="needs triton")

from workbench.backends.kernels import decode_step, wide_gemm
from workbench.backends.kernels.nvrtc import code_digest
from workbench.runtime.cuda_session import CudaOptions

ROOT = Path(__file__).parents[3]


@pytest.fixture(params=[decode_step, wide_gemm], ids=["decode_step", "wide_gemm"])
def kernel(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """A module whose answer is not kept."""
    module: ModuleType = request.param
    module.compared.cache_clear()
    yield module
    module.compared.cache_clear()


def test_comments_and_white_space_are_no_code() -> None:
    code = "int a;  // a number\nint b;\n"
    assert code_digest(code) == code_digest("int a;\n\n    int b; // another")
    assert code_digest(code) != code_digest("int a;\nint c;")
    assert len(code_digest(code)) == 16
    assert code_digest("#define A 1\nint f();") != code_digest("#define A 1 int f();")
    assert code_digest("#define A \\\n  1\nint f();") == code_digest("#define A 1  // one\n\nint f();")


def test_a_kernel_that_was_changed_was_not_compared(monkeypatch: pytest.MonkeyPatch, kernel: ModuleType) -> None:
    source = kernel.source()
    monkeypatch.setattr(kernel, "COMPARED_CODE", code_digest(source))
    assert kernel.compared()
    kernel.compared.cache_clear()
    monkeypatch.setattr(kernel, "source", lambda: f"{source} int more;")
    assert not kernel.compared()
    kernel.compared.cache_clear()
    monkeypatch.setattr(kernel, "source", lambda: f"// more words\n{source}")
    assert kernel.compared()


@pytest.mark.parametrize("was_compared", [True, False])
def test_sessions_use_the_kernel_for_a_step_only_where_it_was_compared(
    monkeypatch: pytest.MonkeyPatch, was_compared: bool
) -> None:
    monkeypatch.setattr(decode_step, "COMPARED_CODE", code_digest(decode_step.source()) if was_compared else "other")
    decode_step.compared.cache_clear()
    assert CudaOptions().one_kernel is was_compared
    assert CudaOptions(one_kernel=True).one_kernel
    decode_step.compared.cache_clear()


def test_a_kernel_that_sessions_do_without_is_named_in_the_docs(kernel: ModuleType) -> None:
    """Whoever changes one loses it until a GPU has compared it: that must not go unnoticed."""
    name = kernel.__name__.rpartition(".")[2]
    told = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    assert kernel.compared() != (f"the present `{name}` was not compared" in told)
