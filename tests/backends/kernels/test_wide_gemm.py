"""Products of up to 64 rows on Hopper against the plain torch op set; compiled and laid out without a GPU."""

from __future__ import annotations

import ctypes

import pytest
import torch
from torch import Tensor

from tests.backends.kernels.test_skinny_gemm import KINDS, make_weight, needs_gpu, needs_nvrtc, on_gpu
from tests.tolerances import TOLERANCE, relative_l2
from workbench.backends.kernels import packing, wide_gemm
from workbench.backends.kernels.nvrtc import compile_cubin
from workbench.backends.kernels.skinny_gemm import MAX_COLUMNS, TILED, Kind, SkinnyLinear, column_tiles_of
from workbench.backends.kernels.wide_gemm import (
    ARCHITECTURE,
    CHOICES,
    HOPPER,
    MIN_COLUMNS,
    STAGE_BYTES,
    WideProblem,
    WideTiles,
    choose_wide,
    default_wide,
    possible_wide,
    source,
    wide_linear,
)
from workbench.backends.torch_ops import TorchOps
from workbench.model.numerics import quantize_int8, quantize_per_token
from workbench.model.weights import LinearWeight, SmoothQuantWeight

HALF = torch.float16
H100_PROCESSORS = 132
COLUMNS = (1, 5, 8, 9, 16, 17, 32, 33, 64)  # both ends of every number of column tiles
SHAPES_7B = [(12288, 4096, False), (4096, 4096, False), (22016, 4096, True), (4096, 11008, False)]


def _is_hopper() -> bool:
    return torch.cuda.is_available() and torch.cuda.get_device_capability() == HOPPER


needs_hopper = pytest.mark.skipif(not _is_hopper(), reason="needs a Hopper GPU")


def run(weight: LinearWeight, x: Tensor, tiles: WideTiles, *, glu: bool = False, overlap: bool = False) -> Tensor:
    linear = SkinnyLinear(weight, torch.device("cuda"))
    if not isinstance(weight, SmoothQuantWeight):
        return wide_linear(linear, x, tiles, glu=glu, overlap=overlap)
    scale = None if weight.input_scale is None else weight.input_scale.cuda()
    q, token_scale = quantize_per_token(x) if scale is None else (quantize_int8(x, scale), scale)
    return wide_linear(linear, q, tiles, column_scale=token_scale, glu=glu, overlap=overlap)


def _choices(kind: str) -> list[WideTiles]:
    if kind == "dense" or kind.startswith("w8a8"):
        return [WideTiles(12, 1, 1, 2), WideTiles(4, 1, 1, 3), WideTiles(8, 1, 2, 1, depth=2)]
    return [WideTiles(6, 2, 2, 2), WideTiles(4, 1, 2, 3), WideTiles(3, 1, 4, 1, depth=2)]


SHAPES = (
    (200, 160, 1),
    (264, 608, 5),
    (2052, 352, 8),
    (48, 64, 9),
    (200, 352, 17),
    (2052, 96, 33),
    (264, 1120, 50),
    (4096, 4096, 64),
)


@pytest.mark.gpu
@needs_gpu
@needs_hopper
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("kind", KINDS)
def test_a_product_matches_the_oracle_on_shapes_that_divide_nothing(kind: str) -> None:
    for rows, k, columns in SHAPES:
        weight = make_weight(kind, rows, k)
        x = torch.randn(columns, k, generator=torch.Generator().manual_seed(columns)).half().cuda()
        expected = TorchOps(HALF).linear(x, on_gpu(weight), "")
        for tiles in _choices(kind):
            found = run(weight, x, tiles)
            # Parts of k are added in one order, whichever block comes first.
            assert torch.equal(run(weight, x, tiles, overlap=True), found), (rows, k, columns, tiles)
            if kind.startswith("w8a8"):
                assert torch.equal(found, expected), (rows, k, columns, tiles)
            else:
                assert relative_l2(found, expected) < TOLERANCE[HALF]["op"], (rows, k, columns, tiles)


@pytest.mark.gpu
@needs_gpu
@needs_hopper
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("kind", ["dense", "int8", "int4_128", "w8a8"])
def test_gate_and_up_go_through_swiglu_in_the_same_kernel(kind: str) -> None:
    ops = TorchOps(HALF)
    for rows, k, columns in ((352, 608, 3), (96, 352, 8), (96, 128, 9), (352, 576, 24), (1056, 256, 64)):
        weight = make_weight(kind, rows, k, bias=kind == "dense")
        x = torch.randn(columns, k, generator=torch.Generator().manual_seed(columns)).half().cuda()
        expected = ops.swiglu(ops.linear(x, on_gpu(weight), ""))
        for tiles in _choices(kind):
            found = run(weight, x, tiles, glu=True, overlap=True)
            assert relative_l2(found, expected) < TOLERANCE[HALF]["op"], (rows, k, columns, tiles)


@pytest.mark.gpu
@needs_gpu
@needs_hopper
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("kind", ["dense", "int8", "int4_128", "w8a8"])
def test_the_choice_for_every_number_of_columns_is_sound(kind: str) -> None:
    for rows, k, glu in ((1024, 512, True), (12288, 256, False)):
        weight = make_weight(kind, rows, k, bias=False)
        linear = SkinnyLinear(weight, torch.device("cuda"))
        for columns in COLUMNS:
            x = torch.randn(columns, k, generator=torch.Generator().manual_seed(columns)).half().cuda()
            tiles = default_wide(linear.kind, linear.rows, columns, H100_PROCESSORS)
            expected = TorchOps(HALF).linear(x, on_gpu(weight), "")
            expected = TorchOps(HALF).swiglu(expected) if glu else expected
            assert relative_l2(run(weight, x, tiles, glu=glu), expected) < TOLERANCE[HALF]["op"], (rows, columns)
        assert possible_wide(linear, MAX_COLUMNS + 1) is None


@pytest.fixture
def on_hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every device is an H100, and the kernel was compared."""
    monkeypatch.setattr(wide_gemm, "_device", lambda _: (HOPPER, H100_PROCESSORS))
    monkeypatch.setattr(wide_gemm, "compared", lambda: True)


def _small(kind: str) -> SkinnyLinear:
    return SkinnyLinear(make_weight(kind, 64, 128, bias=False), torch.device("cpu"))


@pytest.mark.usefixtures("on_hopper")
@pytest.mark.parametrize("kind", ["dense", "int8", "int4_128", "w8a8"])
def test_a_kernel_that_was_not_compared_is_not_chosen(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    linear = _small(kind)
    assert choose_wide(linear, 40) == default_wide(linear.kind, 64, 40, H100_PROCESSORS)
    monkeypatch.setattr(wide_gemm, "compared", lambda: False)
    assert choose_wide(linear, 40) is None
    assert possible_wide(linear, 40) is not None


@pytest.mark.usefixtures("on_hopper")
@pytest.mark.parametrize("kind", ["dense", "int8", "int4_128", "w8a8"])
def test_every_kind_has_its_own_fewest_rows(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    linear = _small(kind)
    for fewest in (5, 33):
        monkeypatch.setitem(MIN_COLUMNS, linear.kind, fewest)
        assert choose_wide(linear, fewest - 1) is None
        assert choose_wide(linear, fewest) == default_wide(linear.kind, 64, fewest, H100_PROCESSORS)


@pytest.mark.usefixtures("on_hopper")
@pytest.mark.parametrize("kind", ["dense", "int8", "int4_128", "w8a8"])
def test_the_kernel_can_take_every_number_of_rows_that_it_is_made_for(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    linear = _small(kind)
    for columns in COLUMNS:
        assert possible_wide(linear, columns) == default_wide(linear.kind, 64, columns, H100_PROCESSORS)
    assert possible_wide(linear, MAX_COLUMNS + 1) is None
    assert possible_wide(linear, 0) is None
    monkeypatch.setattr(wide_gemm, "_device", lambda _: ((8, 9), H100_PROCESSORS))
    assert possible_wide(linear, 40) is None


@needs_nvrtc
@pytest.mark.parametrize("kind", list(Kind), ids=lambda kind: kind.name)
@pytest.mark.parametrize("columns", [8, 16, 32, 64])
def test_the_kernel_compiles_without_a_gpu(kind: Kind, columns: int) -> None:
    for rows, glu, groups in ((12288, False, 1), (4096, False, 4), (22016, True, 4)):
        tiles = default_wide(kind, rows, columns, H100_PROCESSORS)
        groups = groups if kind is Kind.INT4 else 1
        options = tiles.options(kind, tiles.column_tiles(columns), groups=groups, glu=glu, overlap=not glu)
        assert compile_cubin(source(), options, ARCHITECTURE).startswith(b"\x7fELF")


@pytest.mark.parametrize(("columns", "tiles"), [(1, 1), (8, 1), (9, 2), (17, 4), (33, 8)])
def test_columns_are_padded_to_tiles_of_eight(columns: int, tiles: int) -> None:
    assert WideTiles(4, 1, 2, 1).column_tiles(columns) == tiles
    assert WideTiles(4, 2, 2, 1).column_tiles(columns) == max(2, tiles)  # one for each warp at least


@pytest.mark.parametrize(("kind", "column_tiles"), CHOICES, ids=lambda each: getattr(each, "name", str(each)))
def test_every_choice_fits_the_kernel_and_shared_memory(kind: Kind, column_tiles: int) -> None:
    for tiles in CHOICES[kind, column_tiles]:
        assert tiles.column_tiles(8 * column_tiles) == column_tiles  # no column is multiplied for nothing
        if kind in TILED:
            assert tiles.row_tiles % 2 == 0
            assert tiles.warps_m * tiles.row_tiles <= 256
        else:
            assert (tiles.warps_m % 4, tiles.warps_n) == (0, 1)
            assert tiles.rows <= 256  # of one bulk copy
        for groups in (1, 2, 4) if kind is Kind.INT4 else (1,):
            held = tiles.stages(kind, column_tiles, groups) * tiles.stage_bytes(kind, column_tiles, groups)
            assert tiles.stages(kind, column_tiles, groups) >= 2
            # The sums of a block lie where its stages were.
            assert 8 * column_tiles * (tiles.rows + packing.TILE_ROWS // 2) * 4 <= held <= STAGE_BYTES


def test_there_are_choices_for_every_kind_and_number_of_columns() -> None:
    assert set(CHOICES) == {(kind, column_tiles_of(columns)) for kind in Kind for columns in range(1, MAX_COLUMNS + 1)}


@pytest.mark.parametrize("columns", COLUMNS)
def test_a_choice_runs_all_its_blocks_at_once(columns: int) -> None:
    for kind in Kind:
        for rows, _, _ in SHAPES_7B:
            assert 80 <= default_wide(kind, rows, columns, H100_PROCESSORS).blocks(rows) <= 132


def test_fewer_processors_get_fewer_blocks() -> None:
    for rows, _, _ in SHAPES_7B:
        assert default_wide(Kind.W8A8, rows, 64, 114).blocks(rows) <= 114


def test_the_kernels_argument_is_laid_out_as_its_source_says() -> None:
    assert ctypes.sizeof(WideProblem) % 64 == 0
    assert WideProblem.x.offset == 128
    assert WideProblem.row_scale.offset == 256
