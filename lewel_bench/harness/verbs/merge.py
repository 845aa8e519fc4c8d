"""`lewel-bench merge`: import the records of a bundle."""

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from lewel_bench.harness.request import Root, Where


def command(
    bundle: Annotated[Path, Parameter(help="Zip file that `bundle` wrote.")],
    /,
    *,
    root: Root = None,
) -> int:
    """Import another lab's records; existing records never change.

    If a key exists with a different result, both are kept and the conflict is shown.

    For example:
      lewel-bench merge results.zip
    """
    from lewel_bench.harness.bundles.bundle import verify
    from lewel_bench.harness.bundles.merge import merge
    from lewel_bench.harness.plan.workspace import open_workspace
    from lewel_bench.results.store import Store, conflict_messages

    folder = open_workspace(Where(root=root)).root
    merged = merge(verify(bundle), folder)
    for text in conflict_messages(Store(folder)):
        print(text)
    for key, why in merged.quarantined.items():
        print(f"{key} is kept out of the tables: {why}", file=sys.stderr)
    for key, why in merged.skipped.items():
        print(f"{key} was skipped: {why}", file=sys.stderr)
    print(
        f"{folder}: {len(merged.imported)} records imported, {len(merged.identical)} identical, "
        f"{len(merged.conflicting)} conflicting (both results are kept)"
        + (f", {len(merged.quarantined)} of another network" if merged.quarantined else "")
    )
    return 1 if merged.skipped else 0
