"""Handling of images that cannot be read (``data.on_corrupt``)."""

from __future__ import annotations

from vitfast.errors import UserError

_ALLOWED_SHARE = 1000  # training skips at most one image in this many
_LISTED = 3


class BadImages:
    """Counts the unreadable images of a split, and raises an error if there are too many.

    With ``raise`` the first one is an error. With ``skip``, training reads another image in its place (see
    ``ImageDataset.candidates``), so that batches keep their size, and stops at more than 0.1 % of the split or one
    image, whichever is more. In evaluation an image cannot be replaced: it is excluded, and only a split without any
    readable image is an error.

    Distinct images that this process has read are counted. The count is not saved: a resumed run reads the same images
    again, warns again and counts them anew. Each rank counts the images that it reads.

    Args:
        num_images: size of the split.
        on_corrupt: ``"raise"`` or ``"skip"``.
        measured: whether the split is for evaluation rather than training.

    Attributes:
        allowed: number of unreadable images that are tolerated.
    """

    def __init__(self, num_images: int, on_corrupt: str, *, measured: bool) -> None:
        self._num_images = num_images
        self._skip = on_corrupt == "skip"
        self._measured = measured
        self._reasons: dict[int, str] = {}
        tolerated = num_images if measured else max(num_images // _ALLOWED_SHARE, 1)
        self.allowed = min(tolerated, max(num_images - 1, 0)) if self._skip else 0

    def __len__(self) -> int:
        return len(self._reasons)

    def __contains__(self, index: int) -> bool:
        return index in self._reasons

    def add(self, found: dict[int, str]) -> list[str]:
        """Counts unreadable images.

        Args:
            found: index of each image -> reason, which names its file.

        Returns:
            A warning for each new one.

        Raises:
            UserError: if there are too many.
        """
        warnings = []
        for index, reason in found.items():
            if index not in self._reasons:
                self._reasons[index] = reason
                if self._measured:
                    left = self._num_images - len(self)
                    what = f"It is excluded: {left:,} of the split's {self._num_images:,} images are evaluated"
                else:
                    so_far = f"{len(self)} so far; training stops at more than {self.allowed:,}"
                    what = f"Another image replaces it ({so_far})"
                warnings.append(f"{reason}. {what}")
        if len(self._reasons) > self.allowed:
            raise UserError(self._too_many())
        return warnings

    def _too_many(self) -> str:
        reasons = list(self._reasons.values())
        if not self._skip:
            return f"{reasons[0]} (data.on_corrupt=skip skips such images)"
        shown = "".join(f"\n  {reason}" for reason in reasons[:_LISTED])
        more = f"\n  and {len(reasons) - _LISTED} more" if len(reasons) > _LISTED else ""
        if self._measured:
            return f"none of the {self._num_images:,} images of the split can be read:{shown}{more}"
        return (
            f"{len(reasons):,} of {self._num_images:,} training images cannot be read; data.on_corrupt=skip skips at "
            f"most {self.allowed:,} (0.1 % or one); replace these files, then resume:{shown}{more}"
        )
