"""What a subcommand raises when it cannot go on and the user can do something about it."""

from __future__ import annotations


class CommandError(Exception):
    """A paragraph for the user: what was expected, what was found, the command or option that helps."""
