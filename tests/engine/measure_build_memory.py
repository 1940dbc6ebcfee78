"""Measure the memory of builds beside what is predicted: ``python tests/engine/measure_build_memory.py``.

Builds engines of dummy weights with ``workbench build``, each in a process of its own, and prints one JSON line for
each. Anonymous memory (RssAnon) is what a build must have; pages of mapped files, which the system can drop, are not in
it. What the interpreter and its libraries hold before anything is built is taken off. Linux only.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

KINDS = {
    "float32": ["--dtype", "float32"],
    "float16": ["--dtype", "float16"],
    "bfloat16": ["--dtype", "bfloat16"],
    "int8": ["--weights", "int8"],
    "int8_head": ["--weights", "int8", "--keep"],
    "int4": ["--weights", "int4"],
    "smoothquant": ["--weights", "smoothquant"],
    "smoothquant_kv": ["--weights", "smoothquant", "--sq_activation", "per_tensor", "--kv_cache", "int8"],
}
COMMAND = "import sys; from workbench.cli.main import main; sys.exit(main())"
OWN = (
    "import workbench.engine.prepare, workbench.engine.product as product; product.product_for_building();"
    "print(next(l.split()[1] for l in open('/proc/self/status') if l.startswith('RssAnon')))"
)
_INTERVAL_S = 0.01


@dataclass(frozen=True)
class Peaks:
    """Peaks of one process, in bytes, and how long it ran."""

    anonymous: int
    resident: int
    seconds: float


def watch(command: list[str]) -> Peaks:
    """Run a command to its end and follow its memory.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    start = time.perf_counter()
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
        anonymous = resident = 0
        while process.poll() is None:
            found = memory_of(process.pid)
            anonymous, resident = max(anonymous, found.get("RssAnon", 0)), max(resident, found.get("VmHWM", 0))
            time.sleep(_INTERVAL_S)
        if process.returncode:
            errors.seek(0)
            sys.stderr.write(errors.read().decode())
            raise subprocess.CalledProcessError(process.returncode, command)
    return Peaks(anonymous, resident, time.perf_counter() - start)


def memory_of(pid: int) -> dict[str, int]:
    """The memory rows of a process's status, in bytes; none when it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    rows = (line.split() for line in lines)
    return {row[0].rstrip(":"): 1024 * int(row[1]) for row in rows if row[-1] == "kB"}


def measure(preset: str, layers: int | None, kind: str, verify: str, folder: Path) -> dict[str, float | str]:
    """Build one engine; memory beside the interpreter's own."""
    outcome = folder / f"{preset}-{layers}-{kind}-{verify}.json"
    size = [] if layers is None else ["--n_layer", str(layers)]
    words = ["build", "--preset", preset, *size, *KINDS[kind], "--verify", verify, "--json", str(outcome), "--force"]
    peaks = watch([sys.executable, "-c", COMMAND, *words, "--output_dir", str(folder / "engine")])
    own = 1024 * int(subprocess.run([sys.executable, "-c", OWN], check=True, capture_output=True, text=True).stdout)
    result = json.loads(outcome.read_text())["result"]
    measured = peaks.anonymous - own
    return {
        "preset": preset,
        "layers": layers or "all",
        "kind": kind,
        "verify": verify,
        "plan_bytes": result["plan_bytes"],
        "planned_bytes": result["needed_memory_bytes"],
        "measured_bytes": measured,
        "measured_over_planned": round(measured / result["needed_memory_bytes"], 3),
        "resident_bytes": peaks.resident,
        "builder_seconds": result["seconds"],
        "seconds": round(peaks.seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="internlm-7b")
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 2, 4], help="0 stands for all")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=["float16", "int8", "int4"])
    parser.add_argument("--verify", default="off")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        for kind in args.kinds:
            for layers in args.layers:
                print(json.dumps(measure(args.preset, layers or None, kind, args.verify, Path(name))), flush=True)


if __name__ == "__main__":
    main()
