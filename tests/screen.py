"""What a person sees of what a program sends to a terminal."""

import re

_CONTROL = re.compile(r"\x1b\[([?\d;]*)([A-Za-z])")


class Screen:
    """The few controls that bars use: up, erase the line, carriage return, colours; long lines wrap."""

    def __init__(self, columns: int) -> None:
        self.columns, self.wrapped = columns, 0
        self._rows: list[list[str]] = [[]]
        self._row = self._column = 0

    def feed(self, sent: str) -> str:
        """Shows more of it, and returns what is on the screen."""
        place = 0
        while place < len(sent):
            if control := _CONTROL.match(sent, place):
                self._obey(control[1], control[2])
                place = control.end()
                continue
            if sent[place] == "\r":
                self._column = 0
            elif sent[place] == "\n":
                self._next_row()
            else:
                self._put(sent[place])
            place += 1
        return "\n".join("".join(row).rstrip() for row in self._rows).rstrip()

    def _obey(self, number: str, letter: str) -> None:
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

    def _put(self, letter: str) -> None:
        if self._column == self.columns:
            self.wrapped += 1
            self._next_row()
        row = self._rows[self._row]
        row += " " * (self._column + 1 - len(row))
        row[self._column] = letter
        self._column += 1


def screens(sent: str, columns: int) -> tuple[list[str], int]:
    """What is on the screen after each time it was drawn, and how many lines were too long for it."""
    screen = Screen(columns)
    return [screen.feed(part) for part in re.split(r"(?=\x1b\[\d+A|\x1b\[2K)", sent)], screen.wrapped
