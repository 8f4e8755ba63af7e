"""What can go wrong for a user. Each message is one line: the value, the rule, the choices."""


class DpexpError(Exception):
    """Base of all errors that dpexp raises on purpose."""


def one_line(error: BaseException) -> str:
    """The error's type and message on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


class ConfigError(DpexpError):
    """The configuration asks for something that isn't possible."""


class DataError(DpexpError):
    """A data set can't be had, or isn't what its checksum says."""


class WorkerError(DpexpError):
    """A worker process failed; `details` holds its traceback where it had one."""

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.details = details


class PeerError(WorkerError):
    """A worker failed because another one had: the other knows the cause."""


class DivergedError(DpexpError):
    """A loss was not a finite number."""


class ResultError(DpexpError):
    """Results can't be written, read, or aggregated together."""


class VersionError(ResultError):
    """A result that another version of dpexp wrote."""
