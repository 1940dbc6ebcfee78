"""Timestamps of the decode kernel become spans of a layer and of the head."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tests.evaluation.small_gpu_model import SMALL
from workbench.backends.kernels.decode_shape import StepTuning
from workbench.backends.kernels.decode_step import MOST_STAMPS, can_run_on, source
from workbench.evaluation import kernel_trace
from workbench.evaluation.kernel_trace import ATTENTION_STAMPS, HEAD_STAMPS, main, spans, traced

IN_ORDER = [
    *("qkv x", "qkv products", "qkv meeting of warps", "qkv sums and stores", "qkv announce", "qkv join"),
    *("attention", "attention join"),
]


def _stamps(blocks: int) -> torch.Tensor:
    """Every part takes 10 cycles in the first block, and 10 more in each one after it."""
    order = [*range(7), *ATTENTION_STAMPS, *range(8, 15), *range(16, 23), *range(24, 31), *HEAD_STAMPS]
    stamps = torch.zeros(blocks, MOST_STAMPS, dtype=torch.int64)
    for at, stamp in enumerate(order):
        stamps[:, stamp] = 1000 + 10 * at * torch.arange(1, blocks + 1)
    return stamps


def test_spans_are_the_parts_in_their_order() -> None:
    found = spans(_stamps(3))
    names = [span.name for span in found]
    assert names[:8] == IN_ORDER
    assert len(names) == len(set(names))
    assert names[-5:] == ["head x", "head products", "head meeting of warps", "head sums and stores", "choice"]
    assert next(name for name in names if name.startswith("gate_up")) == "gate_up x"
    within = [span for span in found if not span.name.endswith(" x")]  # between a product and the next nothing is said
    assert {(span.mean, span.least, span.most) for span in within} == {(20.0, 10, 30)}


def test_every_stamp_is_one_that_the_kernel_leaves() -> None:
    assert max(HEAD_STAMPS) < MOST_STAMPS
    for stamp in (*ATTENTION_STAMPS, *(HEAD_STAMPS[0], *HEAD_STAMPS[4:])):
        assert f"STAMP({stamp});" in source()


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main([]) == 2
    assert "a trace of the decode kernel" in capsys.readouterr().err


@pytest.mark.parametrize("found", [None, spans(_stamps(2))], ids=["operation by operation", "one kernel"])
def test_the_table_has_a_line_for_every_span(
    found: list[kernel_trace.Span] | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kernel_trace, "require_gpu", lambda *_, **__: None)
    told: Callable[..., object] = lambda *_: found  # noqa: E731
    monkeypatch.setattr(kernel_trace, "traced", told)
    assert main(["--modes", "int8", "--batches", "2"]) == 0
    printed = capsys.readouterr().out
    if found is None:
        assert printed == "int8, batch 2: goes operation by operation on this GPU\n"
    else:
        assert len(printed.splitlines()) == 2 + len(found)
        layer = sum(span.mean for span in found if not span.name.startswith(("head", "choice")))
        assert printed.splitlines()[-1].split() == ["the", "layer", f"{layer:.0f}"]


def test_another_tuning_is_handed_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(kernel_trace, "require_gpu", lambda *_, **__: None)
    given: list[object] = []
    monkeypatch.setattr(kernel_trace, "traced", lambda *told: given.append(told[-1]))
    assert main(["--modes", "int4", "--batches", "8", "--units", "11"]) == 0
    assert given == [StepTuning(units=11)]
    capsys.readouterr()
    for units in ("0", "25"):
        assert main(["--units", units]) == 2
        assert f"--units {units}; allowed: 1 to 24" in capsys.readouterr().err


@pytest.mark.parametrize("context", [0, 5000])
def test_a_context_without_room_is_refused(
    context: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kernel_trace, "require_gpu", lambda *_, **__: None)
    assert main(["--context", str(context)]) == 2
    assert f"a context of {context} tokens; allowed: 1 to 2032 with this model" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_traced_kernel_leaves_times_that_grow() -> None:
    if not can_run_on(torch.device("cuda")):
        pytest.skip("needs a GPU of compute capability 9.0")
    found = traced(SMALL, "int4", 1, 20)
    assert found is not None
    assert all(span.least >= 0 and span.most < 10**7 for span in found)
    assert traced(SMALL, "float16", 8, 20) is None
