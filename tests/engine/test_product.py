from __future__ import annotations

from types import SimpleNamespace

import pytest

from workbench.engine import product
from workbench.errors import BackendError

FULL, RTX = SimpleNamespace(__version__="11.4"), SimpleNamespace(__version__="1.7")


def machine(monkeypatch: pytest.MonkeyPatch, gpu: bool, *installed: str) -> None:
    modules = {"tensorrt": FULL, "tensorrt_rtx": RTX}
    monkeypatch.setattr(product, "cuda_capability", lambda: (8, 9) if gpu else None)
    monkeypatch.setattr(product, "_import", lambda name: modules[name] if name in installed else None)


def test_the_full_product_builds_where_there_is_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, True, "tensorrt", "tensorrt_rtx")
    assert product.product_for_building().name == "tensorrt"


def test_rtx_builds_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, False, "tensorrt", "tensorrt_rtx")
    chosen = product.product_for_building()
    assert (chosen.name, chosen.version) == ("tensorrt_rtx", "1.7")


def test_rtx_builds_where_the_full_product_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, True, "tensorrt_rtx")
    assert product.product_for_building().name == "tensorrt_rtx"


def test_a_missing_product_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, True)
    with pytest.raises(BackendError, match="no TensorRT is installed"):
        product.product_for_building()
    with pytest.raises(BackendError, match=r"built with tensorrt, which is not installed here.*--backend cpu"):
        product.product_named("tensorrt")
