"""The one error that a caller can cause: what was given, what is allowed, what to do, in one line."""


class InputError(ValueError):
    """A caller's mistake. The command line prints it as one line and exits with code 2; a traceback means a bug."""
