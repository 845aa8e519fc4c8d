"""`lewel-bench run`: from a selection of methods and tables to finished jobs."""

from dataclasses import replace

from lewel_bench.harness.request import Budget, Command, Compute, Evals, Selection, Where


def command(
    *,
    selection: Selection = Selection(),
    evals: Evals = Evals(),
    budget: Budget = Budget(),
    where: Where = Where(),
    compute: Compute = Compute(),
) -> int:
    """Pre-train and evaluate; jobs that have a record are skipped.

    For example:
      lewel-bench run --suite shapes --method lewel_m --epochs 200
      lewel-bench run --table 1 --seeds 3 --cluster slurm
      lewel-bench run --table all --budget 500gpuh --dry-run
    """
    from lewel_bench.harness.jobs.launch import Launch, launch, note_unused_data
    from lewel_bench.harness.plan import plan, plugins
    from lewel_bench.harness.plan.workspace import open_workspace

    workspace = open_workspace(where, needs_data=True)
    keep = not compute.dry_run
    methods, catalog = plugins.with_methods(
        selection.method, workspace.root, workspace.catalog, keep=keep
    )
    catalog = plugins.with_protocols(evals.evals, catalog)
    workspace = replace(workspace, catalog=catalog)
    jobs = plan.plan(replace(selection, method=methods), evals, workspace)
    note_unused_data(workspace)
    kept = replace(selection, method=tuple(map(plugins.with_copies, selection.method)))
    again = Command("run", (kept, evals, budget, where, compute))
    return launch(Launch(workspace, jobs, again, compute, budget))
