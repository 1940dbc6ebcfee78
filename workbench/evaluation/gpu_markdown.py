"""A GPU benchmark as tables of docs/benchmarks.md. Knows no times but those it is given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from workbench.evaluation.gpu_results import DECODE, PREFILL, GpuBenchmarkResult, GpuSpeed, label

MISSING = "-"  # the place of a case without a time
_DECODING: tuple[Callable[[GpuSpeed], str], ...] = (
    lambda speed: f"{speed.tokens_per_s:.0f}",
    lambda speed: f"{speed.moved_bytes / 1e9:.1f}",
    lambda speed: f"{100 * speed.bandwidth_share:.0f} %",
    lambda speed: f"{speed.peak_bytes / 1e9:.1f}",
)


def markdown(result: GpuBenchmarkResult, command: str) -> str:
    """What was measured and how, a table of decoding, one of prefill; a heading for each.

    Args:
        result: its lines.
        command: that made it.
    """
    conditions = result.conditions
    versions = ", ".join(f"{name} {version}" for name, version in conditions.versions.items())
    how = (
        f"{result.date}; {conditions.gpu}; {versions}. A copy of 1 GiB moved {result.bandwidth / 1e12:.2f} TB/s (read "
        f"and written bytes together). Random weights in the sizes of {conditions.model}; {conditions.steps} steps a "
        f"case where nothing else is said; {result.seconds / 60:.1f} minutes in all."
    )
    parts = [f"`{command}`", how]
    for title, table in (("Decoding", _decoding(result)), ("Reading prompts", _prefill(result))):
        if table:
            parts += [f"### {title}", "\n".join(table)]
    if result.skipped:
        parts.append("Not run: " + "; ".join(result.skipped) + ".")
    return "\n\n".join(parts) + "\n"


def _decoding(result: GpuBenchmarkResult) -> list[str]:
    """A line for each context and mode; in a cell what was found for each batch."""
    speeds = [speed for speed in result.speeds if speed.task == DECODE]
    batches = sorted({speed.batch for speed in speeds})
    heads = ["context", "mode", f"ms a step, batch {_joined(batches)}", "tokens/s", "GB moved"]
    heads += ["share of the bandwidth", "peak GB"]
    lines = []
    for context in sorted({speed.context for speed in speeds}):
        for mode in dict.fromkeys(speed.mode for speed in speeds):
            found = [_find(result, label(mode, DECODE, batch, context)) for batch in batches]
            times = _joined(_time(result, mode, DECODE, (batch, context)) for batch in batches)
            cells = [str(context), _named(mode, speeds, result.conditions.steps), times]
            for show in _DECODING:
                cells.append(_joined(show(speed) if speed else MISSING for speed in found))
            lines.append(cells)
    return _table(heads, lines)


def _prefill(result: GpuBenchmarkResult) -> list[str]:
    speeds = [speed for speed in result.speeds if speed.task == PREFILL]
    shapes = sorted({(speed.batch, speed.context) for speed in speeds})
    heads = ["mode"]
    for batch, length in shapes:
        heads += [f"{batch} x {length} tokens: ms", "tokens/s", "TFLOP/s"]
    lines = []
    for mode in dict.fromkeys(speed.mode for speed in speeds):
        cells = [mode]
        for shape in shapes:
            found = _find(result, label(mode, PREFILL, *shape))
            cells.append(_time(result, mode, PREFILL, shape))
            cells += [f"{found.tokens_per_s:.0f}", f"{found.tflops:.0f}"] if found else [MISSING, MISSING]
        lines.append(cells)
    return _table(heads, lines)


def _named(mode: str, speeds: Iterable[GpuSpeed], usual: int) -> str:
    """The mode, and how many steps were timed where those are not the usual ones."""
    found = {speed.steps for speed in speeds if speed.mode == mode} - {0, usual}
    return f"{mode} ({_joined(sorted(found))} steps)" if found else mode


def _find(result: GpuBenchmarkResult, name: str) -> GpuSpeed | None:
    return next((speed for speed in result.speeds if speed.label == name), None)


def _time(result: GpuBenchmarkResult, mode: str, task: str, shape: tuple[int, int]) -> str:
    """Milliseconds, or why there are none."""
    name = label(mode, task, *shape)
    found = _find(result, name)
    if found is not None:
        return f"{found.step_ms:.2f}"
    return "does not fit" if any(line.startswith(f"{name}:") for line in result.skipped) else "not run"


def _joined(values: Iterable[object]) -> str:
    return " / ".join(map(str, values))


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    if not lines:
        return []
    return [f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *lines)]
