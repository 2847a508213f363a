"""The commands that the package installs; wiring only."""
