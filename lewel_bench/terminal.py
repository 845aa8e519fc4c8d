"""The standard streams of a process: closed, in another encoding than UTF-8, or a pipe that nobody
reads any more; and text of others, which must not steer a terminal."""

import codecs
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

_PLAIN = {
    "–": "-", "—": "-", "−": "-", "⁻": "-", "…": "...", "‘": "'", "’": "'", "“": '"', "”": '"',
    "†": "+", "‡": "++", "±": "+/-", "×": "x", "·": ".", "≤": "<=", "≥": ">=", "≈": "~", "≠": "!=",
    "←": "<-", "→": "->", "√": "sqrt",
}  # fmt: skip


def prepare() -> None:
    """Make standard input, output and error safe to use; to be called before any other file is
    opened.

    A stream that is closed reads and writes nothing: without this the next file to be opened would
    take its place. Characters that an encoding lacks are written with those that it has. Standard
    error is what a computation says of itself, so that it cannot be written is no error.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, _nothing(number))
    codecs.register_error("plain", _plain)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="plain")  # type: ignore[union-attr]
    sys.stderr = cast(TextIO, _Forgiving(sys.stderr))


@contextmanager
def escaped() -> Iterator[None]:
    """Control characters in what is printed within appear as escapes: names, commands and messages
    may come from records of others."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast(TextIO, _Escaping(stream)) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def unescaped(stream: TextIO) -> TextIO:
    """The stream below an escaping one, for control sequences of our own."""
    return stream.below if isinstance(stream, _Escaping) else stream


def discard(stream: TextIO) -> None:
    """From now on what is written to `stream`, and what waits in its buffer, goes nowhere."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


class _Escaping:
    """A stream that control characters do not pass, but for the ends of lines and tabs."""

    def __init__(self, stream: TextIO) -> None:
        self.below = stream

    def write(self, text: str) -> int:
        from lewel_bench.value import printable  # loads pydantic, which --help has no use for

        self.below.write(printable(text, keep="\n\t"))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.below, name)


class _Forgiving:
    """A stream that is discarded where it cannot be written: a full disk, a pipe without a reader,
    a terminal that was closed."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except OSError:
            discard(self._stream)
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            discard(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _nothing(number: int) -> TextIO:
    """The null device in the place of standard stream `number`, for child processes too."""
    null = os.open(os.devnull, os.O_RDWR)
    try:
        os.fstat(number)
    except OSError:
        os.dup2(null, number)
        os.close(null)
        null = number
    os.set_inheritable(null, True)
    return open(null, "w" if number else "r", encoding="utf-8", closefd=False)


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Characters that the encoding lacks, in ASCII: typography and Greek as one would type them,
    all others as an escape that JSON reads too."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(
        _PLAIN.get(character) or _described(character) for character in lacking
    ), error.end


def _described(character: str) -> str:
    import unicodedata

    name = unicodedata.name(character, "")
    if name.startswith("GREEK"):
        word = name.split()[-1].lower()
        return word.capitalize() if "CAPITAL" in name else word
    if unicodedata.category(character) in ("Lm", "No"):  # superscripts
        return unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[i : i + 4]}" for i in range(0, len(units), 4))
