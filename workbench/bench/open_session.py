"""Opens a folder, engine or checkpoint, on the best backend that this machine has, and says which and why."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.errors import BackendError, CheckpointError, nearest

if TYPE_CHECKING:
    from workbench.checkpoint.unified import Checkpoint
    from workbench.runtime.session import Session

BACKENDS = ("auto", "cpu", "torch", "tensorrt")


@dataclass(frozen=True)
class OpenedSession:
    """A session, and one sentence that says which backend runs it and why."""

    session: Session
    reason: str


def open_session(folder: str | Path, backend: str = "auto") -> OpenedSession:
    """Open an engine folder or a checkpoint folder.

    An engine folder points at its checkpoint, so it also opens where TensorRT cannot run. An engine's limits hold on
    every backend; a checkpoint alone has those of the model's positions, and of memory.

    Args:
        folder: what ``workbench build`` or ``workbench convert`` wrote.
        backend: "tensorrt" (engine folders only), "cpu" (fast CPU kernels), "torch" (plain, slow, the reference), or
            "auto": TensorRT for an engine that this machine can run, else "cpu".

    Raises:
        BackendError: an unknown backend, or one that cannot run this folder here; names one that can.
        CheckpointError: the folder is neither kind, or an engine's checkpoint is missing or has changed.
    """
    folder = Path(folder)
    if backend not in BACKENDS:
        hint = nearest(backend, BACKENDS)
        raise BackendError(f"backend {backend!r}", allowed=", ".join(BACKENDS), fix=hint or "choose one of them")
    kind = folder_kind(folder)
    if kind == "checkpoint":
        return _open_checkpoint(folder, backend)
    if backend in ("cpu", "torch"):
        return _open_engines_checkpoint(folder, backend, "as asked")
    return _open_engine(folder, backend)


def folder_kind(folder: Path) -> str:
    """What ``config.json`` says the folder is: "checkpoint" or "engine".

    Raises:
        CheckpointError: no such folder, no ``config.json``, or one that this package did not write.
    """
    import json

    wanted = "a folder written by 'workbench convert' or 'workbench build'"
    if not folder.is_dir():
        raise CheckpointError(f"folder {folder} does not exist", allowed=wanted, fix="check the path")
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
    from workbench.runtime.session import TorchSession

    if backend == "tensorrt":
        raise BackendError(
            f"backend 'tensorrt' for {folder}, which is a checkpoint and not an engine",
            allowed="cpu, torch",
            fix="build an engine first (workbench build), or use backend 'cpu'",
        )
    chosen = "cpu" if backend == "auto" else backend
    checkpoint = load_checkpoint(folder)
    limits = model_limits(checkpoint.config, checkpoint.recipe.build)
    session = TorchSession.open(replace(checkpoint, recipe=replace(checkpoint.recipe, build=limits)), chosen)
    why = "as asked" if backend != "auto" else "a checkpoint runs with the fast CPU kernels"
    return OpenedSession(session, f"backend {chosen}: {why}")


def _open_engine(folder: Path, backend: str) -> OpenedSession:
    from workbench.engine.session import open_engine_session

    try:
        session = open_engine_session(folder)
    except BackendError as error:
        if backend == "tensorrt":
            raise
        return _open_engines_checkpoint(folder, "cpu", f"the engine cannot run here ({error.given})")
    return OpenedSession(session, "backend tensorrt: this machine can run the engine")


def _open_engines_checkpoint(folder: Path, backend: str, why: str) -> OpenedSession:
    from workbench.runtime.session import TorchSession

    session = TorchSession.open(engines_checkpoint(folder), backend)
    return OpenedSession(session, f"backend {backend} on the engine's checkpoint: {why}")


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
