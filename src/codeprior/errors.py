"""The one error that a caller can cause: what was given, what is allowed, what to do, in one line."""


class InputError(ValueError):
    """A caller's mistake. The command line prints it as one line and exits with code 2; a traceback means a bug."""


class StoppedError(Exception):
    """Work that was asked to stop and did, with all that it had done kept; the command line exits with `code`."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code
