"""The hub's entry points: commands, settings from the environment, exit codes."""
