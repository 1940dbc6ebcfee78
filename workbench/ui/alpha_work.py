"""The alpha panel's long work: buttons that start a job, the job's progress with its stop, and what a judge found."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from typing import Any

import ipywidgets

from workbench.bench.job import ENDED, Job
from workbench.bench.judging import Judgement
from workbench.ui.job_panel import JobPanel
from workbench.ui.widget_tree import put

_COLUMNS = ("Recipe", "KL to float32 [nats per token]", "Change of perplexity", "Same first choice")


class AlphaWork(ipywidgets.VBox):  # type: ignore[misc]  # ipywidgets has no types
    """Buttons of which one at a time can be at work.

    Attributes:
        tune_group, tune_layer, tune_all, judge: the buttons.
        job_panel: of the job that was started last; None before.
    """

    def __init__(self) -> None:
        self.tune_group = _button("Tune this group", "search the alpha of least output error for this group")
        self.tune_layer = _button("Tune this layer", "search it for the four groups of this layer")
        self.tune_all = _button("Tune all groups", "search it for every group of the model; locked ones keep theirs")
        self.judge = _button(
            "Judge on the whole model",
            "measure KL and perplexity of this recipe, of one alpha for all, and of no smoothing, on test text",
            icon="balance-scale",
            width="215px",
        )
        self._buttons: tuple[Any, ...] = (self.tune_group, self.tune_layer, self.tune_all, self.judge)
        self._others: Sequence[Any] = ()
        self.job_panel: JobPanel | None = None
        self._place = ipywidgets.VBox()
        self._table = ipywidgets.HTML()
        super().__init__(
            [ipywidgets.HBox(list(self._buttons), layout={"flex_flow": "row wrap"}), self._place, self._table]
        )

    def also_blocks(self, buttons: Sequence[Any]) -> None:
        """Further buttons that start work of this box."""
        self._others = buttons

    @property
    def busy(self) -> bool:
        """Whether a job of this box is under way."""
        return self.job_panel is not None and self.job_panel.job.running

    def start(self, job: Job, ended: Callable[[Job], None]) -> None:
        """Start a job and show it; nothing happens while another one is under way.

        Args:
            job: not started yet.
            ended: called in the job's thread whenever it has ended.
        """
        if self.busy:
            return

        def follow(_change: Any) -> None:
            self._block(blocked=job.state not in ENDED)
            if job.state in ENDED:
                ended(job)

        job.observe(follow, "state")
        self.job_panel = JobPanel(job, again=False)
        put(self._place, self.job_panel)
        job.start()

    def stop(self) -> None:
        """Stop what is under way, if anything is."""
        if self.job_panel is not None:
            self.job_panel.stop()

    def show_judgement(self, judgement: Judgement | None, *, outdated: bool = False) -> None:
        """Show what a judge found; ``outdated`` says that the recipe is another by now."""
        self._table.value = "" if judgement is None else judgement_html(judgement, outdated=outdated)

    def _block(self, *, blocked: bool) -> None:
        for button in (*self._buttons, *self._others):
            button.disabled = blocked


def judgement_html(judgement: Judgement, *, outdated: bool = False) -> str:
    """The table of recipes as HTML, each figure with its 95 % interval."""
    head = "".join(f"<th>{column}</th>" for column in _COLUMNS)
    rows = "".join(
        f"<tr><td>{html.escape(str(row['recipe']))}</td><td>{_interval(row, 'kl', '.4f')}</td>"
        f"<td>{_interval(row, 'change', '+.2%')}</td><td>{_interval(row, 'top1', '.1%')}</td></tr>"
        for row in judgement.table.to_dict("records")
    )
    read = f"{judgement.options.windows} windows of {judgement.options.length} tokens"
    since = " <b>The recipe has changed since: judge again.</b>" if outdated else ""
    return (
        f'<table class="wb-table"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
        f'<div class="wb-about">95 % intervals over {read} of the test text; recipes whose intervals overlap widely '
        f"cannot be told apart.{since}</div>"
    )


def _interval(row: dict[Any, Any], name: str, form: str) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return f"{format(row[name], form)} ({format(low, form)} to {format(high, form)})"


def _button(text: str, tooltip: str, icon: str = "magic", width: str = "165px") -> Any:
    return ipywidgets.Button(description=text, tooltip=tooltip, icon=icon, layout={"width": width})
