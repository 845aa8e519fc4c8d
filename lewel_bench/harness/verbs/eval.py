"""`lewel-bench eval`: evaluate a checkpoint that was trained elsewhere."""

from lewel_bench.harness.request import Command, Compute, Evals, Import, Where


def command(
    *,
    source: Import,
    evals: Evals = Evals(),
    where: Where = Where(),
    compute: Compute = Compute(),
) -> int:
    """Evaluate a checkpoint trained elsewhere; jobs that have a record are skipped.

    For example:
      lewel-bench eval --name moco-official --checkpoint moco_v2_200ep.pth.tar
      lewel-bench eval --name mine --checkpoint net.pth --as moco_v2_200ep
    """
    from lewel_bench.harness import checkpoint_import
    from lewel_bench.harness.plan.workspace import open_workspace

    workspace = open_workspace(where, needs_data=True)
    again = Command("eval", (source, evals, where, compute))
    return checkpoint_import.evaluate(workspace, source, evals, compute, again)
