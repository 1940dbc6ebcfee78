"""How far two models' logits agree, position by position: divergence, first choice, perplexity, and one verdict."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from workbench.evaluation.fact_table import fact_table
from workbench.evaluation.perplexity import next_token_nll

# "The same model": nineteen of twenty positions point the same way, with small error, and mostly choose the same token.
GATE_COSINE_P5 = 0.99
GATE_TOP1 = 0.9
# By the candidate's precision. Sound bfloat16 puts the logits of the embedded model at 0.04, sound 8-bit weights at
# 0.07 (KL 0.004 nats, cosine 0.998).
GATE_RELATIVE_L2_P95 = {
    "float64": 0.05,
    "float32": 0.05,
    "float16": 0.05,
    "bfloat16": 0.1,
    "int8": 0.15,
    "int8 KV cache": 0.15,
    # Sound W8A8 per token, alpha 0.85: 0.16 (KL 0.02 nats). Static activations and INT4 by rounding do not pass.
    "smoothquant": 0.2,
    "int4": 0.2,
}


@dataclass(frozen=True)
class Agreement:
    """Logits of a candidate against a reference over all positions of all windows.

    Attributes:
        kl: mean KL divergence of the candidate's distribution from the reference's, KL(reference || candidate), nats.
        top1: share of positions where both choose the same token.
        cosine_p5: 5th percentile over positions of the cosine of the two logit vectors.
        relative_l2_p95: 95th percentile over positions of ``|candidate - reference| / |reference|``.
        reference_perplexity, candidate_perplexity: of the windows' own next tokens.
        positions: how many were compared.
    """

    kl: float
    top1: float
    cosine_p5: float
    relative_l2_p95: float
    reference_perplexity: float
    candidate_perplexity: float
    positions: int

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return fact_table(
            {
                "same next token": f"{100 * self.top1:.1f} % of {self.positions} positions",
                "KL divergence from the reference": f"{self.kl:.4g} nats",
                "perplexity, reference": f"{self.reference_perplexity:.2f}",
                "perplexity, candidate": f"{self.candidate_perplexity:.2f}",
                "cosine of the logits, 5th percentile": f"{self.cosine_p5:.5f}",
                "relative L2 of the logits, 95th percentile": f"{100 * self.relative_l2_p95:.3g} %",
            }
        )

    def same_model(self, precision: str) -> bool:
        """Whether the gate passes for a candidate of that precision; NaN anywhere fails it."""
        return not self.misses(precision)

    def misses(self, precision: str) -> list[str]:
        """What of the gate a candidate of that precision does not pass, each in words."""
        limit = GATE_RELATIVE_L2_P95[precision]
        found = []
        if not self.cosine_p5 >= GATE_COSINE_P5:
            found.append(f"cosine p5 is {self.cosine_p5:.5f}, at least {GATE_COSINE_P5} is asked for")
        if not self.relative_l2_p95 <= limit:
            found.append(f"relative L2 p95 is {self.relative_l2_p95:.3g}, at most {limit} is asked for ({precision})")
        if not self.top1 >= GATE_TOP1:
            found.append(f"top-1 agreement is {self.top1:.3f}, at least {GATE_TOP1} is asked for")
        return found


class AgreementMeter:
    """Adds up windows; keeps a few numbers per position, no logits."""

    def __init__(self) -> None:
        self._rows: list[Tensor] = []
        self._nll: list[tuple[float, float]] = []

    def add(self, reference: Tensor, candidate: Tensor, ids: Tensor) -> None:
        """Take in one window: logits ``[seq, vocab]`` of both, ids ``[seq]``."""
        # In blocks: the float64 copies of a whole window's logits would be the largest tensors of the comparison.
        for x, y in zip(torch.split(reference.cpu(), 64), torch.split(candidate.cpu(), 64), strict=True):
            self._rows.append(_per_position(x.double(), y.double()))
        self._nll.append((_mean_nll(reference, ids), _mean_nll(candidate, ids)))

    def result(self) -> Agreement:
        """The figures over everything added."""
        kl, top1, cosine, relative = torch.cat(self._rows, dim=1)
        nll = torch.tensor(self._nll, dtype=torch.float64).mean(dim=0)
        return Agreement(
            kl=float(kl.mean()),
            top1=float(top1.mean()),
            cosine_p5=float(cosine.quantile(0.05)),
            relative_l2_p95=float(relative.quantile(0.95)),
            reference_perplexity=math.exp(nll[0]),
            candidate_perplexity=math.exp(nll[1]),
            positions=kl.numel(),
        )


def _per_position(x: Tensor, y: Tensor) -> Tensor:
    """``[4, rows]`` float64: KL, same first choice, cosine, relative L2 of logits ``[rows, vocab]``."""
    log_x, log_y = x.log_softmax(-1), y.log_softmax(-1)
    kl = functional.kl_div(log_y, log_x, reduction="none", log_target=True).sum(-1)
    same = (x.argmax(-1) == y.argmax(-1)).double()
    relative = (y - x).norm(dim=-1) / x.norm(dim=-1)
    return torch.stack([kl, same, functional.cosine_similarity(x, y, dim=-1), relative])


def _mean_nll(logits: Tensor, ids: Tensor) -> float:
    return float(next_token_nll(logits, ids).double().mean())
