"""The one exception for what a user can cause."""


class UserError(Exception):
    """A mistake in a setting, a file or a command.

    Its text is one line: the thing, the value and the remedy. The command line prints it and exits with status 2,
    without a traceback. For what only this program can cause, use ``assert``.
    """
