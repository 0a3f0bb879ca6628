"""The modules of an accelerated model: they hold packed weights and run a description."""
