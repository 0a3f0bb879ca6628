"""What becomes of images that cannot be read."""

from __future__ import annotations

from vitfast.errors import UserError

# of the images to learn from, training passes over one in so many
_ONE_IN = 1000
_LISTED = 3


class BadImages:
    """The images of a split that could not be read, and the rule that says when they are too many.

    With ``raise`` the first one is an error. With ``skip``, training reads another image in its place (see
    ``ImageDataset.candidates``), so that batches keep their size, and gives up at more than 0.1 % of the split or one
    image, whichever is more. Where a split is measured nothing can stand in for an image: it is left out, is counted
    neither as right nor as wrong, and only a split of which nothing is left is an error.

    Different images are counted, those that this process has come across. Nothing of it is saved with a run: one that
    is resumed comes across the same images again, warns again and counts them anew, but never twice. Of several ranks
    each counts what it reads itself.

    Args:
        num_images: size of the split.
        on_corrupt: ``"raise"`` or ``"skip"``.
        measured: whether the split is measured, rather than learned from.

    Attributes:
        allowed: how many are not too many.
    """

    def __init__(self, num_images: int, on_corrupt: str, *, measured: bool) -> None:
        self._num_images = num_images
        self._skip = on_corrupt == "skip"
        self._measured = measured
        self._reasons: dict[int, str] = {}
        if not self._skip:
            self.allowed = 0
        elif measured:
            self.allowed = max(num_images - 1, 0)
        else:
            self.allowed = min(max(num_images // _ONE_IN, 1), max(num_images - 1, 0))

    def __len__(self) -> int:
        return len(self._reasons)

    def __contains__(self, index: int) -> bool:
        return index in self._reasons

    def add(self, found: dict[int, str]) -> list[str]:
        """Counts images that could not be read.

        Args:
            found: for each of them the reason, which names its file.

        Returns:
            A warning for each that is new.

        Raises:
            UserError: if they are too many.
        """
        warnings = []
        for index, reason in found.items():
            if index not in self._reasons:
                self._reasons[index] = reason
                warnings.append(f"{reason}. {self._consequence()}")
        if len(self._reasons) > self.allowed:
            raise UserError(self._too_many())
        return warnings

    def _consequence(self) -> str:
        if self._measured:
            left = self._num_images - len(self)
            return f"It is left out: of the split's {self._num_images:,} images {left:,} are measured"
        return f"Another image takes its place ({len(self)} so far; more than {self.allowed:,} end the training)"

    def _too_many(self) -> str:
        reasons = list(self._reasons.values())
        if not self._skip:
            return f"{reasons[0]} (data.on_corrupt=skip passes over such images)"
        shown = "".join(f"\n  {reason}" for reason in reasons[:_LISTED])
        more = f"\n  and {len(reasons) - _LISTED} more" if len(reasons) > _LISTED else ""
        if self._measured:
            return f"none of the {self._num_images:,} images to be measured can be read:{shown}{more}"
        return (
            f"{len(reasons):,} of {self._num_images:,} images to learn from cannot be read, and data.on_corrupt=skip "
            f"passes over {self.allowed:,} at most (0.1 % or one); replace these files, then continue:{shown}{more}"
        )
