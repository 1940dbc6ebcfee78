"""What each recipe costs: perplexity, KL and first choice of many recipes on the same windows, with paired intervals.

Every candidate is converted and run as a user would run it. The reference is the model in float32, run from its own
files; its logits are kept in a file, so that they are computed once and memory does not grow with the windows.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from workbench.checkpoint import hf_names
from workbench.checkpoint.huggingface import HFCheckpoint
from workbench.checkpoint.unified import Checkpoint
from workbench.evaluation.perplexity import next_token_nll
from workbench.progress import ProgressEvent, Reporter, silent
from workbench.quantization.convert import convert
from workbench.quantization.ranges import ActivationRanges
from workbench.recipe import BuildLimits, Recipe
from workbench.runtime.session import SessionOptions, TorchSession

RESAMPLES = 4000
# A conversion tells of itself often; at the top level the judge says that one is under way only as often as this.
UPDATE_S = 1.0

Converter = Callable[[Recipe, Reporter], Checkpoint]


@dataclass(frozen=True)
class TradeoffOptions:
    """How candidates are run.

    Attributes:
        device: a torch device; "cpu" runs the fast CPU op set, any other the plain torch op set.
        resamples: of the bootstrap over windows.
        folder: where files are put while recipes are judged: the reference's logits (4 bytes per window, token and word
            of the vocabulary), and a checkpoint at a time; None takes the system's temporary folder.
        convert: gives a recipe's checkpoint, for instance from a cache; None converts each into ``folder``.
    """

    device: str = "cpu"
    resamples: int = RESAMPLES
    folder: Path | None = None
    convert: Converter | None = None

    @property
    def backend(self) -> str:
        return "cpu" if self.device == "cpu" else "torch"


@dataclass(frozen=True)
class WindowScores:
    """One candidate on every window, each tensor float64 ``[windows]``.

    Attributes:
        nll: mean negative log-likelihood per predicted token, nats.
        kl: mean KL(reference || candidate) per position, nats.
        top1: share of positions where both choose the same token.
    """

    nll: Tensor
    kl: Tensor
    top1: Tensor


def compare_recipes(
    model_dir: str | Path,
    recipes: Mapping[str, Recipe],
    windows: Tensor,
    ranges: ActivationRanges | None = None,
    options: TradeoffOptions | None = None,
    report: Reporter = silent,
) -> pd.DataFrame:
    """Judge recipes against the model in float32.

    Args:
        model_dir: the Hugging Face folder.
        recipes: by the name that the result shows.
        windows: ``[count, length]`` int64 token ids that no recipe was tuned on.
        ranges: of the model, for recipes that need them.
        options: how, and where.
        report: told the windows that are done and, one level deeper, what conversions tell.

    Returns:
        One row per recipe, the reference first: ``recipe``, ``perplexity``, its relative ``change`` with
        ``change_low`` and ``change_high``, ``kl`` (nats) and ``top1`` with their ``_low`` and ``_high``: 95 % paired
        bootstrap intervals over windows.

    Raises:
        CheckpointError, RecipeError: a recipe does not fit the model or needs ranges that are not given.
    """
    options = options or TradeoffOptions()
    source = HFCheckpoint.open(model_dir)
    source.check()
    if options.folder is not None:
        options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="judge-", dir=options.folder) as folder:
        out = Path(folder) / "candidate"
        converted: Converter = options.convert or (
            lambda recipe, told: convert(model_dir, recipe, out, ranges=ranges, force=True, report=told)
        )
        telling = _Telling(report, windows.shape[0] * (len(recipes) + 1))
        judge = _Judge(Path(folder), windows, options, telling)
        scores = {"float32": judge.reference(source)}
        for name, recipe in recipes.items():
            scores[name] = judge.score(converted(recipe, functools.partial(telling.converting, name)))
    return pd.DataFrame([_row(name, each, scores["float32"], options.resamples) for name, each in scores.items()])


class _Telling:
    """Counts the windows that are done, and passes on what conversions tell."""

    def __init__(self, report: Reporter, total: int) -> None:
        self.report, self.total = report, total
        self.done = 0
        self.told = -UPDATE_S

    def window(self) -> None:
        """One more window is done."""
        self.done += 1
        self.report(ProgressEvent("judge", self.done, self.total, "windows"))

    def converting(self, name: str, event: ProgressEvent) -> None:
        """The reporter of one recipe's conversion."""
        if time.monotonic() - self.told >= UPDATE_S:
            self.told = time.monotonic()
            share = f" ({event.done / event.total:.0%})" if event.total else ""
            self.report(ProgressEvent(f"judge: converting {name}{share}", self.done, self.total, "windows"))
        self.report(dataclasses.replace(event, depth=event.depth + 1))


class _Judge:
    """Keeps the reference's log-probabilities of every window in one mapped file."""

    def __init__(self, folder: Path, windows: Tensor, options: TradeoffOptions, telling: _Telling) -> None:
        self.windows, self.options, self.telling = windows, options, telling
        self.path = folder / "reference.bin"
        self.known: Tensor | None = None

    def reference(self, source: HFCheckpoint) -> WindowScores:
        shape = (*self.windows.shape, source.config.vocab_size)
        count = shape[0] * shape[1] * shape[2]
        self.known = torch.from_file(str(self.path), shared=True, size=count, dtype=torch.float32).view(shape)
        with contextlib.suppress(OSError):
            self.path.unlink()  # the mapping lives on, and nothing is left behind however the process ends
        return self._run(_original_session(source, self.options), first=True)

    def score(self, checkpoint: Checkpoint) -> WindowScores:
        return self._run(open_session(checkpoint, self.options), first=False)

    def _run(self, session: TorchSession, *, first: bool) -> WindowScores:
        try:
            rows = [self._window(session, index, first=first) for index in range(len(self.windows))]
        finally:
            session.close()
        return WindowScores(*torch.tensor(rows, dtype=torch.float64).unbind(1))

    def _window(self, session: TorchSession, index: int, *, first: bool) -> tuple[float, float, float]:
        assert self.known is not None
        ids = self.windows[index]
        logits = session.logits(ids[None])[0]
        found = logits.log_softmax(-1)
        if first:
            self.known[index] = found.cpu()
        truth = self.known[index].to(found.device)
        kl = functional.kl_div(found, truth, reduction="none", log_target=True).sum(-1, dtype=torch.float64).mean()
        top1 = (found.argmax(-1) == truth.argmax(-1)).double().mean()
        nll = next_token_nll(logits, ids).double().mean()
        self.telling.window()
        return float(nll), float(kl), float(top1)


def open_session(checkpoint: Checkpoint, options: TradeoffOptions) -> TorchSession:
    """The checkpoint on the options' device."""
    dtype: torch.dtype = getattr(torch, checkpoint.recipe.dtype)
    chosen = SessionOptions(dtype, options.backend, limits=checkpoint.recipe.build, device=options.device)
    return TorchSession(checkpoint.config, checkpoint.weights, chosen)


def _original_session(source: HFCheckpoint, options: TradeoffOptions) -> TorchSession:
    """The model itself in float32; its weights stay in the type that they are stored in, which loses nothing."""
    stored = (source.spec(name).dtype for name in hf_names.tensor_shapes(source.config))
    weights = source.weights(functools.reduce(torch.promote_types, stored))
    chosen = SessionOptions(torch.float32, options.backend, BuildLimits(), options.device)
    return TorchSession(source.config, weights, chosen)


def bootstrap_interval(values: Tensor, resamples: int = RESAMPLES) -> tuple[float, float]:
    """The 95 % percentile interval of the mean of ``values`` ``[windows]``; one size, one set of draws."""
    drawn = torch.randint(len(values), (resamples, len(values)), generator=torch.Generator().manual_seed(0))
    low, high = values[drawn].mean(1).quantile(torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist()
    return low, high


def _row(name: str, scores: WindowScores, reference: WindowScores, resamples: int) -> dict[str, float | str]:
    row: dict[str, float | str] = {"recipe": name, "perplexity": float(scores.nll.mean().exp())}
    difference = scores.nll - reference.nll
    bounds = torch.tensor(bootstrap_interval(difference, resamples)).expm1().tolist()
    row |= {"change": float(difference.mean().expm1()), "change_low": bounds[0], "change_high": bounds[1]}
    for item in dataclasses.fields(WindowScores)[1:]:
        values = getattr(scores, item.name)
        low, high = bootstrap_interval(values, resamples)
        row |= {item.name: float(values.mean()), f"{item.name}_low": low, f"{item.name}_high": high}
    return row
