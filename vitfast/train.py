"""Trains a model: ``python -m vitfast.train [recipe=NAME] [key=value …]``."""

import sys

from vitfast.commands.run_command import EntryPoint

main = EntryPoint("train")

if __name__ == "__main__":
    sys.exit(main())
