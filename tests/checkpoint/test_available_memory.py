"""What memory is left, read from a system that is made up; and the refusal."""

from __future__ import annotations

from pathlib import Path

import pytest

from workbench.checkpoint.available_memory import available_bytes, fits, require_memory
from workbench.errors import ResourceError


def system(root: Path, files: dict[str, str]) -> Path:
    for name, text in {"proc/meminfo": "MemTotal: 8000 kB\nMemAvailable:    5000 kB\n", **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_the_machine_alone(tmp_path: Path) -> None:
    assert available_bytes(system(tmp_path, {})) == 5000 * 1024


TOP = "sys/fs/cgroup"


@pytest.mark.parametrize(
    ("files", "left"),
    [
        pytest.param(
            {
                "proc/self/cgroup": "0::/user/job\n",
                f"{TOP}/user/job/memory.max": "3000000\n",
                f"{TOP}/user/job/memory.current": "2500000\n",
                f"{TOP}/user/job/memory.stat": "anon 1000\ninactive_file 400000\nactive_file 7\n",
            },
            900000,
            id="a group of version two, with what it can drop",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "0::/user/job\n",
                f"{TOP}/user/job/memory.max": "max\n",
                f"{TOP}/user/job/memory.current": "100\n",
                f"{TOP}/user/memory.max": "2000\n",
                f"{TOP}/user/memory.current": "1500\n",
            },
            500,
            id="the group above is the narrower one",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "5:cpu,cpuacct:/\n4:memory:/box\n0::/\n",
                f"{TOP}/memory/box/memory.limit_in_bytes": "4000\n",
                f"{TOP}/memory/box/memory.usage_in_bytes": "3000\n",
                f"{TOP}/memory/box/memory.stat": "total_inactive_file 50\n",
                f"{TOP}/memory/memory.limit_in_bytes": "9223372036854771712\n",
                f"{TOP}/memory/memory.usage_in_bytes": "1\n",
            },
            1050,
            id="a group of version one",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "0::/\n",
                f"{TOP}/memory.max": "1000\n",
                f"{TOP}/memory.current": "1001\n",
            },
            0,
            id="a group that is full leaves nothing",
        ),
    ],
)
def test_what_a_control_group_leaves(tmp_path: Path, files: dict[str, str], left: int) -> None:
    assert available_bytes(system(tmp_path, files)) == left


def test_a_system_that_does_not_tell(tmp_path: Path) -> None:
    assert available_bytes(tmp_path) is None


def test_here() -> None:
    found = available_bytes()
    assert found is None or found > 0


def test_a_plan_may_be_off_by_a_little() -> None:
    assert fits(100, 105)
    assert not fits(100, 104)
    with pytest.raises(ResourceError):
        require_memory(100, "this", available=104)


def test_too_much_is_refused_with_both_figures() -> None:
    require_memory(5, "this", available=5)
    with pytest.raises(ResourceError, match=r"^this needs about 6.0 GB of memory and 5.5 GB are available; do that$"):
        require_memory(6_000_000_000, "this", fix="do that", available=5_500_000_000)
