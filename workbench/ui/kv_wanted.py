"""What the KV panel asks for: one layer at one choice of scales, then the rest. Shows nothing."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from workbench.bench.kv_book import KVBook
from workbench.bench.kv_outliers import compute_remedies
from workbench.evaluation.kv_table import has_kv_histograms, kv_layers
from workbench.progress import ProgressEvent, Reporter
from workbench.quantization.kv_error import DEFAULT_PERCENTILES
from workbench.recipe import Int8KVCache, SmoothQuant
from workbench.ui.kv_charts import GRANULARITIES, LayerPicture


@dataclass(frozen=True)
class Wanted:
    """All that the shown errors depend on.

    Attributes:
        book: computes them.
        how: the choice.
        smoothing: the recipe's.
        layer: the shown one.
    """

    book: KVBook
    how: Int8KVCache
    smoothing: SmoothQuant | None
    layer: int

    def picture(self) -> LayerPicture:
        """The layer at the choice, and whatever else is known of it.

        Raises:
            CheckpointError: the ranges do not give this percentile.
        """
        now = {self.how.granularity: self.book.error(self.layer, self.how, self.smoothing)}
        stored = self.book.ranges(self.layer, self.smoothing)
        return self.with_known(LayerPicture(self.layer, self.how, stored, now))

    def with_known(self, picture: LayerPicture) -> LayerPicture:
        """The picture with what was computed since."""
        now, curves = dict(picture.now), dict(picture.curves)
        for name in GRANULARITIES:
            error = self.book.known_error(self.layer, Int8KVCache(name, self.how.percentile), self.smoothing)
            curve = self.book.known_curve(self.layer, name, self.smoothing)
            if error is not None:
                now[name] = error
            if curve is not None:
                curves[name] = curve
        return dataclasses.replace(picture, now=now, curves=curves)

    def compute_rest(self, report: Reporter) -> None:
        """The layer with the other granularity and at every percentile, then all others, and what mends the worst.

        Raises:
            Cancelled: the reporter stopped it; what was computed is kept.
        """
        book, ranges = self.book, self.book.study.ranges
        names = sorted(GRANULARITIES, key=lambda name: name != self.how.granularity)
        layers = kv_layers(ranges)
        percentiles = DEFAULT_PERCENTILES if has_kv_histograms(ranges) else (100.0,)
        for name in names:
            book.error(self.layer, Int8KVCache(name, self.how.percentile), self.smoothing)
            book.curve(self.layer, name, self.smoothing, percentiles, report)
        for done, layer in enumerate(layers):
            for name in names:
                report(ProgressEvent("layers", done, len(layers), "layers"))
                book.error(layer, Int8KVCache(name, self.how.percentile), self.smoothing)
        compute_remedies(book, self.how, self.smoothing, report)
