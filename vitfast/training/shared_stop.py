"""A stop that all ranks make at the same step."""

from __future__ import annotations

from vitfast.training.ranks import Ranks
from vitfast.training.stop_signal import StopSignal


class SharedStop:
    """Whether to stop: what the signal says, or, among several ranks, what they last agreed on.

    A signal may reach one rank only, or the ranks at different steps. If each acted on its own flag, some would wait
    for the others for ever.

    Args:
        signal: of this process.
        ranks: who have to agree.
    """

    def __init__(self, signal: StopSignal, ranks: Ranks) -> None:
        self._signal = signal
        self._ranks = ranks
        self._agreed = False

    def __bool__(self) -> bool:
        return bool(self._signal) if self._ranks.world == 1 else self._agreed

    @property
    def number(self) -> float:
        """The signal's number, 0 if none has come: what a rank adds to another agreement, see ``heard``."""
        return float(self._signal.number or 0)

    def heard(self, largest_number: float) -> None:
        """Takes the largest ``number`` of all ranks."""
        if largest_number:
            self._signal.request(int(largest_number))
            self._agreed = True

    def agree(self) -> bool:
        """Asks all ranks, which all have to call this, and returns whether to stop."""
        if self._ranks.world > 1:
            self.heard(self._ranks.largest(self.number)[0])
        return bool(self)
