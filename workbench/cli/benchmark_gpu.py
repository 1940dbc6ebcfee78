"""The part of ``workbench benchmark`` that needs a GPU: its flags, timing, tuning, and what is printed and written."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench import __version__
from workbench.checkpoint.output_files import output_files
from workbench.cli.command import Outcome, Unfinished, UsageError, gpu_memory_told, write_json
from workbench.cli.dummy_flags import CONSTANTS, SIZES, described, sizes_named
from workbench.cli.progress_bars import ProgressBars
from workbench.errors import WorkbenchError
from workbench.model.presets import DEFAULT_PRESET, PRESETS

if TYPE_CHECKING:
    import pandas as pd

    from workbench.evaluation.gpu_options import GpuBenchmarkOptions
    from workbench.evaluation.gpu_results import GpuBenchmarkResult
    from workbench.evaluation.gpu_tuning import TuningResult
    from workbench.model.config import ModelConfig

# Flags, and what each is; the defaults stand in GpuBenchmarkOptions.
GPU_LISTS = {
    "batches": "rows that decode together (default: 1 8 64)",
    "contexts": "tokens of each row before the first step (default: 128 2048)",
}
TIMING_FLAGS = ("contexts", "prefills", "steps", "no_hugging_face", "roofline", "markdown", "resume")
GPU_FLAGS = ("dummy", "batches", "tune", *TIMING_FLAGS)
FILES = ("roofline", "markdown")


def add_gpu_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of a benchmark of dummy weights on a GPU."""
    gpu = parser.add_argument_group(
        "on a GPU", "Dummy weights are timed on a GPU where there is one; any of these asks for it."
    )
    gpu.add_argument("--dummy", action="store_true", help="time dummy weights on a GPU, or fail without one")
    for name, text in GPU_LISTS.items():
        gpu.add_argument(f"--{name}", type=int, nargs="+", metavar="N", help=text)
    gpu.add_argument(
        "--prefills",
        nargs="*",
        metavar="BxT",
        help="B prompts of T tokens that are read at once (default: 1x2048 8x1024; nothing after it for none)",
    )
    gpu.add_argument("--steps", type=int, metavar="N", help="decoding steps that are timed (default: 128)")
    gpu.add_argument("--no_hugging_face", action="store_true", help="leave Hugging Face out: it takes minutes")
    gpu.add_argument("--roofline", type=Path, metavar="PNG", help="also write the figure here")
    gpu.add_argument("--markdown", type=Path, metavar="MD", help="also write the tables here, as docs/benchmarks.md")
    gpu.add_argument(
        "--resume",
        action="store_true",
        help="go on with the cases that the file of --json lacks; it is written anew after every case",
    )
    gpu.add_argument(
        "--tune",
        action="store_true",
        help="time nothing, but measure the fastest tiles of every product of the model, for --modes and --batches "
        "(default: 1 8 16 32 64), and remember them for this GPU",
    )


@dataclass
class Found:
    """What a run has timed so far, and what it goes on with.

    Attributes:
        result: as ``--json`` has it; None where there is nothing yet.
    """

    result: dict[str, Any] | None = None


@contextmanager
def found_kept(args: argparse.Namespace) -> Iterator[Found]:
    """What was timed stays in the file of ``--json`` when an error ends the run, and the error goes beside it.

    That is what this run has timed, or with ``--resume`` the run before it; any other file is written anew.

    Raises:
        Unfinished: the error, with what was timed.
    """
    found = Found(_timed_before(args.json) if args.resume and args.json is not None else None)
    try:
        with gpu_memory_told():
            yield found
    except (WorkbenchError, OSError) as error:
        if found.result is None:
            raise
        raise Unfinished(error, found.result) from error


def _timed_before(path: Path) -> dict[str, Any] | None:
    """The result in a file, if it has times in it."""
    if not path.is_file():  # a pipe would have to be waited for
        return None
    try:
        result = json.loads(path.read_text(encoding="utf-8"))["result"]
        return result if result["speeds"] or result["skipped"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def run_gpu(args: argparse.Namespace, config: ModelConfig, found: Found) -> Outcome:
    """Tune or time dummy weights of these sizes; ``found`` learns what was timed.

    Raises:
        BackendError: there is no GPU that could.
        UsageError, WorkbenchError: flags that do not fit.
    """
    from workbench.backends.kernels import require_gpu

    _check(args)
    # Before a GPU is looked for: what is asked of it must make sense.
    if args.tune:
        chosen = _tuning_options(args)
        require_gpu("tuning", otherwise="")
        return _tune(args, config, chosen)
    options = _options(args)
    require_gpu("a benchmark with random weights", otherwise=lambda: _on_the_cpu(args, config))
    return _time(args, config, options, found)


def flags_given(args: argparse.Namespace, names: Iterable[str]) -> list[str]:
    """Those of the flags that the command line has."""
    values = {name: getattr(args, name) for name in names}
    return [f"--{name}" for name, value in values.items() if value is not None and value is not False]


def _on_the_cpu(args: argparse.Namespace, config: ModelConfig) -> str:
    """The command line that times the same model on the CPU, or the nearest one that this machine has memory for."""
    from workbench.evaluation.benchmark import MODES, BenchmarkOptions, room_for_dummies

    asked = tuple(mode for mode in args.modes or () if mode in MODES)
    room = room_for_dummies(config, asked or BenchmarkOptions.modes)
    if room is None:
        return "end what else takes memory, of which this machine has too little to time any of it on the CPU"
    sizes: dict[str, Any] = {"preset": args.preset or DEFAULT_PRESET} | {
        name: getattr(args, name) for name in (*SIZES, *CONSTANTS)
    }
    if room.preset is not None:
        sizes = {"preset": room.preset}
    if room.layers is not None:
        sizes["n_layer"] = room.layers
    words = [f"--{name} {value}" for name, value in sizes.items() if value is not None]
    if asked or room.modes != BenchmarkOptions.modes:
        words.append(f"--modes {' '.join(room.modes)}")
    positions = config.max_position_embeddings if room.preset is None else PRESETS[room.preset].max_position_embeddings
    if positions < BenchmarkOptions.prefill_len:
        words.append(f"--prefill_len {positions}")
    if positions < BenchmarkOptions.prompt_len + BenchmarkOptions.decode_tokens:
        words.append(f"--prompt_len {positions // 2} --decode_tokens {positions - positions // 2}")
    return f"what fits the CPU here: workbench benchmark {' '.join(words)} --threads {BenchmarkOptions.threads}"


def _check(args: argparse.Namespace) -> None:
    if args.resume and args.json is None:
        raise UsageError("--resume without --json", fix="name the file of the run that was stopped: --json FILE")
    given = flags_given(args, TIMING_FLAGS)
    if args.tune and given:
        raise UsageError(f"--tune beside {', '.join(given)}", fix="tune first, then time without --tune")


def _time(args: argparse.Namespace, config: ModelConfig, options: GpuBenchmarkOptions, found: Found) -> Outcome:
    from workbench.evaluation.gpu_benchmark import Listeners, gpu_benchmark

    known = _known(args.json) if args.resume else None
    print(described(args), flush=True)
    with ProgressBars() as report:
        listeners = Listeners(report, _keeper(args.json, found))
        outcome = gpu_benchmark(sizes_named(args), config, options, listeners, known=known)
    _print(outcome)
    with output_files({name: getattr(args, name) for name in FILES}) as files:
        _write(outcome, files, _command(args))
    return Outcome(outcome.to_dict())


def _options(args: argparse.Namespace) -> GpuBenchmarkOptions:
    from workbench.evaluation.gpu_options import GpuBenchmarkOptions

    chosen: dict[str, Any] = {name: tuple(getattr(args, name)) for name in GPU_LISTS if getattr(args, name) is not None}
    if args.modes is not None:
        chosen["modes"] = tuple(args.modes)
    if args.prefills is not None:
        chosen["prefills"] = tuple(map(_shape, args.prefills))
    if args.steps is not None:
        chosen["steps"] = args.steps
    return GpuBenchmarkOptions(hugging_face=not args.no_hugging_face, **chosen)


def _write(outcome: GpuBenchmarkResult, files: Mapping[str, Path], command: str) -> None:
    """The figure and the tables, where they are wanted."""
    if "roofline" in files:
        from workbench.evaluation.gpu_roofline import plot_roofline

        plot_roofline(outcome).savefig(files["roofline"], dpi=130, format="png")
    if "markdown" in files:
        from workbench.evaluation.gpu_markdown import markdown

        files["markdown"].write_text(markdown(outcome, command), encoding="utf-8")


def _command(args: argparse.Namespace) -> str:
    """The command line that this is, as it could have been typed."""
    words = ["workbench", "benchmark"]
    for name, value in vars(args).items():
        if value is not None and value is not False:
            values = value if isinstance(value, list) else [] if value is True else [value]
            words += [f"--{name}", *map(str, values)]
    return shlex.join(words)


def _shape(text: str) -> tuple[int, int]:
    batch, cross, length = text.lower().partition("x")
    if not (cross and batch.isdecimal() and length.isdecimal()):
        raise UsageError(f"--prefills {text}", allowed="prompts x tokens, such as 8x1024")
    return int(batch), int(length)


def _known(path: Path) -> GpuBenchmarkResult | None:
    """What a run that was stopped had written; None where it had written nothing."""
    from workbench.evaluation.gpu_results import GpuBenchmarkResult

    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))["result"]
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"--json {path} has no result to go on with", fix="give another path, or leave --resume out"
        ) from error
    known = GpuBenchmarkResult.from_dict(content)
    print(f"{len(known.speeds)} cases are in {path} already")
    return known


def _keeper(path: Path | None, found: Found) -> Callable[[GpuBenchmarkResult], None]:
    """Keeps what was timed so far, and writes it; the exit code is still open."""

    def keep(result: GpuBenchmarkResult) -> None:
        found.result = result.to_dict()
        if path is not None:
            write_json(
                path, {"command": "benchmark", "version": __version__, "exit_code": None, "result": found.result}
            )

    return keep


def _print(outcome: GpuBenchmarkResult) -> None:
    versions = ", ".join(f"{name} {version}" for name, version in outcome.conditions.versions.items())
    print(f"{outcome.gpu}, {versions}; a copy moves {outcome.bandwidth / 1e9:.0f} GB/s")
    print(f"{len(outcome.speeds)} cases in {outcome.seconds:.0f} s")
    _print_table(outcome.frame.drop(columns=["flops", "case_seconds"]))
    for line in outcome.skipped:
        print(f"skipped {line}")


def _print_table(table: pd.DataFrame) -> None:
    if table.empty:
        return
    table["moved_gb"] = table.pop("moved_bytes") / 1e9
    table["peak_gb"] = table.pop("peak_bytes") / 1e9
    first = ["mode", "task", "batch", "context"]
    table = table[first + [name for name in table.columns if name not in first]]
    print(table.to_string(index=False, float_format=lambda value: f"{value:.2f}"))


def _tuning_options(args: argparse.Namespace) -> GpuBenchmarkOptions:
    """The modes and batches to tune for: the options refuse what is none of them."""
    from workbench.evaluation.gpu_options import TUNED_BATCHES, GpuBenchmarkOptions

    modes = GpuBenchmarkOptions().modes if args.modes is None else tuple(args.modes)
    batches = TUNED_BATCHES if args.batches is None else tuple(args.batches)
    options = GpuBenchmarkOptions(modes=modes, batches=batches)
    if max(batches) > max(TUNED_BATCHES):
        raise UsageError(f"--batches {max(batches)} beside --tune", allowed=f"up to {max(TUNED_BATCHES)}")
    return options


def _tune(args: argparse.Namespace, config: ModelConfig, options: GpuBenchmarkOptions) -> Outcome:
    from workbench.backends.kernels.nvrtc import cache_dir
    from workbench.evaluation.gpu_tuning import tune_model

    print(described(args), flush=True)
    with ProgressBars() as report:
        outcome = tune_model(sizes_named(args), config, options.modes, options.batches, report)
    _print_tuning(outcome)
    print(f"remembered in {cache_dir() / 'tiles.json'}")
    return Outcome(outcome.to_dict())


def _print_tuning(outcome: TuningResult) -> None:
    import pandas as pd

    rows = [
        {"product": each.name, "choice for": each.key, "tiles": " ".join(map(str, each.tiles)) or "-",
         "us": each.time_us, "gb_per_s": each.bytes_per_s / 1e9}
        for each in outcome.products
    ]  # fmt: skip
    print(outcome.gpu)
    print(pd.DataFrame(rows).to_string(index=False, float_format=lambda value: f"{value:.1f}"))
