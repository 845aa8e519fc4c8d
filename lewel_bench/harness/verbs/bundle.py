"""`lewel-bench bundle`: pack records for others, or verify such a file."""

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from lewel_bench.harness.request import Root, Where


def command(
    file: Annotated[Path, Parameter(help="Zip file to write; with --verify the file to check.")],
    /,
    *,
    verify: Annotated[bool, Parameter(help="Check a bundle byte by byte.")] = False,
    weights: Annotated[bool, Parameter(help="Pack the trained weights too.")] = False,
    force: Annotated[bool, Parameter(help="Replace a file that exists.")] = False,
    root: Root = None,
) -> int:
    """Pack records, specs, logs and predictions with their hashes into a zip, or verify one.

    For example:
      lewel-bench bundle results.zip
      lewel-bench bundle results.zip --verify
    """
    from lewel_bench.harness.bundles import bundle
    from lewel_bench.harness.plan.workspace import open_workspace
    from lewel_bench.value import format_bytes

    if verify:
        given = {"weights": weights, "force": force, "root": root}
        if unused := [f"--{name}" for name, value in given.items() if value]:
            raise ValueError(f"--verify only reads {file}: leave out {', '.join(unused)}")
        packed = bundle.verify(file)
    else:
        folder = open_workspace(Where(root=root)).root
        packed = bundle.write(folder, file, weights=weights, force=force)
    for text in packed.left_out:
        print(f"warning: left out: {text}", file=sys.stderr)
    total = format_bytes(sum(content.size for content in packed.files.values()))
    intact = ", all unchanged" if verify else ""
    print(
        f"{file}: {len(packed.keys)} records, {len(packed.files)} files, {total}{intact}; "
        f"sha256 {packed.digest}"
    )
    return 0
