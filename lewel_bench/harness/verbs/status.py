"""`lewel-bench status`: the state of every job."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from lewel_bench.harness.request import FORM_HELP, Form, Names, Root, Where

if TYPE_CHECKING:
    from lewel_bench.harness.plan.workspace import Workspace
    from lewel_bench.harness.progress import Share


def command(
    *,
    state: Annotated[
        Names,
        Parameter(
            metavar="STATE",
            help="Only jobs in this state: running, queued, stuck, failed, missing, stale or done. "
            "Repeatable.",
        ),
    ] = (),
    format: Annotated[Form, Parameter(help=FORM_HELP)] = "text",
    cluster: Annotated[
        str | None, Parameter(metavar="NAME", help="Ask this cluster about its jobs.")
    ] = None,
    watch: Annotated[bool, Parameter(help="Refresh every 5 s, until Ctrl-C.")] = False,
    root: Root = None,
) -> int:
    """Show the state of every job.

    For example:
      lewel-bench status
      lewel-bench status --state failed
      lewel-bench status --cluster slurm --watch
    """
    from lewel_bench.harness.job_states import check_states
    from lewel_bench.harness.plan.workspace import open_workspace

    check_states(state)

    def show() -> int:
        return _show(open_workspace(Where(root=root)), state, format, cluster)

    if not watch:
        return show()
    from lewel_bench.harness import view

    return view.watch(show)


def _show(workspace: "Workspace", chosen: Sequence[str], format: Form, cluster: str | None) -> int:
    from lewel_bench.harness.board.reader import warn
    from lewel_bench.harness.job_states import job_states
    from lewel_bench.harness.progress import shares
    from lewel_bench.harness.status import ORDER
    from lewel_bench.results.store import Store

    store = Store(workspace.root)
    notes: list[str] = []
    states = list(job_states(workspace, store, cluster, notes).values())
    shown = [job for job in states if not chosen or job.state in chosen]
    shown.sort(key=lambda job: ORDER.index(job.state))
    warn(store)
    methods, tables = shares(states)
    if format == "json":
        lists: dict[str, Sequence[Any]] = {"jobs": shown, "methods": methods, "tables": tables}
        entries = {name: [vars(entry) for entry in values] for name, values in lists.items()}
        print(_json_lines({**entries, "cluster": [{"note": note} for note in notes]}))
        return 0
    from lewel_bench.harness import view

    rows = [(j.state, j.key, j.kind, j.name, str(j.seed), j.suite, j.reason) for j in shown]
    view.show_list(("state", "key", "kind", "name", "seed", "suite", "why"), rows)
    if methods:
        columns = ("", "suite", "done", "planned", "device-hours", "remaining")
        print()
        view.show_list(columns, [_share_row(share) for share in (*methods, *tables)])
        print()
    counts = {state: sum(job.state == state for job in states) for state in ORDER}
    summary = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    print(f"{workspace.root}: {summary or 'no jobs yet'}")
    for note in notes:
        print(note)
    return 0


def _json_lines(lists: dict[str, list[dict[str, Any]]]) -> str:
    """JSON with a line for each entry: ten thousands of jobs are written and read as fast."""
    parts = (
        f"{json.dumps(name)}: [\n"
        + ",\n".join(json.dumps(entry, default=vars) for entry in entries)
        + "\n]"
        for name, entries in lists.items()
    )
    return "{" + ", ".join(parts) + "}"


def _share_row(share: "Share") -> tuple[str, ...]:
    unknown = f", {share.unknown} jobs unknown" if share.unknown else ""
    remaining = f"{share.hours_to_go:.3g}{unknown}"
    counts = (str(share.done), str(share.jobs))
    return (share.name, share.suite, *counts, f"{share.spent_hours:.3g}", remaining)
