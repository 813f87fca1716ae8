"""The errors Plait raises: one root, few kinds, each with the exit code the command line gives it."""


class PlaitError(Exception):
    """Root of every error that Plait raises on purpose. The middle of a long message is left out.

    `report` has the same as JSON data, where there is more than the message: under `fixes` the changes
    that were tried, the smallest first.
    """

    exit_code = 2
    longest = 4000  # characters

    def __init__(self, message: object = "", report: dict[str, object] | None = None) -> None:
        self.report = report or {}
        text = str(message)
        half = self.longest // 2
        super().__init__(text if len(text) <= self.longest else f"{text[:half]} […] {text[-half:]}")


class UsageError(PlaitError):
    """The caller asked for something that does not exist or does not go together."""


class InfeasibleError(PlaitError):
    """No plan fits: the message names the device, the term, the shortfall and the cheapest fix."""

    exit_code = 3


class LimitError(PlaitError):
    """Time was up before there was any result."""

    exit_code = 4


class TraceError(PlaitError):
    """The model cannot be traced: the message names the user's file and line."""

    exit_code = 5


class FileError(PlaitError):
    """A file is broken or foreign: the message names the file and the JSON path."""

    exit_code = 6
    longest = 1500  # what a file says, a path in it among that, may be of any length


class MismatchError(PlaitError):
    """Two things do not belong together: a plan and another model, a batch of another size."""

    exit_code = 6


class VerifyError(PlaitError):
    """A program does not compute what one process computes."""

    exit_code = 7


class NonFiniteError(PlaitError):
    """A training step gave gradients that are NaN or infinite."""

    exit_code = 1


def at_least_one(number: int | None, what: str) -> None:
    """Raises UsageError for a count of 0 or fewer: `0 samples in a batch: there must be 1 or more`."""
    if number is not None and number < 1:
        raise UsageError(f"{number} {what}: there must be 1 or more")
