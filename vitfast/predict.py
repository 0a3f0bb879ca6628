"""Names what images show: ``python -m vitfast.predict checkpoint=runs/… images=PATH[,PATH…] [key=value …]``."""

import sys

from vitfast.commands.run_command import EntryPoint

main = EntryPoint("predict")

if __name__ == "__main__":
    sys.exit(main())
