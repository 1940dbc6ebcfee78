"""Who holds what: the only code that knows how layers, heads and channels are spread over ranks."""

from __future__ import annotations

from dataclasses import dataclass

from workbench.errors import WorkbenchError


@dataclass(frozen=True)
class Mapping:
    """The place of one rank among ``tp_size * pp_size``.

    Ranks of one pipeline stage are neighbours: ``rank = pp_rank * tp_size + tp_rank``.
    """

    tp_size: int = 1
    pp_size: int = 1
    rank: int = 0

    def __post_init__(self) -> None:
        if self.tp_size < 1 or self.pp_size < 1 or not 0 <= self.rank < self.world_size:
            raise WorkbenchError(
                f"rank {self.rank} of tp_size {self.tp_size} x pp_size {self.pp_size}",
                allowed="sizes from 1 and ranks from 0 to tp_size * pp_size - 1",
            )

    @property
    def world_size(self) -> int:
        return self.tp_size * self.pp_size

    @property
    def tp_rank(self) -> int:
        return self.rank % self.tp_size

    @property
    def pp_rank(self) -> int:
        return self.rank // self.tp_size

    @property
    def is_first_stage(self) -> bool:
        return self.pp_rank == 0

    @property
    def is_last_stage(self) -> bool:
        return self.pp_rank == self.pp_size - 1

    def layers(self, num_layers: int) -> range:
        """The decoder layers of this rank's stage; where they do not divide, earlier stages hold one more."""
        if num_layers < self.pp_size:
            raise WorkbenchError(
                f"{num_layers} layers over pp_size {self.pp_size}", allowed=f"pp_size up to {num_layers}"
            )
        each, more = divmod(num_layers, self.pp_size)
        first = self.pp_rank * each + min(self.pp_rank, more)
        return range(first, first + each + (self.pp_rank < more))

    def split(self, count: int, what: str) -> range:
        """This rank's part of ``count`` heads or channels, split evenly over the ranks of its stage."""
        if count % self.tp_size:
            raise WorkbenchError(f"{count} {what} over tp_size {self.tp_size}", allowed=f"divisors of {count}")
        each = count // self.tp_size
        return range(self.tp_rank * each, (self.tp_rank + 1) * each)
