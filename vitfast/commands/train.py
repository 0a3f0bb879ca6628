"""``vitfast train``: trains a model.

Without arguments it trains on handwritten digits, which are part of the package, in about a minute on two cores.
The options are ``vitfast.config.schema.Config``.

Exit code: 0; 2 after a user error; 143 or 130 after SIGTERM or SIGINT, with all work saved.
"""

from vitfast.training.training_run import run_training as run

__all__ = ["run"]
