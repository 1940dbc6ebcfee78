"""The bench: one model, its state, and the long work on it. What a notebook holds, without its widgets.

Long work becomes a :class:`workbench.bench.job.Job` of the bench's queue; what it finds is put into the state's traits.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import traitlets

from workbench.bench.cached_calibrations import CachedCalibration, is_of, label, readable
from workbench.bench.job import Job
from workbench.bench.models import OpenModels
from workbench.bench.smoothing import SmoothedView
from workbench.bench.state import BenchState, Calibration, groups_of
from workbench.bench.tuning import tuning_job
from workbench.bench.workspace import Workspace, cache_root
from workbench.checkpoint.huggingface import HFCheckpoint
from workbench.errors import CheckpointError, RecipeError, WorkbenchError
from workbench.model.config import ModelConfig
from workbench.progress import Reporter, silent
from workbench.quantization.alpha_search import AlphaSearch, AlphaSearchOptions
from workbench.quantization.attention_inputs import CollectOptions, collect_attention_inputs
from workbench.quantization.calibration import CalibrationOptions, CalibrationWindows, calibrate
from workbench.quantization.calibration_data import (
    DatasetChoice,
    TextSource,
    WindowCounts,
    built_in,
    calibration_windows,
    from_dataset,
    from_file,
    from_strings,
)
from workbench.quantization.kv_error import KVStudy
from workbench.quantization.ranges import ActivationRanges
from workbench.quantization.row_sample import ROWS_FILE, load_rows
from workbench.quantization.texts import BUILT_IN
from workbench.recipe import Recipe, SmoothQuant
from workbench.runtime.tokenizer import check_special_ids, load_tokenizer

# Checkpoints of recipes that were tried are kept for another try; each is as large as the model.
KEPT_CHECKPOINTS = 4
KV_WINDOWS, KV_LENGTH = 2, 256
CALIBRATE_FIRST = "calibrate first: bench.calibrate().start()"


@dataclass(frozen=True)
class CalibrationRequest:
    """What a calibration reads, as a person states it.

    Attributes:
        data: None for the built-in text, else texts, a file (text, jsonl, parquet), or a dataset's name
            (``NAME`` or ``NAME:CONFIG``).
        samples, length: windows, and tokens in each.
        tune: further windows, from which rows are kept for tuning.
        column: the column that holds the text, where the data has columns.
    """

    data: str | Path | Sequence[str] | None = None
    samples: int = 128
    length: int = 512
    tune: int = 16
    column: str | None = None

    def source(self) -> TextSource:
        """The texts.

        Raises:
            DataError: they cannot be found or read.
        """
        if self.data is None:
            return built_in()
        if not isinstance(self.data, (str, Path)):
            return from_strings(list(self.data))
        if Path(self.data).is_file():
            return from_file(self.data, self.column)
        return from_dataset(DatasetChoice.parse(str(self.data), column=self.column))

    @property
    def name(self) -> str:
        """What the calibration is called: its data and its size."""
        if self.data is None:
            data = BUILT_IN
        elif isinstance(self.data, (str, Path)):
            data = Path(self.data).name or str(self.data)
        else:
            digest = hashlib.sha256("\0".join(self.data).encode()).hexdigest()[:6]
            data = f"{len(self.data)} texts {digest}"
        tune = "" if self.tune == CalibrationRequest.tune else f", {self.tune} for tuning"
        return f"{data}, {self.samples} x {self.length}{tune}"


# Enough for a first picture within seconds; its maxima are lower than those of a whole calibration.
QUICK_LOOK = CalibrationRequest(samples=8, length=256, tune=4)


class Bench(BenchState):
    """One model under the hands of a person.

    Args:
        model_dir: the Hugging Face folder.
        recipe: to begin with; None takes SmoothQuant with the defaults.
        cache_dir: where calibrations and checkpoints are kept (:func:`workbench.bench.workspace.cache_root`).
        device: "cpu", "cuda", "cuda:N"; None takes a GPU where there is one.

    Attributes:
        source: the opened folder.
        workspace: where what is made of this model is kept.
        models: the forms of the model that can be compared and talked to.

    Raises:
        CheckpointError: the folder is no model that can be read.
    """

    def __init__(
        self,
        model_dir: str | Path,
        recipe: Recipe | None = None,
        *,
        cache_dir: str | Path | None = None,
        device: str | None = None,
    ) -> None:
        given = Path(model_dir).expanduser()
        if not given.is_dir():
            raise CheckpointError(
                f"{model_dir} is no folder", fix="give a model's folder, or its name to workbench.open"
            )
        # Absolute: a recipe and a command line that are taken away hold wherever they are read.
        self.source = HFCheckpoint.open(os.path.abspath(given))
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.workspace = Workspace(cache_root(cache_dir), self.source.fingerprint())
        self._tokenizer: Any = None
        super().__init__(recipe or Recipe(dtype=_stored_dtype(self.source), weights=SmoothQuant()))
        self.smoothed = SmoothedView(self.source, self.device)
        self.models = OpenModels(self)
        for found in sorted(self._cached(), key=lambda each: each.tokens, reverse=True):
            with contextlib.suppress(CheckpointError, OSError):
                self.use_calibration(found.folder)
                break

    @traitlets.validate("recipe")
    def _of_this_model(self, proposal: Any) -> Recipe:
        """Any recipe becomes one of this model; one that names layers which the model lacks is refused."""
        recipe: Recipe = dataclasses.replace(proposal["value"], model=str(self.model_dir))
        _require_layers(recipe, self.config.num_layers)
        return recipe

    @property
    def model_dir(self) -> Path:
        return self.source.folder

    @property
    def config(self) -> ModelConfig:
        """The model's sizes."""
        return self.source.config

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer.

        Raises:
            CheckpointError: the folder has none, or that of a model with more tokens.
        """
        if self._tokenizer is None:
            tokenizer = load_tokenizer(self.model_dir)
            check_special_ids(tokenizer, self.config.vocab_size)
            self._tokenizer = tokenizer
        return self._tokenizer

    # ---- calibration

    def calibrations(self) -> dict[str, Path]:
        """Calibrations of this model in the cache: name -> folder, the newest last; without those that are broken."""
        return {found.name: found.folder for found in self._cached()}

    @property
    def broken_calibrations(self) -> list[Path]:
        """Folders in the cache whose ranges cannot be read: calibrating the same anew mends them."""
        good = {found.folder for found in self._cached()}
        return [folder for folder in self.workspace.calibrations() if folder not in good]

    def _cached(self) -> list[CachedCalibration]:
        return readable(self.workspace.calibrations())

    def use_calibration(self, folder: str | Path) -> Calibration:
        """Take the ranges and rows of a calibration's folder into the state.

        Raises:
            CheckpointError: it is none, or of another model.
        """
        found, search = self.load_calibration(folder), None
        if found.rows is not None:
            options = AlphaSearchOptions(device=self.device)
            search = AlphaSearch(self.source, found.ranges, found.rows, options)
        with self._changing, self.hold_trait_notifications():
            self.calibration, self.search, self.kv_study = found, search, None
        return found

    def load_calibration(self, folder: str | Path) -> Calibration:
        """Read a calibration, and leave the state alone: for comparing two.

        Raises:
            CheckpointError: it is none, or of another model.
        """
        folder = Path(folder)
        ranges = ActivationRanges.load(folder)
        ranges.require_model(self.workspace.fingerprint)
        rows = load_rows(folder) if (folder / ROWS_FILE).is_file() else None
        names = {path: name for name, path in self.calibrations().items()}
        return Calibration(names.get(folder) or label(folder), ranges, rows, folder)

    def calibrate(self, request: CalibrationRequest | None = None, options: CalibrationOptions | None = None) -> Job:
        """A job that calibrates and takes the result into the state; one that is in the cache is used again.

        A calibration that was stopped goes on where it was when the same is asked for again.
        """
        wanted = request or CalibrationRequest()
        chosen = options or CalibrationOptions(device=self.device)

        def work(report: Reporter) -> Calibration:
            windows = calibration_windows(
                self.tokenizer, wanted.source(), WindowCounts(wanted.samples, wanted.length, wanted.tune)
            )
            return self.use_calibration(self._calibrated(wanted.name, (windows, chosen), report))

        return Job(f"calibrate: {wanted.name}", work, self.jobs)

    def _calibrated(self, name: str, what: tuple[CalibrationWindows, CalibrationOptions], report: Reporter) -> Path:
        windows, options = what
        plain = options == CalibrationOptions(device=options.device)
        folder = self.workspace.calibration(name if plain else f"{name}, {options.dtype}, {options.rows} rows")
        if not is_of(folder, windows, options):
            with self.workspace.writing(folder):
                if not is_of(folder, windows, options):  # else it was made while we waited
                    # What is in the way is of another text under the same name, or broken.
                    calibrate(self.model_dir, windows, folder, options, force=folder.exists(), report=report)
        return folder

    # ---- tuning and studies

    def tune(self, groups: str = "") -> Job:
        """A job that sets each group's alpha to the least output error on held-out rows; locked groups keep theirs.

        Each group's alpha is taken into the recipe as soon as it is known; the whole is one step to undo.

        Args:
            groups: which (:func:`workbench.bench.state.groups_of`); empty for all.

        Raises:
            RecipeError: nothing is called so.
            WorkbenchError: there are no held-out rows yet.
        """
        chosen = groups_of(groups, self.config.num_layers)
        return tuning_job(self, chosen, f"tune {groups or 'all groups'}")

    def study_kv(self) -> Job:
        """A job that collects what attention reads on held-out windows, and puts the study into the state."""

        def work(report: Reporter) -> KVStudy:
            calibration = self.calibration
            if calibration is None:
                raise WorkbenchError("nothing is calibrated yet", fix=CALIBRATE_FIRST)
            length = min(KV_LENGTH, self.config.max_position_embeddings)
            folder = self.workspace.folder / "attention" / f"{KV_WINDOWS}x{length}"
            study = self._known_study(folder, calibration)
            if study is None:
                with self.workspace.writing(folder):
                    study = self._known_study(folder, calibration)
                    if study is None:
                        windows = calibration_windows(self.tokenizer, built_in(), WindowCounts(1, length, KV_WINDOWS))
                        assert windows.tune is not None  # the built-in text has a part of its own for tuning
                        collect_attention_inputs(
                            self.source, windows.tune, folder, CollectOptions(device=self.device), report
                        )
                        study = KVStudy(self.config, folder, calibration.ranges, self.device)
            with self._changing:
                if self.calibration is not None and self.calibration is not calibration:  # another was taken meanwhile
                    study = KVStudy(self.config, folder, self.calibration.ranges, self.device)
                self.kv_study = study
            return study

        return Job("collect attention's inputs", work, self.jobs)

    def _known_study(self, folder: Path, calibration: Calibration) -> KVStudy | None:
        try:
            return KVStudy(self.config, folder, calibration.ranges, self.device)
        except CheckpointError:  # nothing there, or of another model
            return None

    def smoothed_ranges(self, report: Reporter = silent) -> ActivationRanges:
        """The calibration's ranges after the recipe's smoothing; as they are where it has none.

        Raises:
            WorkbenchError: nothing is calibrated yet.
        """
        if self.calibration is None:
            raise WorkbenchError("nothing is calibrated yet", fix=CALIBRATE_FIRST)
        return self.smoothed.ranges(self.calibration.ranges, self.smoothing, report)

    # ---- checkpoints

    def checkpoint(self, recipe: Recipe | None = None, report: Reporter = silent) -> Path:
        """The folder of the model converted by a recipe (None: the bench's), made where the cache lacks it.

        Raises:
            CheckpointError, RecipeError: the recipe does not fit the model, or needs ranges that are not there.
        """
        from workbench.quantization.convert import convert

        recipe = recipe or self.recipe
        ranges = self.calibration.ranges if self.calibration is not None else None
        folder = self.workspace.checkpoint(_recipe_key(recipe, self.calibration))
        if not self._is_converted(folder):
            with self.workspace.writing(folder):
                if not self._is_converted(folder):  # else it was made while we waited
                    # Not there, or half gone: what lies in the cache is ours to remove.
                    shutil.rmtree(folder, ignore_errors=True)
                    convert(self.model_dir, recipe, folder, ranges=ranges, report=report)
                    self.workspace.touch(folder)
            self.workspace.keep_newest_checkpoints(KEPT_CHECKPOINTS)
        return folder

    def _is_converted(self, folder: Path) -> bool:
        """Whether a whole checkpoint lies there; notes that it is used."""
        from workbench.checkpoint.unified import load_checkpoint

        try:
            load_checkpoint(folder)
        except CheckpointError:
            return False
        self.workspace.touch(folder)
        return True

    def __repr__(self) -> str:
        config, broken = self.config, len(self.broken_calibrations)
        seen = "nothing calibrated yet" if self.calibration is None else f"calibrated: {self.calibration.name}"
        seen += f"; {broken} in the cache cannot be read (bench.broken_calibrations)" if broken else ""
        return (
            f"Bench({self.model_dir.name}: {config.num_layers} layers, hidden {config.hidden_size}, "
            f"{config.num_heads} heads, {config.num_kv_heads} KV heads, on {self.device}; {seen})"
        )

    def _repr_pretty_(self, printer: Any, _cycle: bool) -> None:
        printer.text(repr(self))


def _stored_dtype(source: HFCheckpoint) -> str:
    """The 16-bit type that the weights are stored in; bfloat16 for wider ones."""
    from workbench.checkpoint import hf_names

    stored = source.spec(hf_names.FINAL_NORM).dtype
    return "float16" if stored == torch.float16 else "bfloat16"


def _require_layers(recipe: Recipe, num_layers: int) -> None:
    """Refuse a recipe that names layers which the model lacks.

    Raises:
        RecipeError: it does.
    """
    alphas = recipe.weights.alpha_by_group if isinstance(recipe.weights, SmoothQuant) else {}
    for place, names in (("weights.alpha_by_group", alphas), ("keep", recipe.keep)):
        for name in names:
            layer = name.split(".")[1] if name.startswith("layers.") else "*"
            if layer != "*" and int(layer) >= num_layers:
                raise RecipeError(
                    f"{place} names {name!r}, which this model does not have", allowed=f"layers 0 to {num_layers - 1}"
                )


def _recipe_key(recipe: Recipe, calibration: Calibration | None) -> str:
    """A short name for what a conversion gives: the choices, and the ranges that they take effect on."""
    from workbench.quantization.convert import ranges_needed_for

    content = {key: value for key, value in recipe.to_dict().items() if key not in ("model", "build")}
    seen = ""
    if calibration is not None and ranges_needed_for(recipe) is not None:
        seen = json.dumps([dataclasses.asdict(source) for source in calibration.ranges.source])
    return hashlib.sha256((json.dumps(content, sort_keys=True) + seen).encode()).hexdigest()[:20]
