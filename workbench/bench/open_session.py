"""Opens a folder, engine or checkpoint, on the best backend that this machine has, and says which and why."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.errors import BackendError, CheckpointError, nearest, no_folder

if TYPE_CHECKING:
    from workbench.checkpoint.unified import Checkpoint
    from workbench.runtime.session import Session

BACKENDS = ("auto", "cpu", "torch", "triton", "tensorrt")
# Weights are not all that a device must hold: caches, logits, copies, what a prompt needs.
MEMORY_FACTOR = 1.25
ON_GPU = ("triton", "tensorrt")


@dataclass(frozen=True)
class OpenedSession:
    """A session, and one sentence that says which backend runs it and why."""

    session: Session
    reason: str

    @property
    def device(self) -> str:
        """Whose memory it takes: "cuda" or "cpu"."""
        return "cuda" if self.session.backend in ON_GPU else "cpu"


def open_session(folder: str | Path, backend: str = "auto") -> OpenedSession:
    """Open an engine folder or a checkpoint folder.

    An engine folder points at its checkpoint, so it also opens where TensorRT cannot run. An engine's limits hold on
    every backend; a checkpoint alone has those of the model's positions, and of memory.

    Args:
        folder: what ``workbench build`` or ``workbench convert`` wrote.
        backend: "tensorrt" (engine folders only), "triton" (the kernels for NVIDIA GPUs), "cpu" (fast CPU kernels),
            "torch" (plain, slow, the reference), or "auto": TensorRT for an engine that this machine can run, else
            "triton" for a float16 recipe that fits a GPU, else "cpu".

    Raises:
        BackendError: an unknown backend, or one that cannot run this folder here; names one that can.
        CheckpointError: the folder is neither kind, or an engine's checkpoint is missing or has changed.
        LimitError: the weights do not fit the GPU that was asked for.
    """
    folder = Path(folder)
    if backend not in BACKENDS:
        hint = nearest(backend, BACKENDS)
        raise BackendError(f"backend {backend!r}", allowed=", ".join(BACKENDS), fix=hint or "choose one of them")
    kind = folder_kind(folder)
    if kind == "checkpoint":
        return _open_checkpoint(folder, backend)
    if backend in ("cpu", "torch", "triton"):
        return _open_weights(engines_checkpoint(folder), backend, engine="")
    return _open_engine(folder, backend)


def folder_kind(folder: Path) -> str:
    """What ``config.json`` says the folder is: "checkpoint" or "engine".

    Raises:
        CheckpointError: no such folder, no ``config.json``, or one that this package did not write.
    """
    import json

    wanted = "a folder written by 'workbench convert' or 'workbench build'"
    if not folder.is_dir():
        raise CheckpointError(f"folder {no_folder(folder)}", allowed=wanted, fix="check the path")
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{folder} has no config.json", allowed=wanted)
    try:
        kind = json.loads(path.read_text(encoding="utf-8"))["workbench"]["kind"]
    except (ValueError, KeyError, TypeError):
        kind = None
    if kind not in ("checkpoint", "engine"):
        raise CheckpointError(
            f"{folder} is neither an engine nor a checkpoint of the workbench",
            allowed=wanted,
            fix="convert a Hugging Face model first: workbench convert --model_dir ... -o ...",
        )
    return str(kind)


def _open_checkpoint(folder: Path, backend: str) -> OpenedSession:
    from workbench.checkpoint.unified import load_checkpoint
    from workbench.runtime.limits import model_limits

    if backend == "tensorrt":
        raise BackendError(
            f"backend 'tensorrt' for {folder}, which is a checkpoint and not an engine",
            allowed="cpu, torch, triton",
            fix="build an engine first (workbench build), or use backend 'auto'",
        )
    checkpoint = load_checkpoint(folder)
    limits = model_limits(checkpoint.config, checkpoint.recipe.build)
    return _open_weights(replace(checkpoint, recipe=replace(checkpoint.recipe, build=limits)), backend)


def _open_engine(folder: Path, backend: str) -> OpenedSession:
    from workbench.engine.session import open_engine_session

    try:
        session = open_engine_session(folder)
    except BackendError as error:
        if backend == "tensorrt":
            raise
        return _open_weights(engines_checkpoint(folder), "auto", engine=f"the engine cannot run here ({error.given})")
    return OpenedSession(session, "backend tensorrt: this machine can run the engine")


def _open_weights(checkpoint: Checkpoint, backend: str, engine: str | None = None) -> OpenedSession:
    """A checkpoint's session; ``engine`` says why an engine gives way to its checkpoint, "" where that was asked."""
    place = "" if engine is None else " on the engine's checkpoint"
    if backend != "auto":
        return OpenedSession(_session(checkpoint, backend), f"backend {backend}{place}: as asked")
    hindrance = gpu_hindrance(checkpoint)
    chosen = "cpu" if hindrance else "triton"
    why = f"the fast CPU kernels, since {hindrance}" if hindrance else "this machine's GPU has kernels for the recipe"
    reasons = "; ".join(filter(None, (engine, why)))
    return OpenedSession(_session(checkpoint, chosen), f"backend {chosen}{place}: {reasons}")


def _session(checkpoint: Checkpoint, backend: str) -> Session:
    if backend != "triton":
        from workbench.runtime.session import TorchSession

        return TorchSession.open(checkpoint, backend)
    from workbench.backends.kernels import require_gpu
    from workbench.evaluation.memory import require_memory

    require_gpu("backend 'triton'")
    require_memory(f"the checkpoint {checkpoint.folder.name}", weight_bytes(checkpoint), "cuda")
    from workbench.runtime.cuda_session import CudaSession

    return CudaSession.open(checkpoint)


def gpu_hindrance(checkpoint: Checkpoint) -> str:
    """Why the kernels for NVIDIA GPUs are not the best choice for a checkpoint here; empty where they are."""
    from workbench.backends.kernels import NoGpuError, require_gpu
    from workbench.evaluation.memory import free_bytes, gigabytes

    try:
        require_gpu("backend 'triton'")
    except NoGpuError as error:
        return error.reason
    if checkpoint.recipe.dtype != "float16":
        return f"the GPU's kernels are fast in float16 and the recipe says {checkpoint.recipe.dtype}"
    needed, free = weight_bytes(checkpoint), free_bytes("cuda")
    if needed * MEMORY_FACTOR > free:
        return f"the weights take {gigabytes(needed)} and the GPU has {gigabytes(free)} free"
    return ""


def weight_bytes(checkpoint: Checkpoint) -> int:
    """What a checkpoint's weights take in memory: the size of their files, or of what is drawn in their place.

    Drawn weights are views of a few values on the CPU (:attr:`Checkpoint.held_bytes`), but each is packed by itself.
    """
    if checkpoint.held_bytes:
        from workbench.checkpoint.unified_layout import checkpoint_tensors

        return sum(spec.bytes for spec in checkpoint_tensors(checkpoint.config, checkpoint.recipe).values())
    return sum(file.stat().st_size for file in checkpoint.folder.glob("*.safetensors"))


def engines_checkpoint(folder: Path) -> Checkpoint:
    """The checkpoint that an engine was built from, with the engine's limits, which may differ from its own.

    Raises:
        CheckpointError: it is not an engine's folder, or the checkpoint is gone or has changed.
    """
    from workbench.checkpoint.unified import load_checkpoint
    from workbench.engine.folder import read_engine_config

    engine = read_engine_config(folder)
    if not engine.checkpoint_dir.is_dir():
        raise CheckpointError(
            f"engine {folder} was built from {engine.checkpoint_dir}, which is no longer there",
            fix="put the checkpoint back, or build the engine again",
        )
    checkpoint = load_checkpoint(engine.checkpoint_dir)
    if checkpoint.checksum != engine.checkpoint_checksum:
        raise CheckpointError(
            f"checkpoint {engine.checkpoint_dir} has changed since engine {folder} was built from it",
            fix="build the engine again",
        )
    return replace(checkpoint, recipe=replace(checkpoint.recipe, build=engine.recipe.build))
