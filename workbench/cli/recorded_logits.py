"""A session that writes its logits to a file as they come. Knows nothing of how tokens are chosen."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

from workbench.cli.amounts import size
from workbench.cli.command import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from workbench.model.config import ModelConfig
    from workbench.recipe import BuildLimits
    from workbench.runtime.session import Session

_VALUE_BYTES = 4


class RecordedSession:
    """Another session whose logits are kept on disk, step by step; nothing of them stays in memory.

    Args:
        session: what computes.
        folder: where the steps are kept; nobody sees the file, and it is gone when this is closed.
        rows, steps: prompts, and the most steps that will come.

    Raises:
        UsageError: the disk has too little room for what may come.
    """

    def __init__(self, session: Session, folder: Path, rows: int, steps: int) -> None:
        self._session = session
        self._shape = rows, session.config.vocab_size
        needed_bytes = 2 * steps * self._shape[0] * self._shape[1] * _VALUE_BYTES
        free_bytes = shutil.disk_usage(folder).free
        if needed_bytes > free_bytes:
            raise UsageError(
                f"--output_logits_npy may need {size(needed_bytes)} in {folder}, which has {size(free_bytes)} free",
                fix="lower --max_output_len, run fewer prompts at once, or write to another disk",
            )
        self._steps: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by close

    @property
    def config(self) -> ModelConfig:
        return self._session.config

    @property
    def limits(self) -> BuildLimits:
        return self._session.limits

    @property
    def backend(self) -> str:
        return self._session.backend

    def prefill(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """See :meth:`workbench.runtime.session.Session.prefill`."""
        self._steps.seek(0)
        self._steps.truncate()
        return self._kept(self._session.prefill(prompts))

    def decode(self, ids: Tensor) -> Tensor:
        """See :meth:`workbench.runtime.session.Session.decode`."""
        return self._kept(self._session.decode(ids))

    def close(self) -> None:
        """Forget what was kept; the session itself stays open."""
        self._steps.close()

    def write_npy(self, path: Path, lengths: Sequence[int]) -> None:
        """Write float32 ``[rows, longest, vocab]``: the logits that each new token of each row was chosen from.

        Args:
            path: the file.
            lengths: new tokens of each row; NaN stands after the end of a shorter one.
        """
        import numpy as np

        rows, vocab = self._shape
        longest = max(lengths, default=0)
        self._steps.flush()
        header = {"descr": "<f4", "fortran_order": False, "shape": (rows, longest, vocab)}
        with path.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for row, length in enumerate(lengths):
                for step in range(length):
                    self._steps.seek((step * rows + row) * vocab * _VALUE_BYTES)
                    file.write(self._steps.read(vocab * _VALUE_BYTES))
                nothing = np.full(vocab, np.nan, dtype="<f4").tobytes()
                for _ in range(length, longest):
                    file.write(nothing)

    def _kept(self, logits: Tensor) -> Tensor:
        self._steps.write(logits.float().cpu().numpy().astype("<f4", copy=False).tobytes())
        return logits
