"""How much memory this machine can still give, the refusal of a job that needs more, and giving some back.

Linux; elsewhere nothing is known, refused or given back.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from pathlib import Path

from workbench.errors import ResourceError

# Beyond any machine: how version 1 of control groups writes "no limit".
_NO_LIMIT = 1 << 60
_ROOT = Path("/")


def available_bytes(root: Path = _ROOT) -> int | None:
    """Memory that a new job can take without swapping: the least of the machine's and of every control group's.

    Pages of files, which the system drops when it must, count as available. None where the system does not tell.

    Args:
        root: of the file system whose ``/proc`` and ``/sys/fs/cgroup`` are read.
    """
    rooms = [*_machine(root), *_groups(root)]
    return max(0, min(rooms)) if rooms else None


def fits(needed_bytes: int, available: int) -> bool:
    """Whether a planned peak fits, with a twentieth to spare: whole builds of a 7B were up to 3 % above their plan."""
    return needed_bytes + needed_bytes // 20 <= available


def require_memory(needed_bytes: int, what: str, *, fix: str | None = None, available: int | None = None) -> None:
    """Refuse a job that needs more memory than there is; passes where the system does not tell.

    Args:
        needed_bytes: at the peak.
        what: the job, as the subject of "needs".
        fix: the way out.
        available: in place of what :func:`available_bytes` finds.

    Raises:
        ResourceError: says both figures.
    """
    available = available_bytes() if available is None else available
    if available is not None and not fits(needed_bytes, available):
        raise ResourceError(
            f"{what} needs about {gigabytes(needed_bytes)} of memory and {gigabytes(available)} are available", fix=fix
        )


def give_back() -> None:
    """Hand memory that nothing uses any more back to the system, as far as the C library can (glibc)."""
    gc.collect()
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return
    trim(0)


def gigabytes(size_bytes: int) -> str:
    """Bytes as "1.5 GB"."""
    return f"{size_bytes / 1e9:.1f} GB"


def _machine(root: Path) -> Iterator[int]:
    for line in _lines(root / "proc/meminfo"):
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            yield 1024 * int(value.split()[0])


def _groups(root: Path) -> Iterator[int]:
    """What is left in each control group that this process is in, and in those that hold it."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            yield from _left(root / "sys/fs/cgroup", path, ("memory.max", "memory.current", "inactive_file"))
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            yield from _left(root / "sys/fs/cgroup/memory", path, names)


def _left(top: Path, path: str, names: tuple[str, str, str]) -> Iterator[int]:
    limit_name, usage_name, cache_name = names
    inner = Path(path.lstrip("/"))
    for folder in (inner, *inner.parents):
        limit, usage = (_number(top / folder / name) for name in (limit_name, usage_name))
        if limit is None or usage is None or limit >= _NO_LIMIT:
            continue
        rows = (line.split() for line in _lines(top / folder / "memory.stat"))
        cache = next((int(row[1]) for row in rows if len(row) == 2 and row[0] == cache_name), 0)
        yield limit - usage + cache


def _number(path: Path) -> int | None:
    lines = _lines(path)
    return int(lines[0]) if lines and lines[0].strip().isdigit() else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
