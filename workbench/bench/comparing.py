"""Two forms of a bench's model compared on held-out text: the request, the result, and its rerun in float64."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from workbench.bench.bench import Bench
from workbench.bench.models import HUGGING_FACE, ModelChoice
from workbench.checkpoint.huggingface import HFCheckpoint
from workbench.errors import WorkbenchError
from workbench.evaluation.compare import Side, compare_sides, float64_reruns
from workbench.evaluation.layer_diff import LayerDiff
from workbench.evaluation.texts import offline_part, windows
from workbench.progress import Reporter, silent


@dataclass(frozen=True)
class ComparisonRequest:
    """What is compared, and on how much of the built-in text's held-out part.

    Attributes:
        candidate, reference: choices of models (:mod:`workbench.bench.models`).
        windows, length: how many windows, of how many tokens each.
    """

    candidate: ModelChoice = None
    reference: ModelChoice = HUGGING_FACE
    windows: int = 2
    length: int = 128


@dataclass(frozen=True, eq=False)
class Comparison:
    """A difference, and what its rerun needs.

    Attributes:
        diff: the difference.
        reference, candidate: the two sides; their models may be closed by now.
        ids: token ids ``[windows, length]``.
    """

    diff: LayerDiff
    reference: Side
    candidate: Side
    ids: Tensor
    _source: HFCheckpoint

    def in_float64(self, report: Reporter = silent) -> LayerDiff:
        """The difference, with what the first window says in float64 about its cause.

        Raises:
            CheckpointError: a checkpoint's file is gone.
        """
        sides = (self.reference.checkpoint, self.candidate.checkpoint)
        return self.diff.with_float64(*float64_reruns(self._source, sides, self.ids[:1], report))


def compare_models(bench: Bench, request: ComparisonRequest, report: Reporter = silent) -> Comparison:
    """Open both models, converting a recipe first, and compare them tap by tap.

    Raises:
        WorkbenchError: both are the same.
        CheckpointError, RecipeError, LimitError: one cannot be opened, or the text is too short; says what to do.
    """
    ids = windows(bench.tokenizer, offline_part("test"), request.windows, request.length)
    reference, candidate = bench.models.sides(request.reference, request.candidate, report)
    if reference.model is candidate.model:
        raise WorkbenchError(f"both sides are {reference.name}", fix="choose another model for one of them")
    diff = compare_sides(reference, candidate, ids, bench.tokenizer, report)
    return Comparison(diff, reference, candidate, ids, bench.source)
