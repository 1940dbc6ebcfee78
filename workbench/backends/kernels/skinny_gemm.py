"""``x @ weight.T`` for up to 64 rows of x, where reading the weight is all that takes time. Knows one weight at a time.

The kernel is ``skinny_gemm.cu``; here are its weights, its tile choices and its launch. Float16 activations only.
Products of more rows are cuBLAS's, from :meth:`SkinnyLinear.expanded` where the weight is packed.
"""

from __future__ import annotations

import ctypes
import enum
import functools
from dataclasses import dataclass, replace
from importlib import resources

import torch
from torch import Tensor

from workbench.backends.kernels import packing
from workbench.backends.kernels.nvrtc import Kernel, Launch, cached_cubin
from workbench.model.weights import DenseWeight, Int4GroupWeight, Int8Weight, LinearWeight, SmoothQuantWeight

SOURCES = ("ptx.cuh", "fragments.cuh", "skinny_gemm.cu")
MAX_COLUMNS = 64
MAX_SHARED_BYTES = 99 << 10  # what a block may have on sm_89 and sm_120, the least of the architectures we serve
MAX_ROW_BLOCKS = 1 << 16
WORKSPACE_SUMS = 8 << 20
NORM_BYTES = 5  # shared memory for each value of a row that the kernel normalizes: float16, its weight, INT8


class Kind(enum.IntEnum):
    """What the kernel multiplies; the values are its macro KIND."""

    FLOAT16 = 0
    INT8 = 1
    INT4 = 2
    W8A8 = 3


STEP = {Kind.FLOAT16: 32, Kind.INT8: packing.INT8_STEP, Kind.INT4: packing.INT4_STEP, Kind.W8A8: 64}
TILED = (Kind.INT8, Kind.INT4)


@dataclass(frozen=True, order=True)
class Tiles:
    """How the kernel divides its work.

    Attributes:
        row_tiles: tiles of 16 rows that a warp multiplies with one load of x.
        warps_m, warps_k: warps of a block along rows and along k.
        depth: steps of 64 bytes a row that a warp has in flight.
        split: blocks along k.
        prefetch: further steps of a warp that are brought into the L2 cache while the previous kernel ends.
    """

    row_tiles: int
    warps_m: int
    warps_k: int
    depth: int
    split: int = 1
    prefetch: int = 0

    def options(
        self, kind: Kind, column_tiles: int, *, groups: int = 1, glu: bool = False, overlap: bool = False
    ) -> list[str]:
        """The kernel's macros; ``groups`` are the scales of a step, see :func:`packing.scales_per_step`."""
        macros = {
            "KIND": kind.value,
            "TILED": int(kind in TILED),
            "ROW_TILES": self.row_tiles,
            "WM": self.warps_m,
            "WK": self.warps_k,
            "DEPTH": self.depth,
            "SPLIT": self.split,
            "COLUMN_TILES": column_tiles,
            "PREFETCH": self.prefetch,
            "GROUPS": groups,
            "GLU": int(glu),
            "PDL": int(overlap),
        }
        return [f"-D{name}={value}" for name, value in macros.items()]

    def launch(self, tiles: int, column_tiles: int, *, glu: bool, overlap: bool) -> Launch:
        """Grid, threads and shared memory for a matrix of ``tiles`` row tiles."""
        block_tiles = self.warps_m * self.row_tiles
        blocks = -(-tiles // block_tiles)
        if glu:
            blocks = -(-tiles // 2 // self.warps_m)
        shared = self.warps_k * block_tiles * packing.TILE_ROWS * (8 * column_tiles + 1) * 4
        return Launch((blocks, self.split), 32 * self.warps_m * self.warps_k, shared, overlap)


@dataclass(frozen=True)
class NormInput:
    """One row that the kernel takes through ``RMSNorm(x + residual) * weight`` itself, and quantizes for W8A8.

    Attributes:
        x, residual: float16 ``[1, in]``, or None for no residual.
        summed: where ``x + residual`` goes.
        weight: float16 ``[in]``.
        eps: of the norm.
    """

    x: Tensor
    residual: Tensor | None
    summed: Tensor
    weight: Tensor
    eps: float


class _Problem(ctypes.Structure):
    """``struct Problem`` of the kernel's source."""

    _fields_ = (
        ("weight", ctypes.c_void_p),
        ("x", ctypes.c_void_p),
        ("row_scale", ctypes.c_void_p),
        ("group_scale", ctypes.c_void_p),
        ("column_scale", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("partial", ctypes.c_void_p),
        ("arrived", ctypes.c_void_p),
        ("rows", ctypes.c_int),
        ("k", ctypes.c_int),
        ("columns", ctypes.c_int),
        ("steps_per_group", ctypes.c_int),
        ("column_scale_stride", ctypes.c_int),
        ("epsilon", ctypes.c_float),
        ("residual", ctypes.c_void_p),
        ("summed", ctypes.c_void_p),
        ("norm_weight", ctypes.c_void_p),
    )


@functools.cache
def source() -> str:
    """The kernel's CUDA C++, what it shares with others before it."""
    here = resources.files(__package__)
    return "".join(here.joinpath(name).read_text(encoding="utf-8") for name in SOURCES)


@functools.cache
def _kernel(options: tuple[str, ...], name: str, device: int) -> Kernel:
    return Kernel(cached_cubin(source(), options, architecture_of(device)), name)


def architecture_of(device: int) -> str:
    """The device's own architecture: ``sm_90``."""
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


@functools.cache
def _workspace(device: int) -> tuple[Tensor, Tensor]:
    """Sums of split blocks and their counters. One per device: kernels of one stream run one after the other."""
    partial = torch.empty(WORKSPACE_SUMS, dtype=torch.float32, device=f"cuda:{device}")
    return partial, torch.zeros(MAX_ROW_BLOCKS, dtype=torch.int32, device=f"cuda:{device}")


def supports(weight: LinearWeight) -> bool:
    """Whether the kernel can multiply this weight: rows of whole 16-byte granules, groups of whole 32 values."""
    match weight:
        case DenseWeight():
            return weight.weight.shape[1] % 8 == 0 and weight.weight.dtype == torch.float16
        case Int8Weight() | SmoothQuantWeight():
            return weight.weight.shape[1] % 16 == 0
        case Int4GroupWeight():
            return weight.weight.shape[1] % 16 == 0 and packing.sub_steps_per_group(weight) is not None


class SkinnyLinear:
    """One weight on the device, in the layout its kernel reads; float16 in and out.

    Args:
        weight: one that :func:`supports` accepts; may lie on any device.
        device: where it is to run.

    Attributes:
        kind, rows, k: what is multiplied, output features, input features.
        packed: the only copy of the weight that is kept.
    """

    def __init__(self, weight: LinearWeight, device: torch.device) -> None:
        self.device = device
        self.rows = weight.weight.shape[0]
        self.k = weight.weight.shape[1] * (2 if isinstance(weight, Int4GroupWeight) else 1)
        self.bias = None if weight.bias is None else weight.bias.to(device, torch.float16)
        self.row_scale: Tensor | None = None
        self.group_scale: Tensor | None = None
        self.steps_per_group = self.groups = 1
        held = weight.weight.to(device)
        match weight:
            case DenseWeight():
                self.kind, self.packed = Kind.FLOAT16, held.contiguous()
            case Int8Weight():
                self.kind, self.packed = Kind.INT8, packing.tile_int8(held)
                self.row_scale = weight.weight_scale.to(device).contiguous()
            case Int4GroupWeight():
                self.kind, self.packed = Kind.INT4, packing.tile_int4(held)
                self.group_scale = packing.tile_scales(weight).to(device)
                self.groups = packing.scales_per_step(weight)
                self.steps_per_group = packing.sub_steps_per_group(weight) or 1
            case SmoothQuantWeight():
                self.kind, self.packed = Kind.W8A8, held.contiguous()
                self.row_scale = weight.weight_scale.to(device).contiguous()

    @property
    def nbytes(self) -> int:
        """Bytes that one product reads of the weight."""
        held = (self.packed, self.row_scale, self.group_scale, self.bias)
        return sum(tensor.nbytes for tensor in held if tensor is not None)

    def can_pair(self) -> bool:
        """Whether rows divide into (gate, up) pairs of whole tiles."""
        return self.rows % (2 * packing.TILE_ROWS) == 0

    def __call__(
        self,
        x: Tensor | NormInput,
        tiles: Tiles,
        *,
        column_scale: Tensor | None = None,
        glu: bool = False,
        overlap: bool = False,
    ) -> Tensor:
        """``[columns, in] -> [columns, out]`` float16, or ``[columns, out / 2]`` of ``silu(gate) * up``.

        Args:
            x: float16; int8 for W8A8. At most :data:`MAX_COLUMNS` rows, contiguous. Or a norm that gives the one row.
            tiles: see :mod:`workbench.backends.kernels.tuning`.
            column_scale: float32 ``[columns, 1]`` or ``[]``; W8A8 only, and for a norm only where it is calibrated.
            glu: rows are gate, then up.
            overlap: see :class:`Launch`.
        """
        norm = x if isinstance(x, NormInput) else None
        x = x.x if isinstance(x, NormInput) else x
        columns = x.shape[0]
        y = torch.empty(columns, self.rows // 2 if glu else self.rows, dtype=torch.float16, device=x.device)
        problem = self._problem(x, y, column_scale)
        if norm is not None:
            _add_norm(problem, norm)
        if tiles.split > 1:
            partial, arrived = _workspace(x.device.index or 0)
            problem.partial, problem.arrived = partial.data_ptr(), arrived.data_ptr()
        column_tiles = column_tiles_of(columns)
        kernel = self.kernel(tiles, columns, glu=glu, overlap=overlap, norm=norm is not None)
        launch = tiles.launch(-(-self.rows // packing.TILE_ROWS), column_tiles, glu=glu, overlap=overlap)
        if norm is not None:
            launch = replace(launch, shared_bytes=launch.shared_bytes + NORM_BYTES * self.k)
        kernel(launch, problem)
        return y

    def compile(self, tiles: Tiles, columns: int, *, glu: bool, overlap: bool, norm: bool = False) -> None:
        """Put the kernel of a choice into the cache on disk; any thread may."""
        options = self._options(tiles, columns, glu=glu, overlap=overlap, norm=norm)
        cached_cubin(source(), options, architecture_of(self.packed.device.index or 0))

    def kernel(self, tiles: Tiles, columns: int, *, glu: bool, overlap: bool, norm: bool = False) -> Kernel:
        """The compiled kernel of a choice."""
        options = self._options(tiles, columns, glu=glu, overlap=overlap, norm=norm)
        return _kernel(tuple(options), "skinny_gemm", self.packed.device.index or 0)

    def _options(self, tiles: Tiles, columns: int, *, glu: bool, overlap: bool, norm: bool) -> list[str]:
        options = tiles.options(self.kind, column_tiles_of(columns), groups=self.groups, glu=glu, overlap=overlap)
        return [*options, f"-DNORM={int(norm)}"]

    def expanded(self) -> Tensor:
        """The weight as float16 ``[out, in]``, rounded as the oracle rounds it; INT8 and INT4 only."""
        y = torch.empty(self.rows, self.k, dtype=torch.float16, device=self.packed.device)
        options = Tiles(1, 1, 1, 1).options(self.kind, 1, groups=self.groups)
        options.append("-DNORM=0")
        kernel = _kernel(tuple(options), "expand", y.device.index or 0)
        threads = self.packed.numel() // 16
        kernel(Launch((-(-threads // 256), 1), 256), self._problem(y, y, None))
        return y

    def _problem(self, x: Tensor, y: Tensor, column_scale: Tensor | None) -> _Problem:
        return _Problem(
            weight=self.packed.data_ptr(),
            x=x.data_ptr(),
            row_scale=address_of(self.row_scale),
            group_scale=address_of(self.group_scale),
            column_scale=address_of(column_scale),
            bias=address_of(self.bias),
            y=y.data_ptr(),
            rows=self.rows,
            k=self.k,
            columns=x.shape[0],
            steps_per_group=self.steps_per_group,
            column_scale_stride=0 if column_scale is None or column_scale.numel() == 1 else 1,
        )


def address_of(tensor: Tensor | None) -> int | None:
    """Of a tensor that a kernel may do without."""
    return None if tensor is None else tensor.data_ptr()


def _add_norm(problem: _Problem, norm: NormInput) -> None:
    problem.epsilon = norm.eps
    problem.residual = None if norm.residual is None else norm.residual.data_ptr()
    problem.summed = norm.summed.data_ptr()
    problem.norm_weight = norm.weight.data_ptr()


def column_tiles_of(columns: int) -> int:
    """Tiles of 8 columns, rounded up to a power of two: kernels are compiled for 1, 2, 4 and 8."""
    return 1 << max(0, (-(-columns // 8) - 1).bit_length())
