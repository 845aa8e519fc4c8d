"""The pages that `--help` prints: plain text in two columns, for terminals and pipes alike."""

import textwrap
from collections.abc import Sequence
from typing import Any

INDENT = 2
LABELS = 24  # columns of an option and its value; a longer label has a line of its own
WIDEST = 100  # columns; longer lines are hard to read


class Plain:
    """A help formatter of cyclopts, which calls it with the panels of a page."""

    def render_usage(self, console: Any, options: Any, usage: Any) -> None:
        """Print the line that shows how a command is called."""
        print(f"Usage: {str(usage).strip()}", end="\n\n")

    def render_description(self, console: Any, options: Any, description: Any) -> None:
        """Print what a command does; indented lines, such as examples, as they are."""
        text = getattr(description, "primary_renderable", description)
        for paragraph in str(text).strip().split("\n\n"):
            lines = paragraph.splitlines()
            if not any(line.startswith(" ") for line in lines):
                lines = textwrap.wrap(" ".join(lines), _width(options))
            print("\n".join(lines), end="\n\n")

    def __call__(self, console: Any, options: Any, panel: Any) -> None:
        """Print one group of options or commands."""
        entries = [entry for entry in panel.entries if entry.display_labels]
        if not entries:
            return
        print(f"{panel.title}:")
        for entry in entries:
            label = ", ".join(entry.display_labels_with_metavar)
            text = getattr(entry.description, "primary_renderable", entry.description)
            _print_row(label, f"{text or ''}{' Required.' * bool(_is_option(entry))}", options)
        print()


def _is_option(entry: Any) -> bool:
    """Whether an entry is an option that must be given; arguments show it in the usage line."""
    return entry.required and not entry.positional_label


def _print_row(label: str, text: str, options: Any) -> None:
    lines: Sequence[str] = textwrap.wrap(text, _width(options) - LABELS - INDENT) or [""]
    if len(label) >= LABELS:
        print(" " * INDENT + label)
        label = ""
    for line in lines:
        print(f"{' ' * INDENT}{label:{LABELS}}{line}".rstrip())
        label = ""


def _width(options: Any) -> int:
    return int(min(options.max_width, WIDEST))
