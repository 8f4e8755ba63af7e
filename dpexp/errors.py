"""The errors that dpexp raises on purpose, and how numbers and text are written in messages.

Each message is one line: the value, the rule, the choices.
"""

BAD_INPUT, FAILED = 2, 1  # exit statuses
USER_CODE_ERRORS = (Exception, SystemExit, KeyboardInterrupt)  # not Ctrl-C: see machine/signals.py


def pluralize(count: int, noun: str) -> str:
    """Return a count with its noun: 1 worker, 2 workers, 1,000 samples, 3 processes."""
    plural = "es" if noun.endswith("s") else "s"
    return f"{count:,} {noun}{plural if count != 1 else ''}"


def format_number(value: float, digits: int = 3) -> str:
    """Return a number with `digits` significant digits, and without an exponent if it is large."""
    return f"{value:,.0f}" if value >= 10**digits / 10 else f"{value:.{digits}g}"


def printable(text: str) -> str:
    """Return the text with line breaks and other control characters escaped, as in a user's value."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


class DpexpError(Exception):
    """The base class of dpexp's errors. Its message is always one line: control characters are escaped."""

    exit_status = FAILED  # of a command that the error ends

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def one_line(error: BaseException) -> str:
    """Return the error's type and message on one line."""
    if isinstance(error, SystemExit):
        return f"it called sys.exit({'' if error.code is None else repr(error.code)})"
    return " ".join(f"{type(error).__name__}: {error}".split()).rstrip(" :")


class ConfigError(DpexpError):
    """The configuration asks for something impossible."""

    exit_status = BAD_INPUT


class DataError(DpexpError):
    """A user's file can't be used: a data set that can't be loaded, or a file that changed."""

    exit_status = BAD_INPUT


class WorkerError(DpexpError):
    """A worker process failed; `details` contains its traceback if there is one."""

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.details = details


class PeerError(WorkerError):
    """A worker failed because another one had failed; that one reports the cause."""


class DivergedError(DpexpError):
    """A loss was not a finite number."""


class ResultError(DpexpError):
    """Results can't be written, read, or aggregated together."""


class VersionError(ResultError):
    """A result that another version of dpexp wrote."""


class ScriptEnded(Exception):  # noqa: N818 - not an error
    """A script has ended, so no arm of its block gets another turn; the message names it."""
