"""The command `lewel-bench`: registers the verbs, and turns what they raise into exit codes.

A verb is a file of `verbs/` with a `command`, which is imported only when it is called or its help
is printed.
"""

import sys
from collections.abc import Sequence
from itertools import pairwise

from cyclopts import App, CycloptsError, Group, Parameter
from cyclopts.exceptions import CoercionError, MissingArgumentError, UnusedCliTokensError

from lewel_bench import __version__, terminal
from lewel_bench.files import described
from lewel_bench.harness.help import Plain

MISTAKE = 2  # exit code for a mistake that the user can correct
# the verbs by group, as `--help` lists them
GROUPS = {
    "Compute": ("run", "eval", "status", "logs", "cancel", "retry"),
    "Results": ("table", "explain", "claims", "figure", "report"),
    "Exchange": ("bundle", "merge", "export"),
    "Setup": ("doctor", "data", "ls", "gc"),
}
VERBS = [verb for verbs in GROUPS.values() for verb in verbs]
START = """\
Three next steps, without a GPU:

  lewel-bench doctor
      check the installation
  lewel-bench run --suite shapes --method lewel_m --epochs 200 --evals linear
      pre-train LEWEL_M on generated images and evaluate it
  lewel-bench table 1 --suite shapes
      print Table 1 with the number that was measured

All commands: lewel-bench --help"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; the exit code: 0 done, 1 something failed, 2 a mistake in what was asked,
    128 + n stopped by signal n after saving."""
    if argv is None:
        terminal.prepare()
    with terminal.escaped():
        return _run(sys.argv[1:] if argv is None else list(argv))


def _run(words: list[str]) -> int:
    try:
        code = _call(words)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # `lewel-bench ls recipes | head`
        terminal.discard(sys.stdout)
        return 0
    except KeyboardInterrupt:
        return 130
    except CycloptsError as error:
        message = _parse_message(error)
    except (ValueError, OSError) as error:
        message = described(error)
    print(f"lewel-bench: {message}", file=sys.stderr)
    return MISTAKE


def _call(words: list[str]) -> int:
    if not words:
        print(START)
        return 0
    _check_words(words)
    parser = app()
    if words[0].startswith("-"):  # help and completion are about all verbs
        for verb in VERBS:
            parser[verb]
    command, bound, _ = parser.parse_args(words, print_error=False, exit_on_error=False)
    code = command(*bound.args, **bound.kwargs)
    if words in (["data"], ["figure"]):  # which were answered with their help
        return MISTAKE
    return code if isinstance(code, int) else 0


def app() -> App:
    """The command line; its verbs are imported when they are asked for."""
    about = Group("Help", sort_key=9)
    top = App(
        name="lewel-bench",
        help="Pre-train LEWEL and its baselines, evaluate them under the paper's protocols, and "
        "print the paper's tables with measured numbers next to the published ones.\n\n"
        "For example:\n"
        "  lewel-bench run --suite shapes --method lewel_m --epochs 200\n"
        "  lewel-bench table 1 --suite shapes\n\n"
        "`lewel-bench VERB --help` explains a command.",
        version=f"lewel-bench {__version__}",
        help_format="plaintext",
        help_formatter=Plain(),
        default_parameter=Parameter(negative=(), show_default=False, allow_repeating=True),
        group_parameters=Group("Options", sort_key=0),
        group_arguments=Group("Arguments", sort_key=-1),
    )
    for order, (title, verbs) in enumerate(GROUPS.items()):
        group = Group(title, sort_key=order)
        for place, verb in enumerate(verbs):
            path = f"lewel_bench.harness.verbs.{verb}:command"
            top.command(path, name=verb, group=group, sort_key=place)
    top.register_install_completion_command(
        help="Install completion of commands and options for your shell.", group=about
    )
    for flag in (*top.help_flags, *top.version_flags):
        top[flag].group = about
    top["--help"].help = "Print this page; after a command, the page of that command."
    top["--version"].help = "Print the version."
    return top


def _check_words(words: Sequence[str]) -> None:
    """Raise ValueError for an unknown verb, and for an option whose value is empty, such as
    "$BUDGET" where that is not set: taken for no restriction it would start everything."""
    if not words[0].startswith("-") and words[0] not in VERBS:
        from lewel_bench.value import unknown

        raise ValueError(unknown("command", words[0], VERBS))
    for option, following in pairwise([*words, "none"]):
        name, equals, own = option.partition("=")
        value = own if equals else following
        if name.startswith("--") and len(name) > 2 and not value.strip(" ,"):
            raise ValueError(f"{name} is empty: give it a value, or leave it out")


def _parse_message(error: CycloptsError) -> str:
    """What is wrong with a command line, on one line."""
    verb = " ".join(error.command_chain or ())
    more = f". See lewel-bench {verb} --help" if verb else ""
    if isinstance(error, CoercionError) and isinstance(error.__cause__, ValueError):
        return str(error.__cause__)  # from a parser of ours, which names the option
    if isinstance(error, MissingArgumentError) and error.argument:
        if error.keyword or error.argument.tokens:
            return f"{error.keyword or error.argument.name} needs a value{more}"
        return f"{error.argument.name} is missing{more}"
    if isinstance(error, UnusedCliTokensError):
        extra = " ".join(error.unused_tokens or ())
        return f"unexpected argument: {extra}{more}"
    text = " ".join(str(error).split())
    return text[:1].lower() + text[1:]


if __name__ == "__main__":
    sys.exit(main())
