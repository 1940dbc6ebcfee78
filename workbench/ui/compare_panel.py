"""The panel that compares: a choice of two models, a job, and the difference that it finds. Computes nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import ipywidgets
import pandas as pd
from matplotlib.figure import Figure

from workbench.bench.bench import Bench
from workbench.bench.comparing import Comparison, ComparisonRequest, compare_models
from workbench.bench.job import Job
from workbench.bench.models import HUGGING_FACE, ModelChoice
from workbench.evaluation.layer_diff import LayerDiff
from workbench.progress import Reporter
from workbench.ui.job_panel import JobPanel
from workbench.ui.layer_diff_panel import LayerDiffPanel
from workbench.ui.limited_number import POSITIONS, LimitedInt
from workbench.ui.model_chooser import ModelChooser
from workbench.ui.panel import Panel, shows_errors

_NOTHING_YET = (
    '<div class="wb-line">Choose two models and press Compare: every named tensor of both is compared on text that '
    "neither was calibrated on. A recipe is converted first; that checkpoint is kept for the next time.</div>"
)
_OUTDATED = (
    '<div class="wb-line">The recipe has changed since this comparison: press Compare to see it as it is now.</div>'
)


@dataclass(frozen=True)
class _Asked:
    """A request with the recipe that the bench had, and whether it asked for that."""

    request: ComparisonRequest
    live: bool


class ComparePanel(Panel):
    """Two models compared tap by tap: Hugging Face, the bench's recipe, earlier ones, any checkpoint or engine.

    Args:
        bench: whose model.
        candidate, reference: to begin with (:data:`workbench.bench.models.ModelChoice`); None is the bench's recipe.

    Attributes:
        reference, candidate: the two menus; their trait ``choice`` is what is chosen.
        windows, length: the fields that say on how much text; ``.value`` is what they hold.
        job: the comparison; :meth:`compare` starts it.
    """

    def __init__(self, bench: Bench, candidate: ModelChoice = None, reference: ModelChoice = HUGGING_FACE) -> None:
        self.bench = bench
        self._asked = _Asked(ComparisonRequest(), live=False)
        self._shown: _Asked | None = None
        self.reference = ModelChooser(bench, "Reference", reference)
        self.candidate = ModelChooser(bench, "Candidate", candidate)
        words: dict[str, Any] = {"style": {"description_width": "initial"}, "layout": {"width": "180px"}}
        self.windows = LimitedInt(
            ComparisonRequest.windows,
            1,
            64,
            description="Windows",
            tooltip="windows of the built-in text's test part",
            **words,
        )
        longest = bench.config.max_position_embeddings
        self.length = LimitedInt(
            min(ComparisonRequest.length, longest), 2, longest, POSITIONS, description="Tokens in each", **words
        )
        self.job = Job("compare", self._work, bench.jobs)
        self._job_panel = JobPanel(self.job, action="Compare", next_action="Compare")
        self._note = ipywidgets.HTML()
        self._place = ipywidgets.VBox([ipywidgets.HTML(_NOTHING_YET)])
        self._diff_panel: LayerDiffPanel | None = None
        amounts = ipywidgets.HBox([self.windows.row, self.length.row], layout={"flex_flow": "row wrap"})
        choices = ipywidgets.HBox([self.reference, self.candidate], layout={"flex_flow": "row wrap"})
        super().__init__([choices, amounts, self._job_panel, self._note, self._place], "wb-compare")
        self.watch(self.job, self._on_job, "state")
        self.watch(bench, self._on_recipe, "recipe")

    # ---- what a user goes on with in code

    @property
    def diff(self) -> LayerDiff | None:
        """The difference that is shown; None before the first comparison has ended."""
        return None if self._diff_panel is None else self._diff_panel.diff

    @property
    def panel(self) -> LayerDiffPanel | None:
        """The panel of that difference."""
        return self._diff_panel

    @property
    def frame(self) -> pd.DataFrame:
        """The difference's table, one row per tap; empty before the first comparison."""
        return pd.DataFrame() if self._diff_panel is None else self._diff_panel.frame

    @property
    def figure(self) -> Figure | None:
        """What is shown as a figure."""
        return None if self._diff_panel is None else self._diff_panel.figure

    def compare(self) -> Job:
        """Compare what is chosen now, as the button does; the job's result is the difference."""
        return self.job.start()

    def close(self) -> None:
        # A panel whose construction failed is closed as well, when its memory is freed.
        job: Job | None = getattr(self, "job", None)
        if job is not None:
            job.stop()
        shown: LayerDiffPanel | None = getattr(self, "_diff_panel", None)
        if shown is not None:
            shown.close()
        super().close()

    def __repr__(self) -> str:
        return f"ComparePanel({'nothing compared yet' if self.diff is None else repr(self.diff)})"

    # ---- the job

    @shows_errors
    def _on_job(self, change: Any) -> None:
        if change["new"] == "waiting":
            # What is chosen when the button is pressed counts, whatever happens until the job's turn.
            chosen = (self.candidate.choice, self.reference.choice)
            candidate, reference = (self.bench.recipe if each is None else each for each in chosen)
            request = ComparisonRequest(candidate, reference, self.windows.value, self.length.value)
            self._asked = _Asked(request, live=None in chosen)

    def _work(self, report: Reporter) -> LayerDiff:
        asked = self._asked
        comparison = compare_models(self.bench, asked.request, report)
        self._shown = asked
        self._show(comparison)
        return comparison.diff

    def _show(self, comparison: Comparison) -> None:
        # Bound now: when the button's job has its turn, another comparison may be shown.
        def rerun(diff: LayerDiff, report: Reporter) -> LayerDiff:
            return replace(comparison, diff=diff).in_float64(report)

        if self._diff_panel is None:
            self._diff_panel = LayerDiffPanel(comparison.diff, state=self.bench, rerun=rerun)
            self._place.children = (self._diff_panel,)
        else:
            self._diff_panel.show(comparison.diff, rerun)
        self.reference.refresh()
        self.candidate.refresh()
        self._on_recipe()

    @shows_errors
    def _on_recipe(self, _change: Any = None) -> None:
        outdated = False
        if self._shown is not None and self._shown.live:
            request = self._shown.request
            outdated = self.bench.recipe not in (request.candidate, request.reference)
        self._note.value = _OUTDATED if outdated else ""
