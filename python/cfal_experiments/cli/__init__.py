"""The `cfal` command: one module per sub-command, imported when it is called."""
