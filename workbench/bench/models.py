"""The forms of a bench's model that can be compared and talked to: opened by a choice, kept open, closed in turn.

A choice is "hf" (Hugging Face's own model), a recipe, the folder of a checkpoint or an engine, or None for the bench's
recipe as it is at that moment. Runs no comparison and generates no text.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from workbench.bench.open_session import (
    MEMORY_FACTOR,
    engines_checkpoint,
    folder_kind,
    gpu_hindrance,
    open_session,
    weight_bytes,
)
from workbench.checkpoint import hf_names
from workbench.checkpoint.unified import Checkpoint, load_checkpoint
from workbench.checkpoint.unified_config import read_unified_config
from workbench.engine.folder import is_engine, read_engine_config
from workbench.engine.product import Product, product_named
from workbench.engine.session import require_runnable
from workbench.errors import BackendError, CheckpointError, LimitError, WorkbenchError
from workbench.evaluation.compare import Side, check_same_size, dtype_name, precision_of
from workbench.evaluation.memory import free_bytes, give_back, parameters, require_memory
from workbench.evaluation.side_by_side import Speaker
from workbench.progress import Reporter, silent
from workbench.recipe import Int4WeightOnly, Int8WeightOnly, Recipe, SmoothQuant
from workbench.runtime.limits import model_limits
from workbench.runtime.session import SessionOptions, TorchSession

if TYPE_CHECKING:
    from workbench.bench.bench import Bench
    from workbench.evaluation.hf_session import HFSession
    from workbench.runtime.cuda_session import CudaSession

HUGGING_FACE = "hf"
ModelChoice = str | Path | Recipe | None

# As many as a playground shows at once.
KEPT_OPEN = 3
# An engine's network is executed tap by tap on the CPU up to this size; beyond it takes minutes a window.
MOST_INTERPRETED_PARAMETERS = 1_000_000_000


@dataclass(frozen=True, eq=False)
class _Opened:
    """One open model, how to close it, and the device whose memory it takes."""

    model: Any
    close: Callable[[], None]
    device: str


class OpenModels:
    """Opens what a bench is asked to compare or to let speak, and keeps the last few open.

    Args:
        bench: whose model, recipe, cache and device.
    """

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._lock = threading.RLock()
        self._open: dict[tuple[Any, ...], _Opened] = {}
        self._in_use: set[tuple[Any, ...]] = set()

    # ---- choices

    def choices(self) -> dict[str, ModelChoice]:
        """What is at hand, by the name that menus show: Hugging Face, the recipe, and checkpoints made before."""
        found: dict[str, ModelChoice] = {"Hugging Face": HUGGING_FACE, "the recipe as it is": None}
        for folder in self._bench.workspace.checkpoints():
            try:
                recipe = read_unified_config(folder).recipe
            except CheckpointError:
                continue  # being written, or written halfway
            name = f"made before: {describe(recipe)}"
            while name in found:  # the same recipe on other ranges
                name += ", another calibration"
            found[name] = folder
        return found

    def settle(self, choice: ModelChoice) -> str | Path | Recipe:
        """The choice with the bench's recipe in the place of None, and a folder as a path.

        Raises:
            CheckpointError: an empty name.
        """
        if choice is None:
            return self._bench.recipe
        if isinstance(choice, str) and choice != HUGGING_FACE:
            if not choice.strip():
                raise CheckpointError("no folder is named", fix="type the folder of a checkpoint or an engine")
            return Path(choice.strip()).expanduser()
        return choice

    # ---- opening

    def sides(self, reference: ModelChoice, candidate: ModelChoice, report: Reporter = silent) -> tuple[Side, Side]:
        """The two sides of a comparison; recipes are converted into the bench's cache first.

        What an earlier call opened may be closed.

        Raises:
            CheckpointError, RecipeError, WorkbenchError: one cannot be opened; says what to do.
        """
        with self._lock:
            self._in_use.clear()
            return self._side(self.settle(reference), report), self._side(self.settle(candidate), report)

    def speakers(self, choices: Sequence[ModelChoice], report: Reporter = silent) -> list[Speaker]:
        """Models that can speak; an engine runs on its GPU, or where there is none by its checkpoint.

        What an earlier call opened may be closed.

        Raises:
            LimitError: more than can be open at once.
            WorkbenchError: one model twice.
            CheckpointError, RecipeError, WorkbenchError: as :meth:`sides`.
        """
        if not 1 <= len(choices) <= KEPT_OPEN:
            raise LimitError(f"{len(choices)} models", allowed=f"1 to {KEPT_OPEN}", fix="choose fewer")
        with self._lock:
            self._in_use.clear()
            speakers = [self._speaker(self.settle(choice), report) for choice in choices]
        for number, speaker in enumerate(speakers):
            if any(speaker.session is other.session for other in speakers[:number]):
                raise WorkbenchError(f"{speaker.name} is chosen twice", fix="choose another model for one of the two")
        return speakers

    def make_room(self, needed_bytes: float, device: str) -> bool:
        """Close models on a device, oldest first, until a job's own model fits; whether it does.

        For a job whose turn it is: what an earlier one opened may be closed.
        """
        with self._lock:
            self._in_use.clear()
            return self._make_room(needed_bytes, device)

    def close(self) -> None:
        """Close every model."""
        with self._lock:
            self._in_use.clear()
            while self._close_oldest():
                pass

    # ---- each kind

    def _side(self, choice: str | Path | Recipe, report: Reporter) -> Side:
        if choice == HUGGING_FACE:
            session = self._hugging_face()
            name = dtype_name(session.reference.dtype)
            return Side(f"Hugging Face {name}", session, name)
        if isinstance(choice, Recipe):
            checkpoint = load_checkpoint(self._bench.checkpoint(choice, report))
            return Side(describe(choice), self._session(checkpoint), precision_of(checkpoint), checkpoint)
        folder = Path(choice)
        if folder_kind(folder) == "engine":
            return self._engine_side(folder)
        checkpoint = self._same_size(load_checkpoint(folder))
        return Side(self._folder_name(checkpoint), self._session(checkpoint), precision_of(checkpoint), checkpoint)

    def _speaker(self, choice: str | Path | Recipe, report: Reporter) -> Speaker:
        if isinstance(choice, Path) and is_engine(choice):
            return self._engine_speaker(choice)
        side = self._side(choice, report)
        return Speaker(side.name, side.model, side.precision)  # type: ignore[arg-type]  # sessions, both of them

    def _hugging_face(self) -> HFSession:
        from workbench.evaluation.hf_reference import HFReference
        from workbench.evaluation.hf_session import HFSession

        source, device = self._bench.source, self._bench.device

        def make() -> _Opened:
            dtype = self._reference_dtype()
            session = HFSession(HFReference.from_weights(source.config, source.weights(dtype), dtype, device))
            return _Opened(session, session.close, device)

        session: HFSession = self._kept((HUGGING_FACE,), make)
        return session

    def _reference_dtype(self) -> torch.dtype:
        """Float32 where its weights fit, else the 16-bit type that they are stored in.

        Raises:
            LimitError: that does not fit either.
        """
        count, device = parameters(self._bench.config), self._bench.device
        if self._make_room(4 * count * MEMORY_FACTOR, device):
            return torch.float32
        require_memory("Hugging Face's model", 2 * count, device)
        stored: torch.dtype = self._bench.source.spec(hf_names.FINAL_NORM).dtype
        return torch.float16 if stored == torch.float16 else torch.bfloat16

    def _session(self, checkpoint: Checkpoint) -> TorchSession | CudaSession:
        def make() -> _Opened:
            self._require(checkpoint, self._bench.device)
            session = self._opened(checkpoint, self._bench.device)
            return _Opened(session, session.close, self._bench.device)

        session: TorchSession | CudaSession = self._kept((str(checkpoint.folder), checkpoint.checksum), make)
        return session

    def _opened(self, checkpoint: Checkpoint, device: str) -> TorchSession | CudaSession:
        """On the first GPU with the kernels for it, where they serve the recipe; else on a torch op set."""
        dtype: torch.dtype = getattr(torch, checkpoint.recipe.dtype)
        limits = model_limits(checkpoint.config, checkpoint.recipe.build)
        if device in ("cuda", "cuda:0") and not gpu_hindrance(checkpoint):
            from workbench.runtime.cuda_session import CudaOptions, CudaSession

            return CudaSession(checkpoint.config, checkpoint.weights, CudaOptions(dtype, limits, device))
        options = SessionOptions(dtype, "cpu" if device == "cpu" else "torch", limits, device)
        return TorchSession(checkpoint.config, checkpoint.weights, options)

    def _engine_side(self, folder: Path) -> Side:
        checkpoint = self._same_size(engines_checkpoint(folder))
        name, precision = folder.name or str(folder), precision_of(checkpoint)
        product = _installed(read_engine_config(folder).product)
        if product is None or parameters(checkpoint.config) > MOST_INTERPRETED_PARAMETERS:
            why = "its TensorRT is not installed" if product is None else "its network is too large to interpret"
            session = self._session(checkpoint)
            return Side(f"engine {name} (its checkpoint; {why})", session, precision, checkpoint)
        known = product

        def make() -> _Opened:
            from workbench.engine.interpreted_model import InterpretedModel

            self._require(checkpoint, "cpu")
            model = InterpretedModel(known, checkpoint)
            return _Opened(model, model.close, "cpu")

        model = self._kept(("network", str(folder), checkpoint.checksum), make)
        return Side(f"engine {name} (its network, interpreted on the CPU)", model, precision, checkpoint)

    def _engine_speaker(self, folder: Path) -> Speaker:
        checkpoint = self._same_size(engines_checkpoint(folder))

        def make() -> _Opened:
            self._require(checkpoint, self._engines_device(folder, checkpoint))
            opened = open_session(folder)
            return _Opened(opened, opened.session.close, opened.device)

        opened = self._kept(("engine", str(folder), checkpoint.checksum), make)
        name = f"engine {folder.name} on {opened.session.backend}"
        return Speaker(name, opened.session, precision_of(checkpoint), opened.reason)

    def _engines_device(self, folder: Path, checkpoint: Checkpoint) -> str:
        """Where :func:`open_session` will run an engine: on the GPU itself or by our kernels there, else on the CPU."""
        if not torch.cuda.is_available():
            return "cpu"
        try:
            require_runnable(read_engine_config(folder))
        except BackendError:
            # Whether its checkpoint fits the GPU is asked of a GPU that has all the room it can have.
            self._make_room(weight_bytes(checkpoint) * MEMORY_FACTOR, "cuda")
            return "cpu" if gpu_hindrance(checkpoint) else "cuda"
        return "cuda"

    def _same_size(self, checkpoint: Checkpoint) -> Checkpoint:
        check_same_size(self._bench.source, checkpoint)
        return checkpoint

    def _folder_name(self, checkpoint: Checkpoint) -> str:
        known = checkpoint.fingerprint in ("", self._bench.workspace.fingerprint)
        what = describe(checkpoint.recipe) if known else f"{describe(checkpoint.recipe)}, made of another model"
        inside = self._bench.workspace.folder in checkpoint.folder.absolute().parents
        return what if inside else f"{checkpoint.folder.name}: {what}"

    # ---- what is open

    def _kept(self, key: tuple[Any, ...], make: Callable[[], _Opened]) -> Any:
        self._in_use.add(key)
        if key in self._open:
            self._open[key] = self._open.pop(key)  # the newest stands last
        else:
            while len(self._open) >= KEPT_OPEN and self._close_oldest():
                pass
            self._open[key] = make()
        return self._open[key].model

    def _require(self, checkpoint: Checkpoint, device: str) -> None:
        """Make room for a checkpoint's weights, comfortably where that can be had.

        Raises:
            LimitError: they do not fit however much is closed.
        """
        needed = weight_bytes(checkpoint)
        if not self._make_room(needed * MEMORY_FACTOR, device):
            require_memory(f"the checkpoint {checkpoint.folder.name}", needed, device)

    def _make_room(self, needed_bytes: float, device: str) -> bool:
        """Close what is not in use on a device, oldest first, until so much is free; whether it is."""
        while needed_bytes > free_bytes(device):
            if not self._close_oldest(device):
                return False
        return True

    def _close_oldest(self, device: str = "") -> bool:
        """Close the model that was used longest ago, of one kind of device or any; False when none is left to close."""
        for key, opened in self._open.items():
            there = not device or torch.device(opened.device).type == torch.device(device).type
            if there and key not in self._in_use:
                del self._open[key]
                opened.close()
                give_back()
                return True
        return False


def describe(recipe: Recipe) -> str:
    """A recipe in a few words: ``SmoothQuant alpha 0.85 per token, INT8 KV cache per head, bfloat16``."""
    weights = recipe.weights
    parts = []
    match weights:
        case Int8WeightOnly():
            parts.append("INT8 weights")
        case Int4WeightOnly():
            parts.append(f"INT4 weights in groups of {weights.group_size}" if weights.group_size else "INT4 weights")
        case SmoothQuant():
            own = len(weights.alpha_by_group)
            more = f" and {own} groups of their own" if own else ""
            smoothed = f"alpha {weights.alpha:g}{more}" if weights.groups else "without smoothing"
            parts.append(f"SmoothQuant {smoothed} {weights.activation.replace('_', ' ')}")
        case None:
            pass
    if recipe.kv_cache is not None:
        clipped = f" at {recipe.kv_cache.percentile:g} %" if recipe.kv_cache.percentile < 100 else ""
        parts.append(f"INT8 KV cache {recipe.kv_cache.granularity.replace('_', ' ')}{clipped}")
    if recipe.keep != ("lm_head",):
        parts.append(f"{len(recipe.keep)} patterns kept")
    return ", ".join([*parts, recipe.dtype])


def _installed(product: str) -> Product | None:
    try:
        return product_named(product)
    except BackendError:
        return None
