"""What each recipe costs: perplexity, KL and first choice of many recipes on the same windows, with paired intervals.

Every candidate is converted and run as a user would run it. The reference is the model in float32; its logits are kept
in a file, so that they are computed once and memory does not grow with the windows.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from workbench.checkpoint.unified import Checkpoint
from workbench.evaluation.perplexity import next_token_nll
from workbench.progress import ProgressEvent, Reporter, silent
from workbench.quantization.convert import convert
from workbench.quantization.ranges import ActivationRanges
from workbench.recipe import Recipe
from workbench.runtime.session import SessionOptions, TorchSession

RESAMPLES = 4000


@dataclass(frozen=True)
class TradeoffOptions:
    """How candidates are run.

    Attributes:
        device: a torch device; "cpu" runs the fast CPU op set, any other the plain torch op set.
        resamples: of the bootstrap over windows.
    """

    device: str = "cpu"
    resamples: int = RESAMPLES

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
        options: device and resamples.
        report: told the windows that are done.

    Returns:
        One row per recipe, the reference first: ``recipe``, ``perplexity``, its relative ``change`` with
        ``change_low`` and ``change_high``, ``kl`` (nats) and ``top1`` with their ``_low`` and ``_high``: 95 % paired
        bootstrap intervals over windows.

    Raises:
        CheckpointError, RecipeError: a recipe does not fit the model or needs ranges that are not given.
    """
    options = options or TradeoffOptions()
    total = windows.shape[0] * (len(recipes) + 1)
    with tempfile.TemporaryDirectory() as folder:
        judge = _Judge(
            Path(folder), windows, options, lambda done: report(ProgressEvent("judge", done, total, "windows"))
        )
        scores = {"float32": judge.reference(convert(model_dir, Recipe(dtype="float32"), Path(folder) / "reference"))}
        for name, recipe in recipes.items():
            checkpoint = convert(model_dir, recipe, Path(folder) / "candidate", ranges=ranges, force=True)
            scores[name] = judge.score(checkpoint)
    return pd.DataFrame([_row(name, each, scores["float32"], options.resamples) for name, each in scores.items()])


class _Judge:
    """Keeps the reference's log-probabilities of every window in one mapped file."""

    def __init__(self, folder: Path, windows: Tensor, options: TradeoffOptions, tell: Callable[[int], None]) -> None:
        self.windows, self.options, self.tell = windows, options, tell
        self.path = folder / "reference.bin"
        self.done = 0
        self.known: Tensor | None = None

    def reference(self, checkpoint: Checkpoint) -> WindowScores:
        shape = (*self.windows.shape, checkpoint.config.vocab_size)
        count = shape[0] * shape[1] * shape[2]
        self.known = torch.from_file(str(self.path), shared=True, size=count, dtype=torch.float32).view(shape)
        return self._run(checkpoint, first=True)

    def score(self, checkpoint: Checkpoint) -> WindowScores:
        return self._run(checkpoint, first=False)

    def _run(self, checkpoint: Checkpoint, *, first: bool) -> WindowScores:
        session = open_session(checkpoint, self.options)
        rows = [self._window(session, index, first=first) for index in range(len(self.windows))]
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
        self.done += 1
        self.tell(self.done)
        return float(nll), float(kl), float(top1)


def open_session(checkpoint: Checkpoint, options: TradeoffOptions) -> TorchSession:
    """The checkpoint on the options' device."""
    dtype: torch.dtype = getattr(torch, checkpoint.recipe.dtype)
    chosen = SessionOptions(dtype, options.backend, limits=checkpoint.recipe.build, device=options.device)
    return TorchSession(checkpoint.config, checkpoint.weights, chosen)


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
