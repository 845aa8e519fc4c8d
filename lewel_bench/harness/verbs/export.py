"""`lewel-bench export`: a backbone in another tool's format."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from lewel_bench.harness.request import Root, Where


def command(
    run: Annotated[
        str, Parameter(help="Key of a pre-training, as `status` shows it, or a unique name.")
    ],
    out: Annotated[Path, Parameter(help="File to write; its model card is OUT.md.")],
    /,
    *,
    to: Annotated[str, Parameter(help="torchvision, safetensors, timm, detectron2 or mmseg.")],
    licence: Annotated[
        str | None, Parameter(help="Licence in the model card (default: not stated).")
    ] = None,
    force: Annotated[bool, Parameter(help="Replace files that exist.")] = False,
    root: Root = None,
) -> int:
    """Write a backbone in another tool's format, with a model card.

    For example:
      lewel-bench export lewel_m_200ep lewel_m.pth --to torchvision
    """
    from lewel_bench.harness import export
    from lewel_bench.harness.plan.workspace import open_workspace

    folder = open_workspace(Where(root=root)).root
    for path in export.write(folder, run, out, to, licence=licence, force=force):
        print(path)
    return 0
