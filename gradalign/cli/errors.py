"""The error of a subcommand that the user can fix."""

from __future__ import annotations


class CommandError(Exception):
    """A message for the user: what was expected, what was found, and the command or option that fixes it."""
