"""``vitfast prepare``: converts a data set to the layout that training reads."""

from __future__ import annotations

from vitfast.commands.command_options import PrepareOptions
from vitfast.data.resisc45 import prepare_resisc45


def run(options: PrepareOptions) -> int:
    """Runs the command; returns the exit code."""
    counts = prepare_resisc45(options.source, options.target, options.split)
    print(f"{options.target}: " + ", ".join(f"{count:,} {split}" for split, count in counts.items()) + " images")
    print(f"train on it: python -m vitfast.train data.dataset=file_list data.root={options.target}")
    return 0
