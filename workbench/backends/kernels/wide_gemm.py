"""``x @ weight.T`` for up to 64 rows of x on Hopper, all blocks at once. Knows one weight at a time.

The kernel is ``wide_gemm.cu``; here are its choices and its launch, for weights that :class:`SkinnyLinear` packed.
Other GPUs do without: there ``choose_wide`` is None.
"""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from importlib import resources

import torch
from torch import Tensor

from workbench.backends.kernels import packing
from workbench.backends.kernels.nvrtc import Box, Kernel, Launch, TensorMap, cached_cubin, code_digest, tensor_map
from workbench.backends.kernels.skinny_gemm import (
    MAX_COLUMNS,
    TILED,
    Kind,
    SkinnyLinear,
    address_of,
    column_tiles_of,
)

HOPPER = (9, 0)
ARCHITECTURE = "sm_90a"  # wgmma is no part of plain sm_90
MAX_STAGES = 16
BEGIN_AND_END_ROWS = 32  # what a block's beginning and end take, in rows of the weight
BOX_BYTES = 128  # of a row, of the weight where it is stored by rows and of x
STAGE_BYTES = 216 << 10  # of all stages of a block
ALIGNMENT = 1024
STEP_BYTES = 1024  # of a row tile of packed weights


@dataclass(frozen=True, order=True)
class WideTiles:
    """How the kernel divides its work.

    Attributes:
        warps_m, warps_n: warps of a block along rows and along columns; for float16 and W8A8 weights, whose products
            take four warps together, a multiple of 4 and 1.
        row_tiles: tiles of 16 rows of a warp; an even number for packed weights that are gates and ups.
        cluster: blocks along k.
        depth: boxes of weights that a stage holds.
    """

    warps_m: int
    warps_n: int
    row_tiles: int
    cluster: int
    depth: int = 1

    @property
    def rows(self) -> int:
        """Rows of a block."""
        return self.warps_m * self.row_tiles * packing.TILE_ROWS

    def blocks(self, rows: int) -> int:
        """Of a matrix of so many rows."""
        return -(-rows // self.rows) * self.cluster

    def column_tiles(self, columns: int) -> int:
        """Tiles of 8 columns that the kernel is compiled for."""
        return max(self.warps_n, column_tiles_of(columns))

    def stage_bytes(self, kind: Kind, column_tiles: int, groups: int) -> int:
        """Shared memory of one stage."""
        weights = self.depth * self.rows * (BOX_BYTES // 2 if kind in TILED else BOX_BYTES)
        x = self.x_boxes(kind) * 8 * column_tiles * BOX_BYTES
        scales = self.depth * groups * self.rows * 2 if kind is Kind.INT4 else 0
        return -(-(weights + x + scales) // ALIGNMENT) * ALIGNMENT

    def stages(self, kind: Kind, column_tiles: int, groups: int) -> int:
        """As many as fit a processor's shared memory."""
        return min(MAX_STAGES, STAGE_BYTES // self.stage_bytes(kind, column_tiles, groups))

    def x_boxes(self, kind: Kind) -> int:
        """Boxes of x that go with a stage's weights."""
        return self.depth * (2 if kind is Kind.INT4 else 1)

    def options(self, kind: Kind, column_tiles: int, *, groups: int, glu: bool, overlap: bool) -> list[str]:
        """The kernel's macros; ``groups`` are the scales of a step, see :func:`packing.scales_per_step`."""
        macros = {
            "KIND": kind.value,
            "WM": self.warps_m,
            "WN": self.warps_n,
            "ROW_TILES": self.row_tiles,
            "COLUMN_TILES": column_tiles // self.warps_n,
            "CLUSTER": self.cluster,
            "STAGES": self.stages(kind, column_tiles, groups),
            "DEPTH": self.depth,
            "GROUPS": groups,
            "GLU": int(glu),
            "PDL": int(overlap),
        }
        return [f"-D{name}={value}" for name, value in macros.items()]

    def launch(self, kind: Kind, column_tiles: int, groups: int, blocks: int, *, overlap: bool) -> Launch:
        """Grid, threads and shared memory; one warp only copies."""
        shared = ALIGNMENT + self.stages(kind, column_tiles, groups) * self.stage_bytes(kind, column_tiles, groups)
        return Launch((blocks, 1), 32 * (self.warps_m * self.warps_n + 1), shared, overlap)


def choose_wide(linear: SkinnyLinear, columns: int) -> WideTiles | None:
    """A sound choice for any shape; None where the kernel does not run, was not compared, or is not faster."""
    used = columns >= MIN_COLUMNS[linear.kind] and compared()
    return possible_wide(linear, columns) if used else None


def possible_wide(linear: SkinnyLinear, columns: int) -> WideTiles | None:
    """As :func:`choose_wide`, wherever the kernel runs: kinds and numbers of rows that it does not yet serve too."""
    if not 1 <= columns <= MAX_COLUMNS:
        return None
    capability, processors = _device(linear.packed.device.index or 0)
    return default_wide(linear.kind, linear.rows, columns, processors) if capability == HOPPER else None


def default_wide(kind: Kind, rows: int, columns: int, processors: int) -> WideTiles:
    """The choice whose blocks end first where every processor runs one block after the other.

    Args:
        kind: of the weight.
        rows: of the weight.
        columns: rows of x; those that round up to one number of column tiles share their choice.
        processors: of the GPU.
    """

    def time(tiles: WideTiles) -> float:
        return -(-tiles.blocks(rows) // processors) * (tiles.rows / tiles.cluster + BEGIN_AND_END_ROWS)

    return min(CHOICES[kind, column_tiles_of(columns)], key=time)


@functools.cache
def _device(index: int) -> tuple[tuple[int, int], int]:
    """Compute capability and number of processors."""
    return torch.cuda.get_device_capability(index), torch.cuda.get_device_properties(index).multi_processor_count


# :func:`~workbench.backends.kernels.nvrtc.code_digest` of the kernel whose products of every kind were compared with
# the plain op set on a GPU (``kernel_checks`` prints the present one's). Another is timed, but not used.
COMPARED_CODE = "35898bdf1d9db5e5"

# Fewest rows of x for which a kind's products are used: from there on they were faster on an H100 than what else goes
# operation by operation; INT4 at 5 to 8 rows by the sum of its products (2.66 against 2.98 ms a step of a 7B).
MIN_COLUMNS: dict[Kind, int] = {Kind.FLOAT16: 3, Kind.INT8: 5, Kind.INT4: 5, Kind.W8A8: 3}

# As measured on an H100 for the shapes of InternLM-7B with 8, 16, 32 and 64 rows of x. What is chosen from, by kind and
# column tiles; the first of equals is taken. Packed weights that are gates and ups need an even number of row tiles.
_WHOLE_64 = (
    WideTiles(12, 1, 1, 1, depth=2),
    WideTiles(12, 1, 1, 2, depth=2),
    WideTiles(8, 1, 1, 1, depth=2),
    WideTiles(16, 1, 1, 1),
    WideTiles(4, 1, 1, 2, depth=2),
)
_PACKED_64 = (WideTiles(11, 1, 2, 2), WideTiles(6, 2, 2, 1), WideTiles(6, 2, 2, 2, depth=2), WideTiles(4, 2, 2, 3))
CHOICES: dict[tuple[Kind, int], tuple[WideTiles, ...]] = {
    (Kind.FLOAT16, 1): (
        WideTiles(4, 1, 2, 1, depth=2),
        WideTiles(4, 1, 1, 2, depth=4),
        WideTiles(12, 1, 1, 1),
        WideTiles(4, 1, 2, 3, depth=2),
        WideTiles(12, 1, 1, 2, depth=2),
    ),
    (Kind.FLOAT16, 2): (
        WideTiles(8, 1, 1, 1),
        WideTiles(4, 1, 1, 2, depth=2),
        WideTiles(12, 1, 1, 1, depth=2),
        WideTiles(4, 1, 1, 2, depth=4),
        WideTiles(4, 1, 2, 1, depth=2),
    ),
    (Kind.FLOAT16, 4): (
        WideTiles(4, 1, 2, 1, depth=2),
        WideTiles(4, 1, 1, 2, depth=2),
        WideTiles(12, 1, 1, 1, depth=2),
        WideTiles(8, 1, 1, 1, depth=2),
    ),
    (Kind.FLOAT16, 8): _WHOLE_64,
    (Kind.INT8, 1): (
        WideTiles(3, 1, 2, 1, depth=4),
        WideTiles(11, 1, 2, 8, depth=2),
        WideTiles(3, 1, 4, 1, depth=2),
        WideTiles(3, 1, 4, 5, depth=2),
    ),
    (Kind.INT8, 2): (WideTiles(3, 1, 2, 1, depth=4), WideTiles(2, 2, 2, 2, depth=4), WideTiles(6, 1, 2, 1, depth=2)),
    (Kind.INT8, 4): (WideTiles(3, 1, 2, 1, depth=2), WideTiles(2, 2, 2, 2, depth=2), WideTiles(6, 2, 2, 1, depth=2)),
    (Kind.INT8, 8): _PACKED_64,
    (Kind.INT4, 1): (
        WideTiles(4, 1, 2, 3, depth=2),
        WideTiles(11, 1, 2, 2),
        WideTiles(4, 1, 4, 6),
        WideTiles(3, 1, 2, 1, depth=4),
    ),
    (Kind.INT4, 2): (WideTiles(3, 1, 2, 1, depth=4), WideTiles(2, 2, 2, 2, depth=4), WideTiles(12, 1, 2, 2)),
    (Kind.INT4, 4): (WideTiles(3, 1, 2, 1, depth=2), WideTiles(2, 2, 2, 2, depth=2), WideTiles(11, 1, 2, 2, depth=2)),
    (Kind.INT4, 8): _PACKED_64,
    (Kind.W8A8, 1): (
        WideTiles(4, 1, 1, 2, depth=2),
        WideTiles(12, 1, 1, 1),
        WideTiles(4, 1, 1, 2, depth=4),
        WideTiles(8, 1, 1, 1),
    ),
    (Kind.W8A8, 2): (
        WideTiles(8, 1, 1, 1, depth=2),
        WideTiles(4, 1, 2, 3, depth=2),
        WideTiles(12, 1, 1, 1),
        WideTiles(8, 1, 1, 3),
    ),
    (Kind.W8A8, 4): (
        WideTiles(8, 1, 1, 1, depth=2),
        WideTiles(4, 1, 2, 3, depth=2),
        WideTiles(12, 1, 1, 1),
        WideTiles(4, 1, 1, 2, depth=2),
    ),
    (Kind.W8A8, 8): _WHOLE_64,
}


class WideProblem(ctypes.Structure):
    """``struct Problem`` of the kernel's source."""

    _fields_ = (
        ("weight", TensorMap),
        ("x", TensorMap),
        ("row_scale", ctypes.c_void_p),
        ("group_scale", ctypes.c_void_p),
        ("column_scale", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("rows", ctypes.c_int),
        ("columns", ctypes.c_int),
        ("steps", ctypes.c_int),
        ("groups", ctypes.c_int),
        ("steps_per_group", ctypes.c_int),
        ("column_scale_stride", ctypes.c_int),
    )


@functools.cache
def source() -> str:
    """The kernel's CUDA C++, what it shares with others before it."""
    here = resources.files(__package__)
    names = ("ptx.cuh", "fragments.cuh", "wide_gemm.cu")
    return "".join(here.joinpath(name).read_text(encoding="utf-8") for name in names)


@functools.cache
def compared() -> bool:
    """Whether the present kernel is the one that was compared."""
    return code_digest(source()) == COMPARED_CODE


@functools.cache
def _kernel(options: tuple[str, ...], device: int) -> Kernel:
    with torch.cuda.device(device):
        return Kernel(cached_cubin(source(), options, ARCHITECTURE), "wide_gemm")


def wide_linear(
    linear: SkinnyLinear,
    x: Tensor,
    tiles: WideTiles,
    *,
    column_scale: Tensor | None = None,
    glu: bool = False,
    overlap: bool = False,
) -> Tensor:
    """``[columns, in] -> [columns, out]`` float16, or ``[columns, out / 2]`` of ``silu(gate) * up``.

    Args:
        linear: the weight.
        x: float16; int8 for W8A8. At most :data:`MAX_COLUMNS` rows, contiguous.
        tiles: see :func:`choose_wide`.
        column_scale, glu, overlap: see :meth:`SkinnyLinear.__call__`.
    """
    device, columns = x.device.index or 0, x.shape[0]
    y = torch.empty(columns, linear.rows // 2 if glu else linear.rows, dtype=torch.float16, device=x.device)
    column_tiles = tiles.column_tiles(columns)
    per_stage = tiles.x_boxes(linear.kind) * BOX_BYTES // x.element_size()
    problem = WideProblem(
        weight=_weight_map(linear, tiles, glu=glu),
        x=tensor_map(x, Box(columns, linear.k * x.element_size(), 8 * column_tiles, BOX_BYTES, swizzled=True)),
        row_scale=address_of(linear.row_scale),
        group_scale=address_of(linear.group_scale),
        column_scale=address_of(column_scale),
        bias=address_of(linear.bias),
        y=y.data_ptr(),
        rows=linear.rows,
        columns=columns,
        steps=-(-linear.k // per_stage),
        groups=1 if linear.group_scale is None else linear.group_scale.shape[0],
        steps_per_group=linear.steps_per_group,
        column_scale_stride=0 if column_scale is None or column_scale.numel() == 1 else 1,
    )
    options = tiles.options(linear.kind, column_tiles, groups=linear.groups, glu=glu, overlap=overlap)
    launch = tiles.launch(linear.kind, column_tiles, linear.groups, tiles.blocks(linear.rows), overlap=overlap)
    _kernel(tuple(options), device)(launch, problem)
    return y


def _weight_map(linear: SkinnyLinear, tiles: WideTiles, *, glu: bool) -> TensorMap:
    """Boxes of a block's rows, or of its gates and of their ups."""
    rows = tiles.rows // 2 if glu else tiles.rows
    if linear.kind in TILED:
        held, steps = linear.packed.shape[:2]
        box = Box(held, steps * STEP_BYTES, rows // packing.TILE_ROWS, STEP_BYTES, swizzled=False)
    else:
        box = Box(linear.rows, linear.k * linear.packed.element_size(), rows, BOX_BYTES, swizzled=True)
    return tensor_map(linear.packed, box)
