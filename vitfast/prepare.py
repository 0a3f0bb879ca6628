"""Converts a data set for training: ``python -m vitfast.prepare source=… target=… [key=value …]``."""

import sys

from vitfast.commands.run_command import EntryPoint

main = EntryPoint("prepare")

if __name__ == "__main__":
    sys.exit(main())
