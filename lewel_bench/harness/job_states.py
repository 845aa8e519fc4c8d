"""The state of every job under a run root, with what SLURM knows, and the keys a user names."""

from collections.abc import Sequence

from lewel_bench.files import LEDGER
from lewel_bench.harness.board import extra_rows
from lewel_bench.harness.job_names import named_keys, recipes_of
from lewel_bench.harness.plan.workspace import Workspace
from lewel_bench.harness.request import JobFilter
from lewel_bench.harness.status import ORDER, JobState, survey
from lewel_bench.harness.wings import is_installed
from lewel_bench.results.store import Store
from lewel_bench.value import unknown


def job_states(
    workspace: Workspace, store: Store, asked: str | None = None, notes: list[str] | None = None
) -> dict[str, JobState]:
    """The states by key; of the cluster `asked`, else of any whose jobs are known here. What will
    happen next on a cluster is added to `notes`."""
    root, costs = workspace.root, None
    if is_installed("harness.cost"):
        from lewel_bench.harness.cost.estimate import Estimator

        costs = Estimator(store.records, root)
    states = survey(root, store, costs, workspace.catalog)
    if asked is None and not (root / LEDGER).exists():
        return states
    from lewel_bench.harness import cluster
    from lewel_bench.harness.cluster_status import with_cluster

    if asked:
        cluster.profile(workspace.site, asked)
    return with_cluster(root, states, asked, notes)


def check_states(names: Sequence[str]) -> None:
    """Raise ValueError naming the nearest state for a name that is not a state."""
    for name in names:
        if name not in ORDER:
            raise ValueError(unknown("state", name, ORDER))


def keys_of(workspace: Workspace, text: str) -> list[str]:
    """The keys that a key or a cell stands for. Raises ValueError."""
    store = Store(workspace.root)
    extras = extra_rows.all_extras(store, workspace.catalog)
    return named_keys(job_states(workspace, store), text, extras)


def selected_keys(workspace: Workspace, texts: Sequence[str], chosen: JobFilter) -> list[str]:
    """The keys of jobs named by key or cell, by what they have in common, or both. Raises
    ValueError for unknown names, and if nothing is named."""
    check_states(chosen.state)
    store = Store(workspace.root)
    states, extras = job_states(workspace, store), extra_rows.all_extras(store, workspace.catalog)
    named = {key for text in texts for key in named_keys(states, text, extras)}
    if not (texts or chosen.method or chosen.table or chosen.state):
        raise ValueError("name keys or cells, or --method, --table or --state: see status")
    wanted = named or set(states)
    if chosen.method or chosen.table:
        names = recipes_of(chosen.method, chosen.table, workspace.catalog)
        wanted &= {key for key, job in states.items() if job.recipe in names}
    return [
        key
        for key, job in states.items()
        if key in wanted
        and (not chosen.suite or job.suite == chosen.suite)
        and (not chosen.state or job.state in chosen.state)
    ]
