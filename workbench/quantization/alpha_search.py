"""What each alpha costs each smoothing group: live enough for a slider, and a search for the best alpha of each.

The error is that of a group's linear layer alone: relative L2 distance between the outputs of the layer quantized as a
conversion would store it and of the dense one, with the same input rows. It is measured in the units of the model
before smoothing (v's rows count the same whatever o's alpha divides them by) and in float32, so that it holds nothing
but the integers' cost.

Two things that it is not. First, an error on the text that the ranges came from: there the ranges fit by construction,
and the best alpha for it clips other text. Rows must be held out, as ``workbench calibrate`` keeps them from windows of
their own. Second, the loss of the model: errors of different layers are not worth the same, and some cancel. Tune with
it, then judge recipes by the KL of the whole model (:mod:`workbench.evaluation.tradeoff`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from workbench.backends.torch_ops import TorchOps
from workbench.checkpoint import hf_names
from workbench.checkpoint.huggingface import HFCheckpoint
from workbench.errors import CheckpointError, RecipeError, nearest
from workbench.model.weights import DenseWeight, on_device
from workbench.progress import ProgressEvent, Reporter, silent
from workbench.quantization.byte_cache import ByteCache
from workbench.quantization.layer_conversion import projection_rows
from workbench.quantization.layer_walk import check_device
from workbench.quantization.observed import input_absmax
from workbench.quantization.quantize import require_finite
from workbench.quantization.ranges import ActivationRanges
from workbench.quantization.row_sample import RowSample
from workbench.quantization.smoothing_trial import GroupError, SmoothingGroup, SmoothingTrial
from workbench.recipe import SMOOTHING_GROUPS, SmoothQuant

__all__ = ["AlphaCurve", "AlphaSearch", "AlphaSearchOptions", "GroupError", "tuned"]

DEFAULT_ALPHAS = tuple(step / 20 for step in range(21))
# A search looks at these first, and then beside the best of them.
COARSE_STEP, FINE_STEP = 0.1, 0.05
# Smoothing the first of each pair divides the last rows of the second: v's and up's.
READERS = {"qkv": "o", "gate_up": "down"}
# Those whose scales change another group's rows come first.
ORDER = ("o", "down", "qkv", "gate_up")

Group = tuple[int, str]


@dataclass(frozen=True)
class AlphaSearchOptions:
    """How a search computes.

    Attributes:
        device: "cpu" or a CUDA device.
        rows: input rows to multiply with, at even distances among those that were kept.
        cache_bytes: memory for layers that were read; the one at hand is held even if it alone is larger. Two float32
            copies of one group's weight come on top.
    """

    device: str = "cpu"
    rows: int = 256
    cache_bytes: int = 2 << 30

    def __post_init__(self) -> None:
        for name in ("rows", "cache_bytes"):
            if getattr(self, name) < 1:
                raise RecipeError(f"alpha search {name} is {getattr(self, name)}", allowed="whole numbers from 1")


@dataclass(frozen=True)
class AlphaCurve:
    """Errors of one smoothing group over alpha.

    Attributes:
        layer, group: which one.
        alphas: ascending.
        errors: of :attr:`GroupError.error`, one for each.
    """

    layer: int
    group: str
    alphas: tuple[float, ...]
    errors: tuple[float, ...]

    @property
    def best(self) -> tuple[float, float]:
        """The alpha of the least error, and that error."""
        error, alpha = min(zip(self.errors, self.alphas, strict=True))
        return alpha, error

    @property
    def name(self) -> str:
        """As :attr:`SmoothQuant.alpha_by_group` names the group."""
        return f"layers.{self.layer}.{self.group}"


def tuned(how: SmoothQuant, curves: Iterable[AlphaCurve]) -> SmoothQuant:
    """``how`` with the best alpha of every curve as that group's own."""
    found = {curve.name: curve.best[0] for curve in curves}
    return replace(how, alpha_by_group={**how.alpha_by_group, **found})


class AlphaSearch:
    """Errors of smoothing groups at any alpha. Several threads may ask at once.

    A layer is read when it is first asked for, in the dtype that it is stored in.

    Args:
        source: the model.
        ranges: of this very model, not smoothed.
        rows: inputs of its linear layers, from other text than the ranges.
        options: device and limits.

    Raises:
        CheckpointError: the ranges or the rows are of another model.
        BackendError: no such device.
    """

    def __init__(
        self,
        source: HFCheckpoint,
        ranges: ActivationRanges,
        rows: RowSample,
        options: AlphaSearchOptions | None = None,
    ) -> None:
        self.options = options or AlphaSearchOptions()
        check_device(self.options.device)
        fingerprint = source.fingerprint()
        ranges.require_model(fingerprint)
        rows.require_model(fingerprint)
        self.source, self.config, self.ranges, self.rows = source, source.config, ranges, rows
        self.device = torch.device(self.options.device)
        self.dtype = _stored_dtype(source)
        self._layers = ByteCache(self.options.cache_bytes, self._read, _nbytes)
        self._last: tuple[tuple[int, str, float | None], SmoothingTrial] | None = None

    @property
    def held_layers(self) -> tuple[int, ...]:
        """The layers in memory, the one that was asked for longest ago first."""
        return self._layers.keys

    def error(self, layer: int, group: str, how: SmoothQuant) -> GroupError:
        """One group as ``how`` smooths and quantizes it.

        Raises:
            RecipeError: the model has no such layer or group.
            CheckpointError: the ranges or rows lack the layer, or its weights are NaN or infinite.
        """
        return self._trial(layer, group, how).at(how.alpha_of(layer, group), how)

    def curve(
        self,
        layer: int,
        group: str,
        how: SmoothQuant,
        alphas: Sequence[float] = DEFAULT_ALPHAS,
        report: Reporter = silent,
    ) -> AlphaCurve:
        """One group at every alpha, whatever ``how`` says of it; the other groups are as ``how`` says.

        Raises:
            RecipeError: as :meth:`error`, or an alpha is not in 0 to 1.
            CheckpointError: as :meth:`error`.
        """
        if not alphas or not all(0.0 <= alpha <= 1.0 for alpha in alphas):
            raise RecipeError(f"alphas are {list(alphas)}", allowed="one or more numbers from 0 to 1")
        trial, errors, tried = self._trial(layer, group, how), {}, sorted(set(alphas))
        for done, alpha in enumerate(tried):
            report(ProgressEvent("alpha curve", done, len(tried), "alphas"))
            errors[alpha] = trial.at(alpha, how).error
        report(ProgressEvent("alpha curve", len(tried), len(tried), "alphas"))
        return _curve(layer, group, errors)

    def tune(
        self,
        how: SmoothQuant,
        groups: Collection[Group] | None = None,
        locked: Collection[Group] = (),
        report: Reporter = silent,
    ) -> Iterator[AlphaCurve]:
        """Search the best alpha of each group; the curves come one by one, with the alphas that were tried.

        Within a layer o and down come first, and the others are tuned with what was found for them.

        Args:
            how: groups, granularities, and the alphas of what is not tuned; :func:`tuned` makes the result of it.
            groups: which, by layer and name; None for all that ``how`` smooths.
            locked: left as ``how`` has them.
            report: told the groups that are done; may stop the search.

        Raises:
            RecipeError: the model has no such group, or ``how`` does not smooth it.
            CheckpointError: as :meth:`error`.
        """
        if groups is None:
            groups = [(layer, group) for layer in range(self.config.num_layers) for group in how.groups]
        for layer, group in groups:
            self._check(layer, group)
            if group not in how.groups:
                raise RecipeError(
                    f"layers.{layer}.{group} cannot be tuned: it is not smoothed",
                    allowed=", ".join(how.groups) or "none, as weights.groups is empty",
                    fix=f"add {group} to weights.groups",
                )
        chosen = sorted(set(groups) - set(locked), key=lambda each: (each[0], ORDER.index(each[1])))
        return self._tune(how, chosen, report)

    def scale(self, layer: int, group: str, how: SmoothQuant) -> Tensor | None:
        """What smoothing divides the group's input by, as :attr:`SmoothedLayer.scales`; None where it is not smoothed.

        Raises:
            RecipeError, CheckpointError: as :meth:`error`.
        """
        alpha = how.alpha_of(layer, group)
        return None if alpha is None else self._trial(layer, group, how).scale(alpha).scale.cpu()

    def _tune(self, how: SmoothQuant, chosen: Sequence[Group], report: Reporter) -> Iterator[AlphaCurve]:
        for done, (layer, group) in enumerate(chosen):
            report(ProgressEvent("tune alpha", done, len(chosen), "groups"))
            curve = self._searched(layer, group, how)
            how = tuned(how, [curve])
            yield curve
        report(ProgressEvent("tune alpha", len(chosen), len(chosen), "groups"))

    def _searched(self, layer: int, group: str, how: SmoothQuant) -> AlphaCurve:
        """Coarse over all of 0 to 1, then both neighbours of the best."""
        trial = self._trial(layer, group, how)
        steps = round(1 / COARSE_STEP)
        errors = {alpha: trial.at(alpha, how).error for alpha in (step / steps for step in range(steps + 1))}
        best = _curve(layer, group, errors).best[0]
        for alpha in (round(best - FINE_STEP, 4), round(best + FINE_STEP, 4)):
            if 0.0 <= alpha <= 1.0:
                errors[alpha] = trial.at(alpha, how).error
        return _curve(layer, group, errors)

    def _trial(self, layer: int, group: str, how: SmoothQuant) -> SmoothingTrial:
        """The trial of a group; the last one is kept, as a slider asks for one group again and again."""
        self._check(layer, group)
        reader = READERS.get(group)
        divided_by = None if reader is None else how.alpha_of(layer, reader)
        key = layer, group, divided_by
        held = self._last
        if held is not None and held[0] == key:
            return held[1]
        groups, divisor = self._layers(layer), None
        if reader is not None and divided_by is not None:
            divisor = SmoothingTrial(groups[reader], self.config).scale(divided_by).scale
        trial = SmoothingTrial(groups[group], self.config, divisor)
        self._last = key, trial
        return trial

    def _check(self, layer: int, group: str) -> None:
        if group not in SMOOTHING_GROUPS:
            raise RecipeError(
                f"there is no smoothing group {group!r}",
                allowed=", ".join(SMOOTHING_GROUPS),
                fix=nearest(group, SMOOTHING_GROUPS) or None,
            )
        if not 0 <= layer < self.config.num_layers:
            raise RecipeError(f"the model has no layer {layer}", allowed=f"0 to {self.config.num_layers - 1}")

    @torch.inference_mode()
    def _read(self, layer: int) -> dict[str, SmoothingGroup]:
        weights = self.source.layers(self.dtype)[layer]
        return {group: self._group(layer, group, getattr(weights, group)) for group in SMOOTHING_GROUPS}

    def _group(self, layer: int, group: str, weight: DenseWeight) -> SmoothingGroup:
        site = SMOOTHING_GROUPS[group]
        linear = f"layers.{layer}.{site}"
        require_finite(weight.weight, linear)
        held: DenseWeight = on_device(weight, self.device)
        kept = self.rows(linear)
        if kept.shape[1] != held.weight.shape[1]:
            raise CheckpointError(
                f"the rows of {linear} have {kept.shape[1]} channels", allowed=str(held.weight.shape[1])
            )
        count = min(self.options.rows, len(kept))
        rows = kept[torch.arange(count) * len(kept) // count].to(self.device, torch.float32)
        return SmoothingGroup(
            layer=layer,
            group=group,
            linear=linear,
            weight=held,
            projections=projection_rows(self.config, site),
            input_absmax=input_absmax(self.ranges, linear, held.weight.shape[1]).to(self.device),
            rows=rows,
            exact=TorchOps(torch.float32).linear(rows, held, linear),
        )


def _nbytes(groups: dict[str, SmoothingGroup]) -> int:
    return sum(group.nbytes for group in groups.values())


def _curve(layer: int, group: str, errors: dict[float, float]) -> AlphaCurve:
    alphas = tuple(sorted(errors))
    return AlphaCurve(layer, group, alphas, tuple(errors[alpha] for alpha in alphas))


def _stored_dtype(source: HFCheckpoint) -> torch.dtype:
    """The half type that all weights are stored in, as it holds them exactly in half the memory; else float32."""
    dtypes = {source.spec(name).dtype for name in hf_names.tensor_shapes(source.config)}
    half = dtypes <= {torch.float16} or dtypes <= {torch.bfloat16}
    return dtypes.pop() if half else torch.float32
