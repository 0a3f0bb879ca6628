"""The options of all commands, and one module per command: the call, and what it prints."""
