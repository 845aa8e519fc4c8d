"""What stands in a cell of a table: published value, measured value, difference and verdict."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from lewel_bench.results.fill import Entry, FilledTable
from lewel_bench.results.table import ORIGINS, Column

BLANK = "–"
LETTERS = "ᵃᵇᶜᵈᵉᶠᵍʰⁱʲᵏˡᵐⁿᵒᵖʳˢᵗᵘᵛʷˣʸᶻ"  # Unicode has no raised q
SIGNS = {"reproduced": "=", "differs": "≠", "inconclusive": "?"}  # of a verdict
NEUTRAL = "/"  # between two values that are not compared


@dataclass(frozen=True)
class Cell:
    """What stands in one place: a value, bold where it is the `best`, what follows it, and what
    is to be told `about` it where there is room. `look` is the verdict or state that may colour
    it."""

    value: str
    rest: str = ""
    best: bool = False
    about: str = ""
    look: str = ""

    def __str__(self) -> str:
        return self.value + self.rest

    def drawn(self, escape: Callable[[str], str], bold: str) -> str:
        """Its text in a language: `escape` makes a text harmless, `bold` is such as "**{}**"."""
        value = escape(self.value)
        return (bold.format(value) if self.best else value) + escape(self.rest)


class CellTexts:
    """The cells of a filled table as texts, with the `notes` that they refer to by number, and the
    letters that mark the settings of columns that mix several."""

    def __init__(self, filled: FilledTable) -> None:
        self.filled = filled
        entries = filled.entries.values()
        notes = [entry.note for entry in entries if entry.note]
        notes += [text for entry in entries for text in (*entry.caveats, self._why(entry)) if text]
        self.notes = tuple(dict.fromkeys(notes))
        mixed = {column.id: filled.mixed(column.id) for column in filled.table.columns}
        settings = list(dict.fromkeys(setting for group in mixed.values() for setting in group))
        self._marks = {
            (column, setting): _letter(settings.index(setting))
            for column, group in mixed.items()
            for setting in group
        }

    def legend(self) -> tuple[str, ...]:
        """What the letters mean."""
        named = dict.fromkeys(f"{mark} {setting}" for (_, setting), mark in self._marks.items())
        text = f"Some columns mix measurement settings: {'; '.join(named)}."
        return (text,) if named else ()

    def published(self, column: Column, entry: Entry | None) -> Cell:
        """The published value."""
        if entry is None or entry.published is None:
            return Cell(BLANK)
        about = "; ".join(filter(None, (ORIGINS[entry.origin], entry.note)))
        value = f"{entry.published:.{column.digits}f}"
        return Cell(value, self._mark(entry.note), entry.best_published, about)

    def measured(self, column: Column, entry: Entry | None) -> Cell:
        """The mean with its standard deviation and seeds."""
        if entry is None or entry.mean is None:
            return Cell(BLANK)
        digits = column.digits
        spread = "" if entry.std is None else f" ± {entry.std:.{digits}f}"
        seeds = f"{entry.n}" if entry.n == entry.wanted else f"{entry.n} of {entry.wanted}"
        trials = "" if entry.trial_std is None else f", trials ± {entry.trial_std:.{digits}f}"
        mark = self._marks.get((column.id, entry.setting), "")
        rest = f"{spread} ({seeds}{trials}){mark}{''.join(map(self._mark, entry.caveats))}"
        records = f"records {', '.join(entry.keys)}"
        behind = (entry.setting, *entry.where, records, *entry.caveats, *entry.elsewhere)
        mean = f"{entry.mean:.{digits}f}".replace("-", "−")
        return Cell(mean, rest, entry.best, "; ".join(filter(None, behind)))

    def difference(self, column: Column, entry: Entry | None) -> Cell:
        """Measured minus published."""
        if entry is None or entry.delta is None:
            return Cell(BLANK)
        return Cell(signed(entry.delta, column.digits))

    def verdict(self, column: Column, entry: Entry | None) -> Cell:
        """The verdict, with the state where that says more."""
        if entry is None or entry.state is None:
            return Cell(BLANK)
        state = f"; {entry.state}" if entry.state not in ("done", entry.verdict) else ""
        about = "; ".join((*entry.reasons, *entry.incomparable))
        return Cell(f"{entry.verdict}{state}", self._mark(self._why(entry)), about=about)

    def compact(self, column: Column, entry: Entry | None) -> Cell:
        """Measured value (or state), the sign of the verdict and the published value."""
        if entry is None:
            return Cell(BLANK)
        measured, look = self.measured(column, entry), str(entry.verdict)
        rest, sign = measured.rest + self._mark(self._why(entry)), SIGNS.get(look, NEUTRAL)
        if entry.mean is None:
            look = entry.state or ""
            if look not in ("", "missing"):
                measured = Cell(look)
        if entry.published is not None:
            rest += f" {sign} {self.published(column, entry)}"
        return replace(measured, rest=rest, look=look)

    def _why(self, entry: Entry) -> str:
        """The note on a number that cannot be compared; where nothing in a table can be, a remark
        says so."""
        if not entry.incomparable or not self.filled.comparable:
            return ""
        return f"Not comparable: {'; '.join(entry.incomparable)}."

    def _mark(self, note: str) -> str:
        return f" [{self.notes.index(note) + 1}]" if note else ""


def _letter(index: int) -> str:
    more, last = divmod(index, len(LETTERS))
    return (_letter(more - 1) if more else "") + LETTERS[last]


def signed(value: float, digits: int) -> str:
    """A difference with its sign, which a rounded zero has not."""
    text = f"{value:+.{digits}f}"
    return text.replace("-", "−") if float(text) else text[1:]
