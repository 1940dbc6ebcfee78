"""Tile choices: every rule's and every tuned one fits the hardware. Timing is not tested."""

from __future__ import annotations

import json
from importlib import resources

import pytest
import torch

pytest.importorskip("triton", reason="needs triton")

from workbench.backends.kernels import tuning
from workbench.backends.kernels.int8_gemm import Int8Tiles
from workbench.backends.kernels.skinny_gemm import MAX_SHARED_BYTES, SkinnyLinear, Tiles, column_tiles_of
from workbench.model.weights import Int8Weight

GPU = "A GPU"


def _linear(rows: int, k: int) -> SkinnyLinear:
    return SkinnyLinear(Int8Weight(torch.zeros(rows, k, dtype=torch.int8), torch.ones(rows)), torch.device("cpu"))


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch, tmp_path: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: GPU)
    tuning._table.cache_clear()


@pytest.mark.parametrize("glu", [False, True])
@pytest.mark.parametrize("columns", [1, 8, 9, 32, 64])
@pytest.mark.parametrize(("rows", "k"), [(64, 64), (4096, 128), (16384, 64)])
def test_what_the_rule_chooses_fits(rows: int, k: int, columns: int, glu: bool) -> None:
    linear = _linear(rows, k)
    tiles = tuning.default_tiles(linear, columns, glu=glu)
    assert tiles is not None
    column_tiles = column_tiles_of(columns)
    launch = tiles.launch(rows // 16, column_tiles, glu=glu, overlap=False)
    assert launch.shared_bytes <= MAX_SHARED_BYTES
    assert launch.threads <= 1024
    assert tiles.split == 1 or tuning.fits_workspace(tiles, linear, column_tiles)
    assert not glu or tiles.row_tiles == 2


def test_candidates_fit_and_none_is_offered_twice() -> None:
    linear = _linear(4096, 512)
    for columns in (1, 8, 64):
        found = list(tuning.candidates(linear, columns, glu=False))
        assert len(set(found)) == len(found) > 10
        for tiles in found:
            launch = tiles.launch(256, column_tiles_of(columns), glu=False, overlap=False)
            assert launch.shared_bytes <= MAX_SHARED_BYTES


@pytest.mark.usefixtures("table")
def test_what_was_measured_is_remembered_and_chosen() -> None:
    linear = _linear(64, 64)
    rule = tuning.choose(linear, 1, glu=False)
    other = Tiles(4, 1, 2, 1)
    assert other != rule
    tuning.remember(GPU, {tuning.key_of(linear, 1, glu=False): tuning.as_entry(other)})
    assert tuning.choose(linear, 1, glu=False) == other
    assert tuning.choose(linear, 8, glu=False) == tuning.default_tiles(linear, 8, glu=False)
    tuning.remember(GPU, {tuning.key_of(linear, 1, glu=False): []})
    assert tuning.choose(linear, 1, glu=False) is None


@pytest.mark.usefixtures("table")
def test_a_norm_is_taken_along_only_where_that_was_measured() -> None:
    linear = _linear(64, 64)
    assert tuning.choose_with_norm(linear, glu=False) is None
    tuning.remember(GPU, {tuning.norm_key_of(linear, glu=False): [1, 1, 8, 1, 1, 0]})
    assert tuning.choose_with_norm(linear, glu=False) == Tiles(1, 1, 8, 1)


def test_packaged_choices_can_be_read() -> None:
    packaged = json.loads(resources.files("workbench.backends.kernels").joinpath("tiles.json").read_text())
    for choices in packaged.values():
        for key, entry in choices.items():
            assert Int8Tiles(*entry) if key.startswith("int8_gemm") else Tiles(*entry)
