"""The whole model as the judge of a recipe: a job that measures a few recipes on windows that nothing was tuned on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import pandas as pd

from workbench.bench.bench import Bench
from workbench.bench.job import Job
from workbench.checkpoint.unified import Checkpoint, load_checkpoint
from workbench.errors import WorkbenchError
from workbench.progress import Reporter
from workbench.recipe import Recipe, SmoothQuant

CURRENT = "the recipe as it is"


@dataclass(frozen=True)
class JudgeOptions:
    """How much a judgement reads: ``windows`` of ``length`` tokens of the built-in text's test part."""

    windows: int = 8
    length: int = 256


@dataclass(frozen=True, eq=False)
class Judgement:
    """What a judge found.

    Attributes:
        table: of :func:`workbench.evaluation.tradeoff.compare_recipes`.
        recipes: what was judged, by the name in the table.
        options: how much was read.
    """

    table: pd.DataFrame
    recipes: Mapping[str, Recipe]
    options: JudgeOptions


def contenders(recipe: Recipe) -> dict[str, Recipe]:
    """The recipe, and what it must be better than: one alpha for all groups, and no smoothing; each once."""
    how = recipe.weights
    found = {CURRENT: recipe}
    if isinstance(how, SmoothQuant):
        default = SmoothQuant().alpha
        others = {
            f"alpha {default:g} everywhere": SmoothQuant(how.weight, how.activation),
            "not smoothed": SmoothQuant(how.weight, how.activation, groups=()),
        }
        found |= {name: replace(recipe, weights=each) for name, each in others.items() if each != how}
    return found


def judging_job(bench: Bench, recipes: Mapping[str, Recipe] | None = None, options: JudgeOptions | None = None) -> Job:
    """A job whose result is a :class:`Judgement`.

    Checkpoints come from the bench's cache, and are kept there; the reference's logits lie beside them meanwhile.

    Args:
        bench: holds the model, its ranges and the device.
        recipes: by the name that the table shows; None for the :func:`contenders` of the bench's recipe at the start.
        options: how much it reads.
    """
    chosen = options or JudgeOptions()

    def work(report: Reporter) -> Judgement:
        from workbench.bench.open_session import MEMORY_FACTOR
        from workbench.evaluation.memory import parameters
        from workbench.evaluation.tradeoff import TradeoffOptions, compare_recipes
        from workbench.quantization.texts import offline_part, windows

        length = min(chosen.length, bench.config.max_position_embeddings)
        ids = windows(bench.tokenizer, offline_part("test"), chosen.windows, length)
        calibration = bench.calibration
        judged = recipes or contenders(bench.recipe)

        def converted(recipe: Recipe, told: Reporter) -> Checkpoint:
            if bench.calibration is not calibration:
                raise WorkbenchError("another calibration was taken while recipes were judged", fix="judge again")
            return load_checkpoint(bench.checkpoint(recipe, told))

        # The reference is float32 on every device, and the largest of the models that are run.
        bench.models.make_room(4 * parameters(bench.config) * MEMORY_FACTOR, bench.device)
        options = TradeoffOptions(bench.device, folder=bench.workspace.folder, convert=converted)
        table = compare_recipes(bench.model_dir, judged, ids, options=options, report=report)
        return Judgement(table, judged, replace(chosen, length=length))

    return Job("judge on the whole model", work, bench.jobs)
