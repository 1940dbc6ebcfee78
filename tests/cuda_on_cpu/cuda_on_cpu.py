"""CUDA C++ kernels compiled for a CPU by the system's C++ compiler, from the source that a GPU runs.

``machine.hpp`` plays a grid of blocks, ``ptx.hpp`` the instructions of ``kernels/ptx.cuh``; where a kernel is compiled
so, ``races.hpp`` finds accesses to memory that nothing orders. Knows no kernels.
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
HEADERS = tuple(sorted(path.name for path in HERE.glob("*.hpp")))
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
RACES = (*FLAGS, "-g1", "-DRACES", "-fsanitize=thread")
FOUND = "races:\n"
RESIDENT = 3  # blocks of an ordinary grid that are there at the same time
MESSAGE_BYTES = 8192

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None or os.uname().machine not in ("x86_64", "aarch64"), reason="needs g++"
)


class KernelError(RuntimeError):
    """A kernel broke a rule of the machine, or nobody could go on."""


@dataclass(frozen=True)
class Race:
    """Two accesses to the same memory that nothing orders.

    Attributes:
        before, after: file and line of the kernel's source, of the one that ran first and of the other.
        memory: "shared" or "global".
        who: what each of the two is, and whose.
        why: what is wrong about it.
    """

    before: str
    after: str
    memory: str
    who: tuple[str, str]
    why: str

    def __str__(self) -> str:
        return f"{self.memory} memory: {self.before} ({self.who[0]}), {self.after} ({self.who[1]}): {self.why}"


class RaceError(KernelError):
    """What a kernel computed depends on the order in which its threads run, or may on a GPU."""

    def __init__(self, races: Sequence[Race]) -> None:
        super().__init__("\n".join(map(str, races)))
        self.races = races


@dataclass
class CpuKernel:
    """One compiled kernel; launched like :class:`workbench.backends.kernels.nvrtc.Kernel`, over tensors of the CPU.

    Attributes:
        seed: of the order in which threads run.
    """

    entry: Callable[..., None]
    library: Path
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
        said = message.value.decode()
        if said.startswith(FOUND):
            raise RaceError(_races(self.library, said.removeprefix(FOUND)))
        if said:
            raise KernelError(said)


def _races(library: Path, told: str) -> list[Race]:
    """Each pair of lines once."""
    lines = [line.split("\t") for line in told.splitlines()]
    lines = [line for line in lines if len(line) == 6]
    places = _places(library, [pc for line in lines for pc in line[:2]])
    found = {}
    for before, after, memory, first, second, why in lines:
        race = Race(places[before], places[after], memory, (first, second), why)
        found.setdefault((race.before, race.after, memory, why), race)
    return list(found.values())


def _places(library: Path, addresses: Sequence[str]) -> dict[str, str]:
    """The kernel's line, and those that it was inlined into, of return addresses in hexadecimal."""
    known = dict.fromkeys(addresses)
    asked = [hex(int(address, 16) - 1) for address in known]
    command = ["addr2line", "-i", "-a", "-e", str(library), *asked]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    blocks = re.split(r"^0x[0-9a-f]+\n", done.stdout, flags=re.MULTILINE)[1:]
    return {address: _place(block) for address, block in zip(known, blocks, strict=True)}


def _place(frames: str) -> str:
    """Innermost first, without the machine's own."""
    names = [re.sub(r" \(discriminator \d+\)", "", Path(frame).name) for frame in frames.splitlines()]
    return " < ".join([name for name in names if not name.startswith(HEADERS)] or names[:1])


def compile_kernels(
    source: str, options: Sequence[str], names: Sequence[str], argument: str, shared_bytes: int, *, races: bool = False
) -> dict[str, CpuKernel]:
    """Kernels of a CUDA C++ source by name; each takes one structure by value.

    Args:
        source: with or without ``ptx.cuh``, which is replaced.
        options: macros, as NVRTC takes them.
        names: of the kernels.
        argument: name of their structure.
        shared_bytes: dynamic shared memory of a block, at most.
        races: a launch raises :class:`RaceError` where accesses are not ordered; takes several times as long.
    """
    flags = RACES if races else FLAGS
    text = _program(source, options, names, argument, shared_bytes)
    folder = Path(os.environ.get("CUDA_ON_CPU_CACHE", Path(tempfile.gettempdir()) / f"cuda-on-cpu-{os.getuid()}"))
    headers = _precompiled(folder, flags)
    library = folder / f"{names[0]}-{_key(headers.name, text)}.so"
    if not library.exists():
        _compile(text, library, [*flags, f"-I{headers}"], shared=True)
    opened = ctypes.CDLL(str(library))
    return {name: CpuKernel(opened[f"launch_{name}"], library) for name in names}


def _precompiled(folder: Path, flags: Sequence[str]) -> Path:
    """A folder with the headers as one, which the compiler has read already: half of its time for a kernel."""
    place = folder / f"headers-{_key(*flags, *((HERE / header).read_text(encoding='utf-8') for header in HEADERS))}"
    compiled = place / f"{ALL_HEADERS}.gch"
    if not compiled.exists():
        place.mkdir(parents=True, exist_ok=True)
        text = "".join(f'#include "{HERE / header}"\n' for header in HEADERS)
        (place / ALL_HEADERS).write_text(text, encoding="utf-8")
        _compile(text, compiled, [*flags, "-x", "c++-header"])
    return place


def _key(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _compile(text: str, to: Path, flags: Sequence[str], *, shared: bool = False) -> None:
    """Whole or not at all, with others compiling the same at the same time."""
    with tempfile.TemporaryDirectory(dir=to.parent) as scratch:
        program, built = Path(scratch) / "kernel.cpp", Path(scratch) / "built"
        program.write_text(text, encoding="utf-8")
        _run(["g++", *flags, *(["-c"] if shared else []), str(program), "-o", str(built)])
        if shared:  # without the compiler's own library for -fsanitize: races.hpp has what is called
            _run(["g++", "-shared", str(built.rename(built.with_suffix(".o"))), "-o", str(built)])
        built.replace(to)


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise KernelError(done.stderr[:4000])


def _program(source: str, options: Sequence[str], names: Sequence[str], argument: str, shared_bytes: int) -> str:
    kernel = f'#line 1 "kernel"\n{source}'
    for file in resources.files("workbench.backends.kernels").iterdir():
        if file.name == "ptx.cuh":
            kernel = kernel.replace(file.read_text(encoding="utf-8"), "")
        elif file.name.endswith((".cu", ".cuh")):
            begin = file.read_text(encoding="utf-8")[:200]
            kernel = kernel.replace(begin, f'#line 1 "{file.name}"\n{begin}')
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
