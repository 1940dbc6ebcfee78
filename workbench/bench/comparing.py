"""Two forms of a bench's model compared on held-out text: the request, the result, and its rerun in float64."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from workbench.bench.bench import Bench
from workbench.bench.models import HUGGING_FACE, ModelChoice
from workbench.checkpoint.unified import Checkpoint
from workbench.errors import WorkbenchError
from workbench.evaluation.compare import Side, compare_sides, float64_bytes, float64_reruns
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
class ComparedSide:
    """One of the two models that were compared, without the model: nothing here keeps that in memory.

    Attributes:
        name, precision, checkpoint: as of :class:`workbench.evaluation.compare.Side`.
    """

    name: str
    precision: str
    checkpoint: Checkpoint | None

    @classmethod
    def of(cls, side: Side) -> ComparedSide:
        return cls(side.name, side.precision, side.checkpoint)


@dataclass(frozen=True, eq=False)
class Comparison:
    """A difference, and what its rerun needs.

    Attributes:
        diff: the difference.
        reference, candidate: the two sides.
        ids: token ids ``[windows, length]``.
    """

    diff: LayerDiff
    reference: ComparedSide
    candidate: ComparedSide
    ids: Tensor
    _bench: Bench

    def in_float64(self, report: Reporter = silent) -> LayerDiff:
        """The difference, with what the first window says in float64 about its cause.

        The bench's open models are closed where they take the room.

        Raises:
            CheckpointError: a checkpoint's file is gone.
            LimitError: memory is too small for it; says the sizes.
        """
        source, sides = self._bench.source, (self.reference.checkpoint, self.candidate.checkpoint)
        self._bench.models.make_room(float64_bytes(source, sides[0]), "cpu")
        return self.diff.with_float64(*float64_reruns(source, sides, self.ids[:1], report))


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
    return Comparison(diff, ComparedSide.of(reference), ComparedSide.of(candidate), ids, bench)
