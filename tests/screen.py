"""Terminal emulator: the text that a person sees of a program's output."""

import re

_CONTROL = re.compile(r"\x1b\[([?\d;]*)([A-Za-z])")


class Screen:
    """Supports the controls that progress bars use: up, erase line, carriage return, colours; wraps long lines."""

    def __init__(self, columns: int) -> None:
        self.columns, self.wrapped = columns, 0
        self._rows: list[list[str]] = [[]]
        self._row = self._column = 0

    def feed(self, sent: str) -> str:
        """Prints more output and returns the screen's text."""
        position = 0
        while position < len(sent):
            if control := _CONTROL.match(sent, position):
                self._apply(control[1], control[2])
                position = control.end()
                continue
            if sent[position] == "\r":
                self._column = 0
            elif sent[position] == "\n":
                self._next_row()
            else:
                self._print(sent[position])
            position += 1
        return "\n".join("".join(row).rstrip() for row in self._rows).rstrip()

    def _apply(self, number: str, letter: str) -> None:
        if letter == "A":
            self._row -= int(number or 1)
            assert self._row >= 0
        elif letter == "K":
            self._rows[self._row] = []
        else:
            assert letter == "m" or number in ("?25", "?2026"), (number, letter)

    def _next_row(self) -> None:
        self._row, self._column = self._row + 1, 0
        if self._row == len(self._rows):
            self._rows.append([])

    def _print(self, letter: str) -> None:
        if self._column == self.columns:
            self.wrapped += 1
            self._next_row()
        row = self._rows[self._row]
        row += " " * (self._column + 1 - len(row))
        row[self._column] = letter
        self._column += 1


def screens(sent: str, columns: int) -> tuple[list[str], int]:
    """Text of the screen after each redraw, and the number of lines that were too long for it."""
    screen = Screen(columns)
    return [screen.feed(part) for part in re.split(r"(?=\x1b\[\d+A|\x1b\[2K)", sent)], screen.wrapped
