"""What the panels of one bench share: the recipe with its history, what is selected, what calibration saw.

Every panel reads and writes these traits, and none knows of another. Holds data and changes it; opens no folders and
starts no work.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import traitlets

from workbench.bench.job import JobQueue
from workbench.errors import RecipeError
from workbench.quantization.alpha_search import AlphaSearch
from workbench.quantization.kv_error import KVStudy
from workbench.quantization.ranges import ActivationRanges
from workbench.quantization.row_sample import RowSample
from workbench.recipe import SMOOTHING_GROUPS, Int8KVCache, Recipe, SmoothQuant

# Changes of one kind that follow each other within this time are one step to undo: a slider on its way.
ONE_STEP_SECONDS = 1.0
UNDO_STEPS = 200


@dataclass(frozen=True, eq=False, repr=False)
class Calibration:
    """What one calibration left.

    Attributes:
        name: what it is called in menus.
        ranges: absolute maxima and histograms.
        rows: held-out input rows for tuning; None where none were kept.
        folder: where it lies; None for ranges at hand.
    """

    name: str
    ranges: ActivationRanges
    rows: RowSample | None = None
    folder: Path | None = None

    def __repr__(self) -> str:
        kept = "held-out rows" if self.rows is not None else "no held-out rows"
        return f"Calibration({self.name}, {kept}, {self.folder or 'in memory'})"


class _RecipeTrait(traitlets.Instance[Recipe]):
    """A recipe that nothing replaces while :meth:`BenchState.change` or another assignment is at it."""

    def set(self, obj: Any, value: Any) -> None:
        with obj._changing:
            super().set(obj, value)


class BenchState(traitlets.HasTraits):
    """The state that panels share.

    A lock guards a group from tuning, resets, its slider and the alpha of all groups. It is no part of the recipe and
    no step of its history: undo and redo take the recipe as a whole, a locked group's alpha too, and leave locks alone.

    Attributes:
        recipe: every choice; assigning it moves the panels, and can be undone.
        selected: the tap or linear layer under the eyes, such as ``layers.12.mlp.down``; empty for none.
        locked: smoothing groups (``layers.12.down``) that keep their alpha.
        calibration: what calibration saw; None before.
        search: error of a smoothing group by alpha; None while there are no held-out rows.
        kv_study: error of attention by the KV cache's scales; None before it was made.
        undo_steps, redo_steps: how many changes of the recipe can be taken back, and brought back.
        jobs: the queue of this state's long work.
    """

    recipe = _RecipeTrait(Recipe)
    selected = traitlets.Unicode("")
    locked = traitlets.Instance(frozenset, ())
    calibration = traitlets.Instance(Calibration, allow_none=True)
    search = traitlets.Instance(AlphaSearch, allow_none=True)
    kv_study = traitlets.Instance(KVStudy, allow_none=True)
    undo_steps = traitlets.Int(0)
    redo_steps = traitlets.Int(0)

    def __init__(self, recipe: Recipe | None = None, **traits: Any) -> None:
        self._changing = threading.RLock()
        self._past: list[Recipe] = []
        self._future: list[Recipe] = []
        self._last_change: tuple[str, float] = ("", 0.0)
        self._step, self._within_s = "", ONE_STEP_SECONDS
        self._recorded = False
        self.jobs = JobQueue()
        super().__init__(recipe=recipe or Recipe(), **traits)
        self._recorded = True

    # ---- the recipe

    def change(self, edit: Callable[[Recipe], Recipe], step: str = "", *, within_s: float = ONE_STEP_SECONDS) -> Recipe:
        """Change the recipe as one act, whatever other threads do; ``step`` names it.

        Changes with the same name that follow each other within ``within_s``, and nothing else between them, are one
        step to undo.

        Raises:
            RecipeError: the recipe would be illegal; it stays as it was.
        """
        with self._changing:
            changed = edit(self.recipe)
            if changed != self.recipe:
                self._step, self._within_s = step, within_s
                try:
                    self.recipe = changed
                finally:
                    self._step = ""
            return self.recipe

    def undo(self) -> None:
        """Take the last change of the recipe back; nothing happens when there is none."""
        self._travel(self._past, self._future)

    def redo(self) -> None:
        """Bring the change back that was undone last; nothing happens when there is none."""
        self._travel(self._future, self._past)

    # ---- smoothing

    @property
    def smoothing(self) -> SmoothQuant | None:
        """The recipe's SmoothQuant; None where weights are quantized in another way or not at all."""
        weights = self.recipe.weights
        return weights if isinstance(weights, SmoothQuant) else None

    def set_alpha(self, alpha: float, group: str = "") -> None:
        """Set one group's migration strength (``layers.12.down``), or that of all groups without one of their own.

        A recipe of another kind becomes SmoothQuant. The alpha of all groups leaves locked ones where they are.

        Raises:
            RecipeError: an alpha outside 0 to 1, no such group, or the group is locked.
        """

        def edit(recipe: Recipe) -> Recipe:
            how = recipe.weights if isinstance(recipe.weights, SmoothQuant) else SmoothQuant()
            if group:
                if group in self.locked:
                    raise RecipeError(f"{group} is locked", fix=f"unlock it first: unlock({group!r})")
                return replace(recipe, weights=with_alphas(how, {group: alpha}))
            following = self.locked - set(how.alpha_by_group) if how is recipe.weights else ()
            own = {name: how.alpha_of(*split_group(name)) for name in following}
            pinned = {name: now for name, now in own.items() if now is not None}
            how = with_alphas(how, pinned) if pinned else how
            return replace(recipe, weights=replace(how, alpha=alpha))

        self.change(edit, f"alpha {group}")

    def set_alphas(
        self, alphas: Mapping[str, float], step: str = "tune", *, within_s: float = ONE_STEP_SECONDS
    ) -> None:
        """Set several groups at once; locked ones keep theirs. ``step`` and ``within_s`` as in :meth:`change`.

        A recipe of another kind becomes SmoothQuant, unless there is nothing to set.

        Raises:
            RecipeError: an alpha outside 0 to 1, or no such group.
        """

        def edit(recipe: Recipe) -> Recipe:
            free = {group: alpha for group, alpha in alphas.items() if group not in self.locked}
            how = recipe.weights if isinstance(recipe.weights, SmoothQuant) else SmoothQuant()
            return replace(recipe, weights=with_alphas(how, free)) if free else recipe

        self.change(edit, step, within_s=within_s)

    def reset_alphas(self, groups: Iterable[str] | None = None) -> None:
        """Let groups follow the global alpha again; None: all. Locked ones keep theirs."""
        named = None if groups is None else set(groups)

        def edit(recipe: Recipe) -> Recipe:
            how = recipe.weights
            if not isinstance(how, SmoothQuant):
                return recipe
            dropped = (set(how.alpha_by_group) if named is None else named) - self.locked
            kept = {group: alpha for group, alpha in how.alpha_by_group.items() if group not in dropped}
            return replace(recipe, weights=replace(how, alpha_by_group=kept))

        self.change(edit, "reset")

    def lock(self, group: str) -> None:
        """Pin a group at the alpha that it has now.

        Raises:
            RecipeError: there is no such group.
        """
        place = split_group(group)

        def edit(recipe: Recipe) -> Recipe:
            how = recipe.weights
            alpha = how.alpha_of(*place) if isinstance(how, SmoothQuant) else None
            if not isinstance(how, SmoothQuant) or alpha is None:
                return recipe
            return replace(recipe, weights=with_alphas(how, {group: alpha}))

        with self._changing:
            if group not in self.locked:
                self.change(edit, f"lock {group}")
                self.locked = self.locked | {group}

    def unlock(self, group: str) -> None:
        """Let tuning, resets and sliders change a group again."""
        with self._changing:
            self.locked = self.locked - {group}

    def set_kv_cache(self, how: Int8KVCache | None) -> None:
        """Choose how keys and values are stored."""
        self.change(lambda recipe: replace(recipe, kv_cache=how), "kv_cache")

    # ---- traits

    @traitlets.observe("recipe")
    def _recipe_changed(self, change: Any) -> None:
        if not self._recorded or change["old"] == change["new"] or not isinstance(change["old"], Recipe):
            return
        with self._changing:
            now, step = time.monotonic(), self._step
            last, when = self._last_change
            if not (step and step == last and now - when < self._within_s and self._past and not self._future):
                self._past.append(change["old"])
                del self._past[:-UNDO_STEPS]
            self._future.clear()
            self._last_change = (step, now)
            self._count_steps()

    def _travel(self, source: list[Recipe], target: list[Recipe]) -> None:
        with self._changing:
            if not source:
                return
            target.append(self.recipe)
            self._recorded = False
            try:
                self.recipe = source.pop()
            finally:
                self._recorded = True
                self._last_change = ("", 0.0)
                self._count_steps()

    def _count_steps(self) -> None:
        self.undo_steps, self.redo_steps = len(self._past), len(self._future)


def group_name(layer: int, group: str) -> str:
    """``(12, "down") -> "layers.12.down"``, as a recipe names a smoothing group."""
    return f"layers.{layer}.{group}"


def split_group(name: str) -> tuple[int, str]:
    """``"layers.12.down" -> (12, "down")``.

    Raises:
        RecipeError: it names no smoothing group.
    """
    parts = name.split(".")
    if len(parts) != 3 or parts[0] != "layers" or not parts[1].isdigit() or parts[2] not in SMOOTHING_GROUPS:
        raise RecipeError(
            f"smoothing group {name!r}", allowed="layers.N.GROUP, GROUP one of " + ", ".join(SMOOTHING_GROUPS)
        )
    return int(parts[1]), parts[2]


def groups_of(name: str, num_layers: int) -> list[tuple[int, str]]:
    """The smoothing groups that a name means.

    Args:
        name: empty for all; ``layers.12``, ``layers.12.mlp``, ``layers.12.attention``, a linear layer
            (``layers.12.mlp.down``) or a group as in a recipe (``layers.12.down``).
        num_layers: of the model.

    Raises:
        RecipeError: nothing is called so.
    """
    every = [(layer, group) for layer in range(num_layers) for group in SMOOTHING_GROUPS]
    if not name:
        return every
    wanted = name.rstrip(".") + "."
    found = [
        (layer, group)
        for layer, group in every
        if any(f"layers.{layer}.{each}.".startswith(wanted) for each in (group, SMOOTHING_GROUPS[group]))
    ]
    if not found:
        raise RecipeError(
            f"no smoothing group is called {name!r}",
            allowed=f"layers.N with N from 0 to {num_layers - 1}, layers.N.mlp, layers.N.attention, layers.N.GROUP "
            f"with GROUP one of {', '.join(SMOOTHING_GROUPS)}",
        )
    return found


def is_kept(recipe: Recipe, layer: int, group: str) -> bool:
    """Whether a recipe that quantizes keeps a group's linear layer in its dtype, without integers.

    Such a layer is smoothed as every other, so that its alpha still shapes the rows that it reads.
    """
    return recipe.weights is not None and recipe.weights_of(f"layers.{layer}.{SMOOTHING_GROUPS[group]}") is None


def kept_groups(recipe: Recipe, num_layers: int) -> frozenset[str]:
    """The names of all groups for which :func:`is_kept` holds."""
    return frozenset(group_name(*place) for place in groups_of("", num_layers) if is_kept(recipe, *place))


def with_alphas(how: SmoothQuant, alphas: Mapping[str, float]) -> SmoothQuant:
    """``how`` with these groups' own alphas, in the order of the layers; what was not smoothed comes to be.

    Raises:
        RecipeError: an alpha outside 0 to 1, or no such group.
    """
    groups = {split_group(name)[1] for name in alphas} | set(how.groups)
    ordered = tuple(group for group in SMOOTHING_GROUPS if group in groups)
    own = {**how.alpha_by_group, **alphas}
    places = sorted(map(split_group, own), key=lambda place: (place[0], ordered.index(place[1])))
    by_layer = {group_name(*place): own[group_name(*place)] for place in places}
    return dataclasses.replace(how, groups=ordered, alpha_by_group=by_layer)
