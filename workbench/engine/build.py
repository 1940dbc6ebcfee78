"""A checkpoint becomes an engine folder: network, check on the CPU, plan, report.

With the full product and a GPU the plan is built for that GPU; else TensorRT-RTX compiles ahead of time for the compute
capabilities that the recipe names. Written to a temporary folder and renamed: an interrupted build leaves nothing.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from workbench.checkpoint.available_memory import give_back
from workbench.checkpoint.output_folder import ENGINE, check_apart, check_output, output_folder
from workbench.checkpoint.unified import Checkpoint, load_checkpoint
from workbench.engine.check import CheckOptions, NetworkCheck, check_network
from workbench.engine.folder import EngineConfig, plan_path, write_engine_config
from workbench.engine.kernels import (
    INT8_GEMM,
    CompiledKernel,
    EngineStatistics,
    collecting_logger,
    compiled_linears,
    engine_statistics,
    error_messages,
    parse_kernels,
)
from workbench.engine.needs import AUTO, OFF, SAMPLE, VERIFY, BuildJob, build_needs, how_verified, require_build_memory
from workbench.engine.network import DecoderNetwork, add_profiles, build_network
from workbench.engine.product import RTX, Product, product_for_building
from workbench.engine.progress import BuilderThread, make_monitor
from workbench.errors import BuildError, GateError, WorkbenchError
from workbench.model.config import ModelConfig
from workbench.model.internlm import InternLM
from workbench.model.rotary import rotary_tables
from workbench.model.weights import DenseWeight, Int4GroupWeight, Int8Weight, LinearWeight, SmoothQuantWeight
from workbench.progress import ProgressEvent, Reporter, silent
from workbench.recipe import BuildLimits, Recipe


@dataclass(frozen=True)
class BuildOptions:
    """Choices of one build.

    Attributes:
        limits: in place of those in the checkpoint's recipe; None keeps them.
        verify: "full" executes the whole network on the CPU, "sample" the first, the middle and the last layer and the
            head, "off" nothing; "auto" is "full" for models of up to a billion parameters, and "sample" beyond.
        force: replace an existing output folder.
        ignore_memory: build even where the memory is said not to suffice.
    """

    limits: BuildLimits | None = None
    verify: str = AUTO
    force: bool = False
    ignore_memory: bool = False


@dataclass(frozen=True)
class EnginePlace:
    """Where the engine folder and the checkpoint that it points at stand once all is done."""

    engine_dir: Path
    checkpoint_dir: Path


@dataclass(frozen=True)
class BuildReport:
    """What was built.

    Attributes:
        engine_dir: the finished folder.
        product, version: the TensorRT that built it.
        targets: compute capabilities compiled for; empty for the GPU that was there.
        plan_bytes, seconds: size of the plan; time of the builder alone.
        check: the network check, or None when it was off.
        linears: one row per linear layer: ``linear``, ``asked``, ``compiled``.
        statistics: memory that the builder states.
    """

    engine_dir: Path
    product: str
    version: str
    targets: tuple[str, ...]
    plan_bytes: int
    seconds: float
    check: NetworkCheck | None
    linears: pd.DataFrame
    statistics: EngineStatistics

    @property
    def passed(self) -> bool:
        return self.check is None or self.check.passed

    @property
    def deviations(self) -> pd.DataFrame:
        """Linear layers that were not compiled as asked."""
        return self.linears[self.linears["asked"] != self.linears["compiled"]]

    def to_dict(self) -> dict[str, Any]:
        """Figures for ``config.json`` and ``--json``."""
        check = None
        if self.check is not None:
            worst = self.check.worst
            check = {
                "passed": self.check.passed,
                "sampled": self.check.sampled,
                "taps": len(self.check.frame),
                "worst_tap": worst["tap"],
                "worst_ratio": float(worst["ratio"]),
                "covers": self.check.limits_text,
            }
        return {
            "product": self.product,
            "version": self.version,
            "targets": list(self.targets),
            "plan_bytes": self.plan_bytes,
            "seconds": round(self.seconds, 3),
            "memory_bytes": dataclasses.asdict(self.statistics),
            "check": check,
            "linears": self.linears.to_dict("records"),
            "deviations": self.deviations.to_dict("records"),
        }


def build_engine(
    checkpoint_dir: str | Path, output_dir: str | Path, options: BuildOptions | None = None, report: Reporter = silent
) -> BuildReport:
    """Build ``output_dir/rank0.engine`` and ``config.json`` from a checkpoint.

    The network is checked before it is built; a network that fails is not built.

    Raises:
        CheckpointError: the checkpoint cannot be read, the output exists, or the disk is too small.
        ResourceError: this machine has too little memory for it.
        BackendError: no TensorRT here. BuildError: TensorRT refused. GateError: the network failed its check.
        OSError: the plan cannot be written.
        Cancelled, KeyboardInterrupt: the build was stopped; nothing is left.
    """
    options = options or BuildOptions()
    if options.verify not in VERIFY:
        raise WorkbenchError(f"verify is {options.verify!r}", allowed=", ".join(VERIFY))
    output = Path(output_dir)
    checkpoint = load_checkpoint(checkpoint_dir)
    check_apart(checkpoint.folder, output)
    recipe = dataclasses.replace(checkpoint.recipe, build=options.limits or checkpoint.recipe.build)
    job = BuildJob(checkpoint.config, recipe, options.verify, held_bytes=checkpoint.held_bytes)
    needed = build_needs(job).disk_bytes
    check_output(output, force=options.force, needed_bytes=needed, replaces=ENGINE)
    product_for_building()
    if not options.ignore_memory:
        require_build_memory(job)
    with output_folder(output, force=options.force, needed_bytes=needed, replaces=ENGINE) as folder:
        return write_engine(folder, checkpoint, EnginePlace(output, checkpoint.folder), options, report)


def write_engine(
    folder: Path, checkpoint: Checkpoint, place: EnginePlace, options: BuildOptions, report: Reporter = silent
) -> BuildReport:
    """Write ``rank0.engine`` and ``config.json`` into a folder that takes its name later.

    Args:
        folder: exists; what is in it stays.
        checkpoint: what the engine is built from.
        place: where folder and checkpoint will stand in the end.
        options: limits and check; whether to replace an output is the caller's to know.
        report: told the steps.

    Raises:
        BackendError, BuildError, GateError, Cancelled: as :func:`build_engine`.
    """
    product = product_for_building()
    trt = product.trt
    recipe = dataclasses.replace(checkpoint.recipe, build=options.limits or checkpoint.recipe.build)
    logger = collecting_logger(trt)
    builder = trt.Builder(logger)
    network = network_of(trt, builder, checkpoint, recipe)
    check = _checked(trt, network, options, report)
    start = time.perf_counter()
    targets = _build_plan(product, builder, network, plan_path(folder), report)
    seconds = time.perf_counter() - start
    kernels = parse_kernels(logger.messages)
    outcome = BuildReport(
        engine_dir=place.engine_dir,
        product=product.name,
        version=product.version,
        targets=targets,
        plan_bytes=plan_path(folder).stat().st_size,
        seconds=seconds,
        check=check,
        linears=_linears(network, kernels),
        statistics=engine_statistics(logger.messages),
    )
    config = EngineConfig(
        folder=place.engine_dir,
        product=product.name,
        version=product.version,
        targets=targets,
        recipe=recipe,
        checkpoint_dir=place.checkpoint_dir,
        checkpoint_checksum=checkpoint.checksum,
    )
    write_engine_config(folder, config, outcome.to_dict())
    return outcome


def network_of(
    trt: Any, builder: Any, checkpoint: Checkpoint, recipe: Recipe, *, every_position: bool = False
) -> DecoderNetwork:
    """The checkpoint's network; its weights are read once and held, since TensorRT does not copy constants.

    ``every_position``: see :func:`build_network`.

    Raises:
        BuildError: the limits ask for more positions than the model has.
    """
    limits, config = recipe.build, checkpoint.config
    check_limits(limits, config)
    weights = dataclasses.replace(checkpoint.weights, layers=list(checkpoint.weights.layers))
    model = InternLM(config, weights, rotary_tables(config, limits.max_seq_len))
    return build_network(trt, builder, model, getattr(torch, recipe.dtype), limits, every_position=every_position)


def check_limits(limits: BuildLimits, config: ModelConfig) -> None:
    """Refuse limits beyond the model's positions.

    Raises:
        BuildError: they are.
    """
    if limits.max_seq_len > config.max_position_embeddings:
        raise BuildError(
            f"max_input_len {limits.max_input_len} + max_output_len {limits.max_output_len}",
            allowed=f"up to the model's max_position_embeddings {config.max_position_embeddings} together",
            fix="lower one of them",
        )


def _checked(trt: Any, network: DecoderNetwork, options: BuildOptions, report: Reporter) -> NetworkCheck | None:
    verify = how_verified(network.model.config, options.verify)
    if verify == OFF:
        return None
    check = check_network(trt, network, CheckOptions(sample=verify == SAMPLE), report)
    # The free blocks that the check leaves between others would stay with this process through the build.
    give_back()
    if not check.passed:
        worst, first = check.worst, check.failures.iloc[0]["tap"]
        raise GateError(
            f"the network differs from the model at {len(check.failures)} taps, first at {first}, worst at "
            f"{worst['tap']} ({worst['ratio']:.2f} times the torch op set's own error)",
            fix="this is a fault of the workbench or of TensorRT: report it with the recipe",
            details={"taps": len(check.frame), "sampled": check.sampled, "failed": check.failures.to_dict("records")},
        )
    return check


def _build_plan(
    product: Product, builder: Any, network: DecoderNetwork, path: Path, report: Reporter
) -> tuple[str, ...]:
    """Write the plan, 64 MiB at a time; returns the targets it was compiled for."""
    trt = product.trt
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    # TensorRT multiplies float32 in TF32 (10 bits of mantissa) unless told otherwise; a float32 recipe means float32.
    config.clear_flag(trt.BuilderFlag.TF32)
    targets = network.limits.targets if product.name == RTX else ()
    _set_targets(trt, config, targets)
    add_profiles(builder, config, network)
    logger = collecting_logger(trt)
    logger.clear()

    def build(emit: Callable[[ProgressEvent], None], cancelled: threading.Event) -> bool:
        config.progress_monitor = monitor = make_monitor(trt, emit, cancelled)
        with path.open("wb") as file:
            writer = _stream_writer(trt, file)
            done = bool(builder.build_serialized_network_to_stream(network.network, config, writer))
        del monitor
        if writer.error is not None:
            raise writer.error
        return done

    if not BuilderThread(build).run(report) or path.stat().st_size == 0:
        reasons = "; ".join(error_messages(logger.messages)[:3]) or "it gave no reason"
        raise BuildError(f"{product.name} {product.version} refused the network: {reasons}")
    return targets


def _set_targets(trt: Any, config: Any, targets: tuple[str, ...]) -> None:
    """State the compute capabilities explicitly: the default accepts what an explicit one refuses."""
    if not targets:
        return
    known = trt.ComputeCapability.__members__
    config.num_compute_capabilities = len(targets)
    for index, target in enumerate(targets):
        config.set_compute_capability(known[target.upper()], index)


def _stream_writer(trt: Any, file: Any) -> Any:
    class Writer(trt.IStreamWriter):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IStreamWriter.__init__(self)
            self.error: OSError | None = None

        def write(self, data: bytes) -> int:
            # TensorRT would print an exception and lose it; too few bytes make it stop.
            try:
                return int(file.write(data))
            except OSError as error:
                self.error = error
                return 0

    return Writer()


def asked_precision(weight: LinearWeight, dtype: torch.dtype) -> str:
    """The precision that a weight type asks of the compiler, in the words of :mod:`workbench.engine.kernels`."""
    name = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}[dtype]
    match weight:
        case DenseWeight():
            return name
        case Int8Weight():
            return f"int8 weight-only, {name} GEMM"
        case Int4GroupWeight():
            return f"int4 weight-only, {name} GEMM"
        case SmoothQuantWeight():
            return INT8_GEMM


def _linears(network: DecoderNetwork, kernels: list[CompiledKernel]) -> pd.DataFrame:
    linears = network.record.linears
    shapes = {name: weight_shape(weight) for name, weight in linears.items()}
    compiled = compiled_linears(kernels, list(linears), shapes)
    rows = [
        {"linear": name, "asked": asked_precision(weight, network.dtype), "compiled": compiled[name].precision}
        for name, weight in linears.items()
    ]
    return pd.DataFrame(rows)


def weight_shape(weight: LinearWeight) -> tuple[int, int]:
    """``(out, in)`` of a linear layer, however it is packed."""
    rows, columns = weight.weight.shape
    return rows, 2 * columns if isinstance(weight, Int4GroupWeight) else columns
