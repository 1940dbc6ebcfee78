"""CUDA C++ kernels compiled for a CPU by the system's C++ compiler, from the source that a GPU runs.

``machine.hpp`` plays a grid of blocks, ``ptx.hpp`` the instructions of ``kernels/ptx.cuh``. Knows no kernels.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

import pytest

from workbench.backends.kernels.nvrtc import Launch

HERE = Path(__file__).parent
HEADERS = ("machine.hpp", "ptx.hpp")
ALL_HEADERS = "all.hpp"
FLAGS = (
    "-std=c++17",
    "-Og",
    "-w",
    "-fPIC",
    "-ffp-contract=off",
    "-fno-strict-aliasing",
    "-U_FORTIFY_SOURCE",
)
RESIDENT = 3  # blocks of an ordinary grid that are there at the same time
MESSAGE_BYTES = 8192

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None or os.uname().machine not in ("x86_64", "aarch64"), reason="needs g++"
)


class KernelError(RuntimeError):
    """A kernel broke a rule of the machine, or nobody could go on."""


@dataclass
class CpuKernel:
    """One compiled kernel; launched like :class:`workbench.backends.kernels.nvrtc.Kernel`, over tensors of the CPU.

    Attributes:
        seed: of the order in which threads run.
    """

    entry: Callable[..., None]
    seed: int = 0
    launches: list[Launch] = field(default_factory=list)

    def __call__(self, launch: Launch, argument: ctypes.Structure) -> None:
        blocks = launch.grid[0] * launch.grid[1]
        message = ctypes.create_string_buffer(MESSAGE_BYTES)
        self.entry(
            ctypes.byref(argument),
            *launch.grid,
            launch.threads,
            launch.shared_bytes,
            blocks if launch.cooperative else min(blocks, RESIDENT),
            ctypes.c_uint64(self.seed),
            message,
        )
        self.launches.append(launch)
        if message.value:
            raise KernelError(message.value.decode())


def compile_kernels(
    source: str, options: Sequence[str], names: Sequence[str], argument: str, shared_bytes: int
) -> dict[str, CpuKernel]:
    """Kernels of a CUDA C++ source by name; each takes one structure by value.

    Args:
        source: with or without ``ptx.cuh``, which is replaced.
        options: macros, as NVRTC takes them.
        names: of the kernels.
        argument: name of their structure.
        shared_bytes: dynamic shared memory of a block, at most.
    """
    text = _program(source, options, names, argument, shared_bytes)
    folder = Path(os.environ.get("CUDA_ON_CPU_CACHE", Path(tempfile.gettempdir()) / f"cuda-on-cpu-{os.getuid()}"))
    headers = _precompiled(folder)
    library = folder / f"{names[0]}-{_key(headers.name, text)}.so"
    if not library.exists():
        _compile(text, library, ["-shared", f"-I{headers}"])
    opened = ctypes.CDLL(str(library))
    return {name: CpuKernel(opened[f"launch_{name}"]) for name in names}


def _precompiled(folder: Path) -> Path:
    """A folder with the headers as one, which the compiler has read already: half of its time for a kernel."""
    place = folder / f"headers-{_key(*((HERE / header).read_text(encoding='utf-8') for header in HEADERS))}"
    compiled = place / f"{ALL_HEADERS}.gch"
    if not compiled.exists():
        place.mkdir(parents=True, exist_ok=True)
        text = "".join(f'#include "{HERE / header}"\n' for header in HEADERS)
        (place / ALL_HEADERS).write_text(text, encoding="utf-8")
        _compile(text, compiled, ["-x", "c++-header"])
    return place


def _key(*parts: str) -> str:
    return hashlib.sha256("\0".join([*FLAGS, *parts]).encode()).hexdigest()[:32]


def _compile(text: str, to: Path, flags: Sequence[str]) -> None:
    """Whole or not at all, with others compiling the same at the same time."""
    with tempfile.TemporaryDirectory(dir=to.parent) as scratch:
        program, built = Path(scratch) / "kernel.cpp", Path(scratch) / "built"
        program.write_text(text, encoding="utf-8")
        command = ["g++", *FLAGS, *flags, str(program), "-o", str(built)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise KernelError(done.stderr[:4000])
        built.replace(to)


def _program(source: str, options: Sequence[str], names: Sequence[str], argument: str, shared_bytes: int) -> str:
    ptx = resources.files("workbench.backends.kernels").joinpath("ptx.cuh").read_text(encoding="utf-8")
    kernel = source.replace(ptx, "")
    assert not re.search(r"\basm\b", re.sub(r"//.*", "", kernel)), "instructions of a GPU belong into ptx.cuh"
    # Dynamic shared memory is an array like others here.
    held = max(shared_bytes, 16)
    kernel = re.sub(
        r"extern __shared__ (?:__align__\(\d+\) )?(\w+) (\w+)\[\];",
        rf"__shared__ __align__(128) \1 \2[{held} / sizeof(\1)];",
        kernel,
    )
    entries = "".join(_ENTRY.format(name=name, argument=argument, shared=held, message=MESSAGE_BYTES) for name in names)
    # Macros come after the headers, which were compiled without them.
    macros = "".join(f"#define {option.removeprefix('-D').replace('=', ' ', 1)}\n" for option in options)
    return f'#include "{ALL_HEADERS}"\n{macros}namespace {{\n{kernel}\n}}\n{entries}'


_ENTRY = """
static void run_{name}(const void* given) {{ {name}(*(const {argument}*)given); }}
extern "C" void launch_{name}(const void* given, int grid_x, int grid_y, int threads, int shared_bytes, int resident,
                              uint64_t seed, char* message) {{
    std::string error = "more dynamic shared memory than was compiled for";
    if (shared_bytes <= {shared})
        error = machine::launch(run_{name}, given, {{(unsigned)grid_x, (unsigned)grid_y, 1}}, threads, resident, seed);
    snprintf(message, {message}, "%s", error.c_str());
}}
"""
