"""``vitfast.train`` under torchrun, in which one rank dies once; takes STEP, SIGNAL and the options."""

from __future__ import annotations

import os
import sys

import vitfast.train
from support.interruption import Interruption

if __name__ == "__main__":
    step, number = int(sys.argv[1]), int(sys.argv[2])
    if os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        Interruption("step", step, number=number).install()
    sys.exit(vitfast.train.main(sys.argv[3:]))
