"""CUDA C++ compiled at run time and launched on torch's stream. Knows nothing of what the kernels compute.

NVRTC and the driver are called through ctypes: every CUDA build of torch brings NVRTC along, so nothing is built at
install time and no compiler is needed. Compiled code is kept on disk by a hash of source, options and architecture.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
import os
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from workbench.errors import BackendError

MAX_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
NUM_REGS = 4  # CU_FUNC_ATTRIBUTE_NUM_REGS
COOPERATIVE = 2  # CU_LAUNCH_ATTRIBUTE_COOPERATIVE
PROGRAMMATIC_SERIALIZATION = 6  # CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
DEFAULT_SHARED_BYTES = 48 << 10
MAP_ALIGNMENT = 64
MAP_BYTES, MAP_WORDS, MAP_SWIZZLE_128, MAP_L2_256 = 0, 2, 3, 3  # of the driver's CUtensorMap enumerations


def cache_dir() -> Path:
    """Where compiled kernels and tuned choices are kept: ``WORKBENCH_CACHE``, or the user's cache folder."""
    chosen = os.environ.get("WORKBENCH_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(chosen) if chosen else Path(base) / "internlm-workbench"


def code_digest(source: str) -> str:
    """16 hexadecimal digits of a SHA-256 of ``source``'s code: without comments that begin with ``//``, and layout.

    A preprocessor's directive ends with its line, so those keep theirs.
    """
    lines = (" ".join(line.split()) for line in re.sub(r"//[^\n]*", "", source).replace("\\\n", " ").splitlines())
    text = " ".join(f"\n{line}\n" if line.startswith("#") else line for line in lines if line)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_atomically(path: Path, data: bytes) -> None:
    """``data`` at ``path``, whole or not at all, with others writing it at the same time. A full disk is no error."""
    part = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(data)
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)


def find_nvrtc() -> Path | None:
    """The newest NVRTC beside torch's own libraries or in ``CUDA_HOME``; None where there is none."""
    spec = importlib.util.find_spec("nvidia")
    places = [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []
    found = [library for place in places for library in place.glob("*/lib/libnvrtc.so.*")]
    home = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
    found = found or list(home.glob("lib64/libnvrtc.so.*"))
    return max(found, key=lambda path: path.name, default=None)


@functools.cache
def _nvrtc() -> Any:
    library = find_nvrtc()
    if library is None:
        raise BackendError(
            "NVRTC, CUDA's run-time compiler, was not found",
            fix="install the CUDA build of torch, or `pip install nvidia-cuda-nvrtc`",
        )
    return ctypes.CDLL(str(library))


def compile_cubin(source: str, options: Sequence[str], architecture: str) -> bytes:
    """Machine code for one architecture; needs no GPU.

    Args:
        source: CUDA C++ without includes.
        options: such as ``-DNAME=VALUE``.
        architecture: such as ``sm_90``.

    Raises:
        BackendError: no NVRTC, or one that does not know the architecture.
        RuntimeError: the source does not compile; the compiler's words.
    """
    nvrtc = _nvrtc()
    program = ctypes.c_void_p()
    _check_nvrtc(nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None))
    try:
        flags = [f"--gpu-architecture={architecture}", "--std=c++17", "-default-device", *options]
        encoded = (ctypes.c_char_p * len(flags))(*(flag.encode() for flag in flags))
        failed = nvrtc.nvrtcCompileProgram(program, len(flags), encoded)
        if failed:
            _refuse(_text(nvrtc, program), architecture)
        size = ctypes.c_size_t()
        _check_nvrtc(nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size)))
        code = ctypes.create_string_buffer(size.value)
        _check_nvrtc(nvrtc.nvrtcGetCUBIN(program, code))
        return code.raw
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _refuse(log: str, architecture: str) -> None:
    if "gpu-architecture" in log:
        raise BackendError(
            f"this machine's NVRTC cannot compile for {architecture}", fix="install a CUDA build of torch that can"
        )
    raise RuntimeError(log)


def _text(nvrtc: Any, program: ctypes.c_void_p) -> str:
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    return log.value.decode(errors="replace")


def _check_nvrtc(code: int) -> None:
    if code:
        raise RuntimeError(f"NVRTC error {code}")


def cached_cubin(source: str, options: Sequence[str], architecture: str) -> bytes:
    """As :func:`compile_cubin`, from disk where it has been compiled before."""
    library = find_nvrtc()
    parts = [source, *options, architecture, library.name if library else ""]
    path = cache_dir() / "cubin" / f"{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:32]}.cubin"
    if path.is_file():
        return path.read_bytes()
    code = compile_cubin(source, options, architecture)
    write_atomically(path, code)
    return code


class _Attribute(ctypes.Structure):
    _fields_ = (("id", ctypes.c_int), ("pad", ctypes.c_int), ("value", ctypes.c_int), ("rest", ctypes.c_byte * 60))


class _LaunchConfig(ctypes.Structure):
    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("attribute_count", ctypes.c_uint),
    )


@functools.cache
def _driver() -> Any:
    return ctypes.CDLL("libcuda.so.1")


def _check_driver(code: int) -> None:
    if code:
        text = ctypes.c_char_p()
        _driver().cuGetErrorString(code, ctypes.byref(text))
        raise RuntimeError(f"CUDA driver error {code}: {(text.value or b'').decode()}")


@dataclass(frozen=True)
class Launch:
    """How a kernel is started.

    Attributes:
        grid: blocks along x and y.
        threads: of a block.
        shared_bytes: dynamic shared memory of a block.
        overlap: start when the previous kernel on the stream triggers it (programmatic dependent launch, sm_90 on);
            the kernel itself waits before it reads what came before.
        cooperative: all blocks must run at the same time, or the launch fails; not together with ``overlap``.
    """

    grid: tuple[int, int]
    threads: int
    shared_bytes: int = 0
    overlap: bool = False
    cooperative: bool = False


class Kernel:
    """One compiled function on the current device."""

    def __init__(self, code: bytes, name: str) -> None:
        torch.cuda.current_stream()  # makes torch's context the current one
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        self._code = code
        _check_driver(_driver().cuModuleLoadData(ctypes.byref(module), code))
        _check_driver(_driver().cuModuleGetFunction(ctypes.byref(function), module, name.encode()))
        self._module, self._function = module, function
        self._shared_bytes = DEFAULT_SHARED_BYTES

    def __call__(self, launch: Launch, problem: ctypes.Structure) -> None:
        """Queue the kernel on torch's current stream with one structure as its argument."""
        if launch.shared_bytes > self._shared_bytes:
            _check_driver(_driver().cuFuncSetAttribute(self._function, MAX_DYNAMIC_SHARED, launch.shared_bytes))
            self._shared_bytes = launch.shared_bytes
        attribute = _Attribute(id=COOPERATIVE if launch.cooperative else PROGRAMMATIC_SERIALIZATION, value=1)
        config = _LaunchConfig(
            grid=(*launch.grid, 1),
            block=(launch.threads, 1, 1),
            shared_bytes=launch.shared_bytes,
            stream=torch.cuda.current_stream().cuda_stream,
            attributes=ctypes.pointer(attribute),
            attribute_count=int(launch.overlap or launch.cooperative),
        )
        arguments = (ctypes.c_void_p * 1)(ctypes.addressof(problem))
        _check_driver(_driver().cuLaunchKernelEx(ctypes.byref(config), self._function, arguments, None))

    @property
    def registers(self) -> int:
        """Registers of a thread at the launch."""
        count = ctypes.c_int()
        _check_driver(_driver().cuFuncGetAttribute(ctypes.byref(count), NUM_REGS, self._function))
        return count.value

    def variable(self, name: str) -> bytes:
        """What a variable of the source that lies in the device's memory holds, once the device has done its work."""
        address, size = ctypes.c_void_p(), ctypes.c_size_t()
        _check_driver(
            _driver().cuModuleGetGlobal_v2(ctypes.byref(address), ctypes.byref(size), self._module, name.encode())
        )
        held = ctypes.create_string_buffer(size.value)
        torch.cuda.synchronize()
        _check_driver(_driver().cuMemcpyDtoH_v2(held, address, size))
        return held.raw


class TensorMap(ctypes.Structure):
    """The driver's ``CUtensorMap``: how the bulk copy engine finds a box of a matrix (sm_90 on)."""

    _fields_ = (("opaque", ctypes.c_uint64 * 16),)


@dataclass(frozen=True)
class Box:
    """A matrix of rows that follow each other, and the part of it that one bulk copy brings.

    Attributes:
        rows, row_bytes: of the matrix; ``row_bytes`` a multiple of 16.
        box_rows, box_bytes: of the part; beyond the matrix it is zeros.
        swizzled: rows of 128 bytes, whose 16-byte chunks are stored at ``chunk ^ (row % 8)``; counted in bytes.
            Otherwise rows are counted in words of 4 bytes, 1024 bytes at most.
    """

    rows: int
    row_bytes: int
    box_rows: int
    box_bytes: int
    swizzled: bool


def tensor_map(matrix: torch.Tensor, box: Box) -> TensorMap:
    """A map of ``matrix``, whose storage holds the rows of ``box`` from its beginning."""
    unit = 1 if box.swizzled else 4
    raw = ctypes.create_string_buffer(ctypes.sizeof(TensorMap) + MAP_ALIGNMENT)
    address = -(-ctypes.addressof(raw) // MAP_ALIGNMENT) * MAP_ALIGNMENT
    _check_driver(
        _driver().cuTensorMapEncodeTiled(
            ctypes.c_void_p(address),
            MAP_BYTES if box.swizzled else MAP_WORDS,
            ctypes.c_uint32(2),
            ctypes.c_void_p(matrix.data_ptr()),
            (ctypes.c_uint64 * 2)(box.row_bytes // unit, box.rows),
            (ctypes.c_uint64 * 1)(box.row_bytes),
            (ctypes.c_uint32 * 2)(box.box_bytes // unit, box.box_rows),
            (ctypes.c_uint32 * 2)(1, 1),
            0,  # no interleaving
            MAP_SWIZZLE_128 if box.swizzled else 0,
            MAP_L2_256,
            0,  # zeros beyond the matrix
        )
    )
    return TensorMap.from_buffer_copy(ctypes.string_at(address, ctypes.sizeof(TensorMap)))


def timer() -> torch.cuda.Event:
    """An event that knows when the device came to it."""
    event: Any = torch.cuda.Event
    made: torch.cuda.Event = event(enable_timing=True)
    return made
