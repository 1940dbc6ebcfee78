"""What is known of the cost of an INT8 KV cache, layer by layer, kept so that nothing is computed twice.

A layer's error depends on the scales' granularity and percentile, and on the alpha that smooths its o projection, as
that divides the values. Knows no widgets, and changes no recipe.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from torch import Tensor

from workbench.evaluation.kv_table import PARTS, Values, kv_layers, kv_maxima
from workbench.progress import ProgressEvent, Reporter, silent
from workbench.quantization.alpha_search import AlphaSearch
from workbench.quantization.kv_error import DEFAULT_PERCENTILES, KVCurve, KVError, KVStudy
from workbench.quantization.ranges import ActivationRanges
from workbench.recipe import KV_SCALES, Int8KVCache, SmoothQuant

# layer, granularity, alpha of the layer's o group (None: its values are not divided)
_Conditions = tuple[int, str, float | None]
# layer, alpha of its o group, weight and activation granularity
_OutputConditions = tuple[int, float | None, str, str]


class KVBook:
    """Errors of one study. Several threads may ask at once.

    Args:
        study: computes what is not known yet.
        search: knows what smoothing divides values by; without one they are judged as they are.
    """

    def __init__(self, study: KVStudy, search: AlphaSearch | None = None) -> None:
        self.study, self.search = study, search
        self._lock = threading.Lock()
        self._errors: dict[_Conditions, dict[float, KVError]] = {}
        self._divisors: dict[tuple[int, float], Tensor | None] = {}
        self._smoothed: dict[tuple[int, float], Values] = {}
        self._output_errors: dict[_OutputConditions, float] = {}

    def error(self, layer: int, how: Int8KVCache, smoothing: SmoothQuant | None) -> KVError:
        """One layer's error, as the recipe's smoothing leaves its values.

        Raises:
            RecipeError, CheckpointError: as :meth:`KVStudy.error`.
        """
        known = self.known_error(layer, how, smoothing)
        if known is None:
            known = self.study.error(layer, how, self._divisor(layer, smoothing))
            with self._lock:
                self._errors.setdefault(self._conditions(layer, how, smoothing), {})[how.percentile] = known
        return known

    def curve(
        self,
        layer: int,
        granularity: str,
        smoothing: SmoothQuant | None,
        percentiles: Sequence[float] = DEFAULT_PERCENTILES,
        report: Reporter = silent,
    ) -> KVCurve:
        """One layer at these percentiles, and at all others that it was asked for before.

        Raises:
            RecipeError, CheckpointError: as :meth:`KVStudy.error`.
            Cancelled: the reporter stopped it.
        """
        for done, percentile in enumerate(percentiles):
            report(ProgressEvent("percentiles", done, len(percentiles), "percentiles"))
            self.error(layer, Int8KVCache(granularity, percentile), smoothing)
        known = self.known_curve(layer, granularity, smoothing)
        assert known is not None  # it was filled just now
        return known

    def ranges(self, layer: int, smoothing: SmoothQuant | None) -> ActivationRanges:
        """Ranges that hold the layer's keys and values as they are stored.

        Raises:
            CheckpointError: as :meth:`KVStudy.ranges_of`.
        """
        return self.study.ranges_of(layer, self._divisor(layer, smoothing))

    def output_error(self, layer: int, smoothing: SmoothQuant) -> float | None:
        """Relative L2 of what the layer's o, smoothed and quantized so, makes of its input; None without a search.

        Raises:
            RecipeError, CheckpointError: as :meth:`AlphaSearch.error`.
        """
        if self.search is None:
            return None
        known = self.known_output_error(layer, smoothing)
        if known is None:
            known = self.search.error(layer, "o", smoothing).error
            self._output_errors[_output_conditions(layer, smoothing)] = known
        return known

    # ---- what is known without computing

    def known_error(self, layer: int, how: Int8KVCache, smoothing: SmoothQuant | None) -> KVError | None:
        """The error, where it was computed."""
        with self._lock:
            return self._errors.get(self._conditions(layer, how, smoothing), {}).get(how.percentile)

    def known_output_error(self, layer: int, smoothing: SmoothQuant) -> float | None:
        """As :meth:`output_error`, where it was computed."""
        return self._output_errors.get(_output_conditions(layer, smoothing))

    def known_curve(self, layer: int, granularity: str, smoothing: SmoothQuant | None) -> KVCurve | None:
        """The layer at every percentile that was asked for; None before any."""
        with self._lock:
            found = dict(self._errors.get(self._conditions(layer, Int8KVCache(granularity), smoothing), {}))
        tried = tuple(sorted(found))
        return KVCurve(layer, granularity, tried, tuple(found[each] for each in tried)) if tried else None

    def divides(self, layer: int, smoothing: SmoothQuant | None) -> bool:
        """Whether the layer's values are judged as smoothing divides them."""
        return self._alpha(layer, smoothing) is not None

    def smoothed_values(self, layer: int, smoothing: SmoothQuant | None) -> Values | None:
        """``[kv_heads]`` float64: the largest magnitude of each head's values as smoothing of o leaves them.

        None where it leaves them alone, or no error of the layer was asked for with it.
        """
        alpha = self._alpha(layer, smoothing)
        if alpha is None or self._divisors.get((layer, alpha)) is None:
            return None
        if (layer, alpha) not in self._smoothed:
            self._smoothed[layer, alpha] = self.ranges(layer, smoothing).values[layer].double().cpu().numpy()
        return self._smoothed[layer, alpha]

    # ---- what smoothing does

    def _alpha(self, layer: int, smoothing: SmoothQuant | None) -> float | None:
        return None if smoothing is None or self.search is None else smoothing.alpha_of(layer, "o")

    def _conditions(self, layer: int, how: Int8KVCache, smoothing: SmoothQuant | None) -> _Conditions:
        return layer, how.granularity, self._alpha(layer, smoothing)

    def _divisor(self, layer: int, smoothing: SmoothQuant | None) -> Tensor | None:
        alpha = self._alpha(layer, smoothing)
        if alpha is None or smoothing is None or self.search is None:
            return None
        if (layer, alpha) not in self._divisors:
            self._divisors[layer, alpha] = self.search.scale(layer, "o", smoothing)
        return self._divisors[layer, alpha]


def _output_conditions(layer: int, smoothing: SmoothQuant) -> _OutputConditions:
    return layer, smoothing.alpha_of(layer, "o"), smoothing.weight, smoothing.activation


def kv_frame(
    ranges: ActivationRanges, how: Int8KVCache, smoothing: SmoothQuant | None, book: KVBook | None = None
) -> pd.DataFrame:
    """Every layer of a model.

    Args:
        ranges: what calibration saw.
        how: the percentile that both granularities are given, and the granularity whose clipping is told.
        smoothing: the recipe's; None where nothing is smoothed.
        book: what is known of errors.

    Returns:
        One row per layer: ``layer``; ``key_absmax``, ``value_absmax`` (as calibrated, largest of the heads);
        ``value_smoothed`` (what smoothing of o makes of the largest value);
        ``error_per_head``, ``error_per_tensor`` (relative L2 of attention's output); ``key_clipped``,
        ``value_clipped`` (shares of the magnitudes, 0 to 1, of ``how``). NaN where nothing is known.
    """
    layers = kv_layers(ranges)

    def column(granularity: str, of: Callable[[KVError], float]) -> list[float]:
        choice = Int8KVCache(granularity, how.percentile)
        known = [book.known_error(layer, choice, smoothing) if book is not None else None for layer in layers]
        return [np.nan if error is None else of(error) for error in known]

    smoothed = [book.smoothed_values(layer, smoothing) if book is not None else None for layer in layers]
    return pd.DataFrame(
        {
            "layer": layers,
            **{f"{part}_absmax": kv_maxima(ranges, part).max(0) for part in PARTS},
            "value_smoothed": [np.nan if values is None else values.max() for values in smoothed],
            **{f"error_{each}": column(each, lambda error: error.relative_l2) for each in sorted(KV_SCALES)},
            "key_clipped": column(how.granularity, lambda error: error.key_clipped),
            "value_clipped": column(how.granularity, lambda error: error.value_clipped),
        }
    )
