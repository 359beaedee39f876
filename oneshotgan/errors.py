"""The one exception that means "the user can mend this": a single clear line, no traceback."""


def one_line(text: object) -> str:
    """`text` as one printable line, whatever characters a file's name in it has."""
    joined = " ".join(str(text).split("\n"))
    return "".join(char if char.isprintable() else "�" for char in joined)


class UserError(Exception):
    """A mistake or circumstance the user can put right (bad file, bad setting, full disk).

    The message is one line that says what is wrong and what to do. The command prints it as
    ``error: <message>`` on stderr and exits with code 2; from Python it is an ordinary exception.
    """


class UserErrors(UserError):
    """Several of them, found together; the command prints one line for each."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__("; ".join(lines))
        self.lines = lines
