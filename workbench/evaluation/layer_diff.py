"""Compare two models tap by tap: where does a difference begin, how does it grow, and does it change the answer?

The reference may be Hugging Face (:mod:`workbench.evaluation.hf_reference`) or any session with taps. Windows are
streamed: neither model's taps are kept, whatever its size. Prints nothing.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from workbench.errors import LimitError, WorkbenchError
from workbench.evaluation.agreement import Agreement, AgreementMeter
from workbench.evaluation.tap_error import DIVERGENCE, TapError, diverges
from workbench.evaluation.tap_stream import HasTaps, TapStream
from workbench.evaluation.token_errors import TokenErrors
from workbench.evaluation.token_texts import token_texts
from workbench.model.taps import LAYER_SITES, split_tap
from workbench.progress import ProgressEvent, Reporter, silent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METRICS: dict[str, str] = {
    "relative_l2": "relative L2 error",
    "cosine": "cosine",
    "snr_db": "signal to noise [dB]",
    "max_abs": "largest absolute error",
}


@dataclass(frozen=True)
class DiffOptions:
    """How two models are compared.

    Attributes:
        precision: of the candidate; it decides how much error is rounding (``DIVERGENCE``). None: its taps' dtype.
        reference_name, candidate_name: what tables and plots call the two.
        rescaled_sites: sites that hold other values by design (smoothing moved scale into or out of them); left out.
        tokenizer: gives the tokens their texts; None leaves them their ids.
    """

    precision: str | None = None
    reference_name: str = "Hugging Face"
    candidate_name: str = "ours"
    rescaled_sites: frozenset[str] = frozenset()
    tokenizer: Any = field(default=None, repr=False)


@dataclass(frozen=True, eq=False)
class LayerDiff:
    """The difference of two models on some windows; true when they pass as the same model.

    Attributes:
        frame: one row per tap in the order of a forward pass: tap, layer (absent for model-wide taps), site,
            relative_l2, cosine, snr_db, max_abs, reference_rms; after :meth:`with_float64` also the reruns' errors.
        summary: what the logits say: KL, top-1 agreement, both perplexities, the gate.
        options: the precision and the names of the two.
        windows, tokens: how many windows and tokens were run.
        per_token: the errors of single tokens, at most a few thousand.
        verdict: one sentence from a float64 rerun; empty without one.
    """

    frame: pd.DataFrame
    summary: Agreement
    options: DiffOptions
    windows: int
    tokens: int
    per_token: TokenErrors = field(default_factory=lambda: TokenErrors(torch.zeros(0, 0, dtype=torch.int64), {}))
    verdict: str = ""
    _samples: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    @classmethod
    def compare(
        cls,
        reference: HasTaps,
        candidate: HasTaps,
        ids: Tensor,
        options: DiffOptions | None = None,
        report: Reporter = silent,
    ) -> LayerDiff:
        """Run both models over windows of tokens ``[windows, length]`` int64.

        Raises:
            LimitError: no window, windows shorter than two tokens, or an unknown precision.
            WorkbenchError: a tap of the candidate has another shape than the reference's, so the models differ in size.
        """
        options = options or DiffOptions()
        if ids.ndim != 2 or ids.shape[0] < 1 or ids.shape[1] < 2:
            raise LimitError(
                f"token ids of shape {list(ids.shape)}", allowed="one window or more of two tokens or more"
            )
        run = _Comparison(len(ids), options.rescaled_sites, report)
        for done, window in enumerate(ids, start=1):
            run.add(reference, candidate, window)
            report(ProgressEvent("compare layers", done, len(ids), "windows"))
        options = dataclasses.replace(options, precision=_known_precision(options.precision or run.precision))
        samples = {name: error.samples() for name, error in run.errors.items()}
        agreement, per_token = run.meter.result(), run.per_token(ids, options.tokenizer)
        return cls(run.frame(), agreement, options, ids.shape[0], ids.numel(), per_token, _samples=samples)

    def __bool__(self) -> bool:
        """Whether the logits pass the gate of "the same model" (:meth:`Agreement.same_model`)."""
        return self.summary.same_model(self.precision)

    @property
    def precision(self) -> str:
        """The candidate's precision: a dtype, or the kind of its quantized weights."""
        return str(self.options.precision)

    @property
    def first_divergence(self) -> str | None:
        """The first tap of a forward pass with a relative L2 error above ``DIVERGENCE[precision]``, or None."""
        return _first_divergence(self.frame, "relative_l2", self.precision)

    @property
    def left_out(self) -> tuple[str, ...]:
        """Sites that are not compared, in the order of a forward pass: smoothing rescales their values by design."""
        return tuple(site for site in LAYER_SITES if site in self.options.rescaled_sites)

    def samples(self, tap: str) -> tuple[Tensor, Tensor]:
        """Values of reference and candidate at the same random positions of one tap, float32, at most 4096 each.

        Raises:
            WorkbenchError: no such tap was compared.
        """
        if tap not in self._samples:
            raise WorkbenchError(f"tap {tap!r} was not compared", fix="choose one of the frame's column 'tap'")
        return self._samples[tap]

    def error_histogram(self, tap: str, bins: int = 60) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """How a tap's errors (candidate minus reference) spread: bin edges ``[bins + 1]`` and counts ``[bins]``.

        Samples that are not finite are left out; both are empty when all are.

        Raises:
            WorkbenchError: no such tap was compared.
        """
        reference, candidate = self.samples(tap)
        error = (candidate.double() - reference.double()).numpy()
        error = error[np.isfinite(error)]
        if not error.size:
            return np.zeros(0), np.zeros(0, dtype=np.int64)
        counts, edges = np.histogram(error, bins)
        return edges, counts

    def grid(self, metric: str = "relative_l2") -> pd.DataFrame:
        """One metric of the layers' taps: a row per site, a column per layer."""
        layers = self.frame.dropna(subset="layer")
        table = layers.pivot(index="site", columns="layer", values=metric)
        return table.reindex(layers["site"].drop_duplicates())

    def with_float64(self, original: LayerDiff, same_weights: LayerDiff | None = None) -> LayerDiff:
        """This difference with the errors of reruns in float64, and what they say about its cause.

        Args:
            original: both sides in float64: what is left is the code and the stored weights.
            same_weights: the same with the candidate's weights on both sides: what is left is the code; None where the
                reference cannot run them (quantized activations or keys and values).
        """
        frame = self.frame.copy()
        for column, rerun in (("float64_same_weights", same_weights), ("float64", original)):
            if rerun is not None:
                frame[column] = frame["tap"].map(rerun.frame.set_index("tap")["relative_l2"])
        return dataclasses.replace(self, frame=frame, verdict=_verdict(frame))

    def plot(self) -> Figure:
        """Error over depth, and the heat map of layers and sites, as one figure."""
        from workbench.evaluation.layer_diff_plot import plot_layer_diff

        return plot_layer_diff(self)

    def save(self, path: str | Path) -> None:
        """Write the frame (``.csv``, ``.parquet``) or the plot (``.png``), as the name's ending says.

        Raises:
            WorkbenchError: another ending, or a folder that does not exist.
        """
        path = Path(path)
        if not path.parent.is_dir():
            raise WorkbenchError(f"folder {path.parent} does not exist", fix="create it, or give another path")
        match path.suffix:
            case ".csv":
                self.frame.to_csv(path, index=False)
            case ".parquet":
                self.frame.to_parquet(path, index=False)
            case ".png":
                self.plot().savefig(path, dpi=144)
            case _:
                raise WorkbenchError(
                    f"{path.name!r} has the ending {path.suffix!r}", allowed=".csv, .parquet, .png", fix="rename it"
                )

    def __repr__(self) -> str:
        state = "same model" if self else "not the same model"
        return (
            f"LayerDiff({self.options.candidate_name} against {self.options.reference_name}: {state}, "
            f"{len(self.frame)} taps, {self.tokens} tokens, first divergence {self.first_divergence})"
        )


class _Comparison:
    """The sums of one comparison under way."""

    def __init__(self, windows: int, left_out: frozenset[str], report: Reporter) -> None:
        self.windows, self.left_out, self.report = windows, left_out, report
        self.errors: dict[str, TapError] = {}
        self.meter = AgreementMeter()
        self.precision = ""

    def add(self, reference: HasTaps, candidate: HasTaps, window: Tensor) -> None:
        """One window ``[length]`` through both models."""
        met, known = 0, len(self.errors)
        with TapStream(reference, window[None]) as stream:

            def on_tap(name: str, ours: Tensor) -> None:
                nonlocal met
                met += 1
                # A window of a large model takes long: a stop must not wait for its end.
                self.report(ProgressEvent("compare taps", min(met, known) if known else met, known, "taps", depth=1))
                theirs = stream.take(name)
                if theirs is None or split_tap(name)[1] in self.left_out:
                    return
                self._compare(name, theirs, ours)
                if name == "logits":
                    self.meter.add(theirs[0], ours[0], window)

            candidate.logits(window[None], on_tap)

    def _compare(self, name: str, reference: Tensor, candidate: Tensor) -> None:
        # The logits leave every model in float32: the activations say what it computes in.
        self.precision = self.precision or str(candidate.dtype).removeprefix("torch.")
        if reference.shape != candidate.shape:
            raise WorkbenchError(
                f"tap {name} has the shape {list(candidate.shape)}, but the reference's has {list(reference.shape)}",
                fix="compare two forms of the same model",
            )
        if name not in self.errors:
            self.errors[name] = TapError(name, self.windows)
        self.errors[name].add(reference, candidate)

    def per_token(self, ids: Tensor, tokenizer: Any) -> TokenErrors:
        errors = {name: error.tokens() for name, error in self.errors.items()}
        kept = ids[: min((len(each) for each in errors.values()), default=0)].cpu()
        texts = () if tokenizer is None else tuple(tuple(token_texts(tokenizer, row)) for row in kept.tolist())
        return TokenErrors(kept, errors, texts)

    def frame(self) -> pd.DataFrame:
        rows = []
        for name, error in self.errors.items():
            layer, site = split_tap(name)
            rows.append({"tap": name, "layer": layer, "site": site, **dataclasses.asdict(error.row())})
        return pd.DataFrame(rows).astype({"layer": "Int64"})


def _known_precision(precision: str) -> str:
    if precision not in DIVERGENCE:
        raise LimitError(f"precision {precision!r}", allowed=", ".join(DIVERGENCE), fix="name one of them")
    return precision


def _first_divergence(frame: pd.DataFrame, column: str, precision: str) -> str | None:
    for tap, error in zip(frame["tap"], frame[column], strict=True):
        if diverges(float(error), precision):
            return str(tap)
    return None


def _verdict(frame: pd.DataFrame) -> str:
    weights = _first_divergence(frame, "float64", "float64")
    agree = "In float64 the models agree: every difference is rounding."
    if "float64_same_weights" not in frame:
        differ = (
            f"In float64 the models differ from {weights} on, so rounding is not the cause: their weights differ, or "
            "what they quantize on the way. A fault in the code is not told apart: only Hugging Face running the same "
            "weights could, and it runs no quantized activations, keys or values."
        )
        return agree if weights is None else differ
    code = _first_divergence(frame, "float64_same_weights", "float64")
    if code is not None:
        return f"With the same weights in float64 the models still differ, first at {code}: the code differs there."
    if weights is not None:
        return (
            f"With the same weights in float64 the models agree, so the code is right; with the original weights they "
            f"differ from {weights} on: that is what storing or quantizing the weights costs."
        )
    return agree
