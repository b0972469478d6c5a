"""The one error family of linnet. A message is one sentence: what is wrong, where, and what to do."""


class LinnetError(Exception):
    """Base of every error that linnet raises on purpose; `exit_status` is what the command line ends with."""

    exit_status = 1


class InputError(LinnetError):
    """The input is bad: truncated, damaged, hostile or not what it claims to be."""

    exit_status = 1


class UsageError(LinnetError):
    """The caller asked for something that makes no sense; the input itself may be fine."""

    exit_status = 2


class MachineError(LinnetError):
    """This machine lacks something: a library, a codec bundle, arithmetic that keeps the contract."""

    exit_status = 3


class Absent(MachineError):
    """Something is simply not here: worth a line in `linnet doctor`, not a warning where another part does the work."""

    def __init__(self, detail: str, remedy: str) -> None:
        super().__init__(f"{detail}: {remedy}")
        self.detail, self.remedy = detail, remedy
