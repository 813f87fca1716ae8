"""Split text into tokens, and read them one after the other; errors name line and column."""

from __future__ import annotations

import json
import re
from typing import NamedTuple, NoReturn

from ..errors import FileError

TOKEN = re.compile(
    r"""(?P<space>[ ]+|\#.*)
      | (?P<string>"(?:[^"\\]|\\.)*")
      | (?P<value>%\d+)
      | (?P<number>-?(?:inf\b|nan\b|\d+(?:\.\d+)?(?:[eE][+-]?\d+)?(?![\w.])))
      | (?P<word>[A-Za-z_]\w*(?:[.:/-]\w+)*)
      | (?P<mark>->|[\[\](){}=:,@+])""",
    re.VERBOSE | re.ASCII,
)
BARE = re.compile(r"[A-Za-z_]\w*(?:[.:/-]\w+)*", re.ASCII)
RESERVED = frozenset({"none", "true", "false", "inf", "nan", "_"})
MOST_DIGITS = 20
DEEPEST = 200
CLOSES = {"]": "[", ")": "(", "}": "{"}


class Token(NamedTuple):
    """One token; `kind` is string, value, number, word, mark, newline or end. Places count from 1."""

    kind: str
    text: str
    line: int
    column: int


def quoted(text: str) -> str:
    """The text as a JSON string on one line, printable characters as they are."""
    body = json.dumps(text, ensure_ascii=False)
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in body)


def name_text(text: str, reserved: frozenset[str] = RESERVED) -> str:
    """A name as the reader takes it back: bare where it is a word, else quoted."""
    return text if BARE.fullmatch(text) and text not in reserved else quoted(text)


def tokens_of(text: str) -> list[Token]:
    """All tokens of a text. Lines end at newlines outside brackets; blank lines leave no token."""
    tokens: list[Token] = []
    open_: list[Token] = []
    for number, line in enumerate(text.split("\n"), 1):
        at = 0
        while at < len(line):
            match = TOKEN.match(line, at)
            if match is None:
                raise located(number, at + 1, f"{line[at : at + 20]!r} is no token")
            at = match.end()
            if match.lastgroup != "space":
                token = Token(match.lastgroup or "", match[0], number, match.start() + 1)
                tokens.append(token)
                _follow(open_, token)
        if not open_ and tokens and tokens[-1].kind != "newline":
            tokens.append(Token("newline", "", number, len(line) + 1))
    if open_:
        raise located(open_[-1].line, open_[-1].column, f"nothing closes {open_[-1].text!r}")
    tokens.append(Token("end", "", text.count("\n") + 1, 1))
    return tokens


def _follow(open_: list[Token], token: Token) -> None:
    """Keep the brackets that are open after a token."""
    if token.text in CLOSES:
        if not open_ or open_.pop().text != CLOSES[token.text]:
            raise located(token.line, token.column, f"{token.text!r} closes nothing")
    elif token.text in CLOSES.values():
        open_.append(token)
        if len(open_) > DEEPEST:
            raise located(token.line, token.column, f"nested deeper than {DEEPEST}")


def located(line: int, column: int, message: str) -> FileError:
    """The error of a place in a text."""
    return FileError(f"line {line}, column {column}: {message}")


class TextReader:
    """A position in the tokens of a text. Every method raises FileError where something else stands."""

    def __init__(self, text: str) -> None:
        self.tokens = tokens_of(text)
        self.at = 0

    @property
    def next(self) -> Token:
        return self.tokens[self.at]

    def fail(self, expected: str) -> NoReturn:
        """Raise FileError: what is expected, and what stands at the current token instead."""
        token = self.next
        what = {"newline": "the end of the line", "end": "the end"}.get(
            token.kind, repr(token.text)
        )
        raise FileError(
            f"line {token.line}, column {token.column}: {expected} expected, not {what}"
        )

    def take(self) -> Token:
        token = self.tokens[self.at]
        self.at = min(self.at + 1, len(self.tokens) - 1)
        return token

    def sees(self, *texts: str) -> bool:
        """Whether the next token is one of these words or marks."""
        return self.next.kind in ("word", "mark") and self.next.text in texts

    def accept(self, text: str) -> bool:
        """Skip the next token if it is this word or mark."""
        if self.sees(text):
            self.at += 1
            return True
        return False

    def expect(self, text: str) -> None:
        if not self.accept(text):
            self.fail(repr(text))

    def end_line(self) -> None:
        if self.next.kind != "newline":
            self.fail("the end of the line")
        self.at += 1

    def end(self) -> None:
        if self.next.kind != "end":
            self.fail("the end")

    def name(self, what: str) -> str:
        """A word, or a quoted string, as written by `name_text`."""
        token = self.next
        if token.kind == "word" and token.text not in RESERVED:
            return self.take().text
        if token.kind != "string":
            self.fail(what)
        try:
            text = json.loads(token.text, strict=True)
        except ValueError:
            self.fail("a JSON string")
        self.at += 1
        return str(text)

    def value(self) -> int:
        """The number of a value, `%3`."""
        if self.next.kind != "value" or len(self.next.text) > MOST_DIGITS:
            self.fail("a value such as %3")
        return int(self.take().text[1:])

    def number(self) -> int | float:
        """An integer, or a float where it has a point or an exponent."""
        text = self.next.text
        if self.next.kind != "number":
            self.fail("a number")
        if re.fullmatch(r"-?\d+", text):
            if len(text) > MOST_DIGITS:
                self.fail(f"an integer of at most {MOST_DIGITS} digits")
            number: int | float = int(text)
        else:
            number = float(text)
            if number in (float("inf"), float("-inf")) and "inf" not in text:
                self.fail("a number within a double")
        self.at += 1
        return number

    def integer(self, what: str) -> int:
        if self.next.kind != "number" or not re.fullmatch(r"-?\d+", self.next.text):
            self.fail(what)
        return int(self.number())

    def names(self, what: str) -> tuple[str, ...]:
        """Names with commas between them, at least one."""
        names = [self.name(what)]
        while self.accept(","):
            names.append(self.name(what))
        return tuple(names)

    def flag(self) -> bool | None:
        """`true`, `false` or `none`."""
        if not self.sees("true", "false", "none"):
            self.fail("true, false or none")
        return {"true": True, "false": False, "none": None}[self.take().text]
