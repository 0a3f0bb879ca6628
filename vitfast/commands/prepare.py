"""``vitfast prepare``: converts a data set to the layout that training reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vitfast.config import load_options, option
from vitfast.data.resisc45 import prepare_resisc45


@dataclass
class PrepareOptions:
    """Brings a data set into the layout that training reads."""

    source: str = option(help="the unpacked archive: a folder with a folder of images for each class")
    target: str = option(help="folder to make; it may exist, and what it holds already is kept")
    dataset: str = option("resisc45", "the data set", choices=["resisc45"])
    split: str = option(
        "myrtle",
        "myrtle: the first 489, then 71, then 140 images of each class; torchgeo: its published lists, in "
        "source: resisc45-train.txt, resisc45-val.txt and resisc45-test.txt",
        choices=["myrtle", "torchgeo"],
    )


def run(arguments: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    options = load_options(PrepareOptions, arguments, "python -m vitfast.prepare")
    counts = prepare_resisc45(options.source, options.target, options.split)
    print(f"{options.target}: " + ", ".join(f"{count:,} {split}" for split, count in counts.items()) + " images")
    print(f"train on it: python -m vitfast.train data.dataset=file_list data.root={options.target}")
    return 0
