"""Errors that a user can correct.

The command line prints the message of a ``UserError`` on one line and exits with status 2. Every other exception is a
bug in the program: the command line prints its traceback and exits with status 1. Functions of the Python API that
check their arguments (losses, ops) raise plain ``ValueError`` and ``TypeError``, as PyTorch's functions do.
"""


class UserError(Exception):
    """The user's input cannot be used. The message names the input and says what was expected.

    Args:
        problem: what is wrong.
        name: the setting concerned, if any, spelled as in Python and in recipes (``batch_size``, not
            ``--batch-size``). The message begins with it.
    """

    name: str | None = None
    problem: str = ""

    def __init__(self, problem: str = "", *, name: str | None = None) -> None:
        super().__init__(problem if name is None else f"{name}: {problem}")
        self.name, self.problem = name, problem


class InputError(UserError, ValueError):
    """A value or the content of a file is invalid."""


class InputTypeError(UserError, TypeError):
    """A value has the wrong type."""


class InputNotFoundError(UserError, FileNotFoundError):
    """A file or folder is missing."""


class SettingError(InputError):
    """The value of a setting is invalid.

    Attributes:
        name: the setting's name, spelled as in Python and in recipes (``batch_size``, not ``--batch-size``).
        expected: a description of the valid values.
        got: the invalid value.
    """

    def __init__(self, name: str, expected: str, got: object) -> None:
        super().__init__(f"expected {expected}, got {got!r}", name=name)
        self.expected, self.got = expected, got
