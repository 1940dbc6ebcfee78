"""The bench of a notebook: the bench, and a panel for each of its questions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from workbench.bench.bench import Bench
from workbench.bench.find_model import find_model
from workbench.recipe import Recipe
from workbench.ui.panel import Panel


class NotebookBench(Bench):
    """A bench whose questions are panels.

    A question that is asked again in the same words gets the same panel: a cell that is run twice shows what it showed.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        self._panels: dict[tuple[Any, ...], Panel] = {}
        super().__init__(*args, **options)

    def ranges(self, against: str = "") -> Panel:
        """Look at the activations: a map of layers and sites, and each tap close up.

        Args:
            against: another calibration of this model (:meth:`calibrations`) to look at beside this one.
        """
        from workbench.ui.ranges_panel import RangesPanel

        return self._panel(("ranges", against), lambda: RangesPanel(state=self, against=against))

    def alpha(self, group: str = "") -> Panel:
        """Tune SmoothQuant's migration strength.

        Args:
            group: the groups to begin with: ``layers.12``, ``layers.12.mlp``, ``layers.12.down``; empty for all.

        Raises:
            RecipeError: nothing is called so.
        """
        from workbench.ui.alpha_panel import AlphaPanel

        return self._panel(("alpha", group), lambda: AlphaPanel(state=self, group=group))

    def kv_scales(self) -> Panel:
        """Choose the scales of an INT8 KV cache, and see what they cost attention."""
        from workbench.ui.kv_scales_panel import KVScalesPanel

        return self._panel(("kv_scales",), lambda: KVScalesPanel(state=self))

    def layer_diff(self, candidate: Any = None, *, reference: Any = "hf") -> Panel:
        """Compare two models tap by tap.

        Args:
            candidate, reference: "hf" for Hugging Face, a :class:`workbench.recipe.Recipe`, the folder of a checkpoint
                or an engine, or None for the bench's recipe as it is when Compare is pressed.
        """
        from workbench.ui.compare_panel import ComparePanel

        return self._panel(("layer_diff", candidate, reference), lambda: ComparePanel(self, candidate, reference))

    def playground(self, *speakers: Any) -> Panel:
        """Let models answer a prompt side by side.

        Args:
            speakers: two or three of what :meth:`layer_diff` takes; none given: Hugging Face and the bench's recipe.
        """
        from workbench.ui.playground_panel import PlaygroundPanel

        return self._panel(("playground", *speakers), lambda: PlaygroundPanel(self, speakers))

    def choices(self) -> Panel:
        """The recipe itself: every choice, its YAML, its command line, undo and redo."""
        from workbench.ui.recipe_panel import RecipePanel

        return self._panel(("choices",), lambda: RecipePanel(state=self))

    def _repr_mimebundle_(self, **arguments: Any) -> Any:
        """A bench that a cell ends with shows its model's facts and its recipe."""
        bundle = self.choices()._repr_mimebundle_(**arguments)
        data = bundle[0] if isinstance(bundle, tuple) else bundle
        if data is not None:
            data["text/plain"] = repr(self)
        return bundle

    def _panel(self, key: tuple[Any, ...], make: Callable[[], Panel]) -> Panel:
        if key not in self._panels or self._panels[key].comm is None:  # closed, it shows nothing any more
            self._panels[key] = make()
        return self._panels[key]


def open_bench(
    model: str | Path | None = None,
    recipe: Recipe | None = None,
    *,
    cache_dir: str | Path | None = None,
    device: str | None = None,
) -> NotebookBench:
    """Open a model on the bench.

    Args:
        model: the folder of a Hugging Face checkpoint, or the name of a downloaded one; None for the embedded model,
            which is written into the cache when it is first asked for.
        recipe: to begin with; None takes SmoothQuant with the defaults.
        cache_dir: where calibrations and checkpoints are kept; None: ``$WORKBENCH_CACHE``, or the user's cache folder.
        device: "cpu", "cuda", "cuda:N"; None takes a GPU where there is one.

    Raises:
        CheckpointError: there is no such model, or it cannot be read.
    """
    return NotebookBench(find_model(model, cache_dir), recipe, cache_dir=cache_dir, device=device)
