"""Hugging Face's model as a session: the same calls as ours, with its own KV cache. One prompt at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache

from workbench.evaluation.hf_reference import HFReference, TapSink
from workbench.model.config import ModelConfig
from workbench.recipe import BuildLimits
from workbench.runtime.limits import check_decode, check_ids, check_prompts, model_limits


class HFSession:
    """Generation and scoring by Hugging Face (:class:`workbench.runtime.session.Session`).

    Args:
        reference: the opened model; several sessions may share it.

    Attributes:
        reference: the same; RuntimeError after :meth:`close`.
    """

    backend = "huggingface"

    def __init__(self, reference: HFReference) -> None:
        self._reference: HFReference | None = reference
        self._config = reference.config
        # Padding would be Hugging Face's own business: rows of several lengths are not asked of it.
        self.limits: BuildLimits = dataclasses.replace(model_limits(reference.config, BuildLimits()), max_batch_size=1)
        self._cache: DynamicCache | None = None
        self._length = 0

    @property
    def config(self) -> ModelConfig:
        return self._config

    @property
    def reference(self) -> HFReference:
        if self._reference is None:
            raise RuntimeError("this session of Hugging Face's model is closed; open another")
        return self._reference

    def prefill(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Forget what came before and read one prompt: ``[1, vocab]`` float32.

        Raises:
            LimitError: several prompts, an empty or too long one, or an id outside the vocabulary.
        """
        check_prompts(prompts, self.config, self.limits)
        self._cache, self._length = DynamicCache(), 0
        return self._forward(torch.as_tensor(prompts[0], dtype=torch.int64)[None])

    def decode(self, ids: Tensor) -> Tensor:
        """One more token: ``[1]`` integers -> ``[1, vocab]`` float32.

        Raises:
            LimitError: the model's positions are used up, or an id outside the vocabulary.
            RuntimeError: before any prefill.
        """
        if self._cache is None or ids.shape != (1,):
            raise RuntimeError(
                f"decode of ids {list(ids.shape)} after a prefill of {int(self._cache is not None)} rows"
            )
        check_ids(ids, self.config)
        check_decode(self._length + 1, self.config, self.limits)
        return self._forward(ids.long()[None])

    def logits(self, ids: Tensor, on_tap: TapSink | None = None) -> Tensor:
        """Logits of every position (:meth:`HFReference.logits`); a generation under way is not disturbed."""
        return self.reference.logits(ids, on_tap)

    def close(self) -> None:
        """Let go of the cache and of the model, whose memory is free once no other session shares it."""
        self._reference, self._cache, self._length = None, None, 0

    @torch.inference_mode()
    def _forward(self, ids: Tensor) -> Tensor:
        """Logits ``[1, vocab]`` after the last of ``ids`` ``[1, seq]``."""
        output = self.reference.model(
            input_ids=ids.to(self.reference.device), past_key_values=self._cache, use_cache=True, logits_to_keep=1
        )
        self._length += ids.shape[1]
        logits: Tensor = output.logits[:, -1].float()
        return logits
