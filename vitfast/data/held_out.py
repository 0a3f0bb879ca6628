"""A val split for data that have none: a part of the train split that is not learned from."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from vitfast.data.image_source import ImageSource
from vitfast.errors import UserError


class SourceSubset:
    """Some images of a source; an ``ImageSource`` itself.

    Args:
        source: where they are from.
        indices: which.
    """

    def __init__(self, source: ImageSource, indices: Sequence[int]) -> None:
        self._source = source
        self._indices = list(indices)
        self.labels = [source.labels[index] for index in self._indices]
        self.class_names = source.class_names
        self.in_chans, self.img_size, self.crop_pct = source.in_chans, source.img_size, source.crop_pct
        self.mean, self.std = source.mean, source.std

    def path(self, index: int) -> str | None:
        """The file of an image, if each has its own."""
        return self._source.path(self._indices[index])

    def read(self, index: int, in_chans: int) -> Image.Image:
        """Reads an image; see ``ImageSource``."""
        return self._source.read(self._indices[index], in_chans)


def hold_out(source: ImageSource, share: float, split: str) -> SourceSubset:
    """Divides a train split.

    Of every class, ``share`` of the images are held out, evenly spread over their order. Nothing is random, so that
    what one run has held out no other run has learned from.

    Args:
        source: all images of the train split.
        share: above 0, below 1.
        split: ``"val"``: the images that are held out; ``"train"``: the others.

    Raises:
        UserError: the split would be empty.
    """
    by_class: dict[int, list[int]] = {}
    for index, label in enumerate(source.labels):
        by_class.setdefault(label, []).append(index)
    held_out: set[int] = set()
    for indices in by_class.values():
        count = round(len(indices) * share)
        held_out.update(indices[(2 * place + 1) * len(indices) // (2 * count)] for place in range(count))
    chosen = [index for index in range(len(source.labels)) if (index in held_out) == (split == "val")]
    if not chosen:
        raise UserError(
            f"data.val_share={share:g} leaves the {split} split without an image; the train split has "
            f"{len(source.labels):,} images of {len(by_class)} classes; give another share"
        )
    return SourceSubset(source, chosen)
