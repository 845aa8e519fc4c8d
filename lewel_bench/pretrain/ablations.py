"""The ablations of the paper as changes of a recipe: Tables 5, 6 and 7, Figures 3a and 3b.

All are runs of 240 epochs on ImageNet-100. Rows that are recipes of their own are not repeated:
"global loss only" is `moco_v2_in100`, the full models are `lewel_m_in100` and `lewel_b_in100`, and
BYOL's row is `byol_in100`. Figure 3 prints no numbers: its grids are ours.
"""

from typing import Any, NamedTuple

LEWEL = "LEWEL, CVPR 2022 (arXiv 2203.14898)"


class Ablation(NamedTuple):
    """A recipe family that is another one (`of`) with `settings` changed."""

    of: str
    label: str
    source: str
    settings: dict[str, Any]


def _table(number: int, text: str = "") -> str:
    return f"{LEWEL} Table {number}{text}"


_COUPLING = {
    "lewel_m_align": Ablation(
        "lewel_m",
        "LEWEL_M, aligned loss only",
        _table(5, ", row 2: maps of a projector of their own, which no global loss trains"),
        {"args.maps": "uncoupled", "args.beta": 1.0},
    ),
    "lewel_m_uncoupled": Ablation(
        "lewel_m",
        "LEWEL_M, uncoupled",
        _table(5, ", row 3: both losses, maps of a projector of their own"),
        {"args.maps": "uncoupled"},
    ),
}
_HEADS = {
    "moco_v2_d256": Ablation("moco_v2", "MoCo v2, d=256", _table(6), {"args.dim": 256}),
    "moco_v2_d512": Ablation("moco_v2", "MoCo v2, d=512", _table(6), {"args.dim": 512}),
    "moco_v2_p": Ablation(
        "lewel_m",
        "MoCo v2, extra p",
        _table(6, ": LEWEL_M with p on GAP(F) in place of the aligned representations"),
        {"args.maps": "none"},
    ),
    "lewel_m_no_p": Ablation(
        "lewel_m", "LEWEL_M without p", _table(6, ": g is p as well"), {"args.semantic": False}
    ),
    "lewel_m_random": Ablation(
        "lewel_m", "LEWEL_M, random maps", _table(6), {"args.maps": "random"}
    ),
    "lewel_m_uniform": Ablation(
        "lewel_m",
        "LEWEL_M, uniform maps",
        "control, not in the paper: GAP(F) in place of every aligned representation",
        {"args.maps": "uniform"},
    ),
}
_GROUPS = {
    f"lewel_b_d{d}_h{h}": Ablation(
        "lewel_b", f"LEWEL_B, d={d}, h={h}", _table(7), {"args.d": d, "args.h": h}
    )
    for d, h in ((512, 4), (256, 1), (256, 2), (256, 8), (256, 16), (128, 4), (64, 4))
}
_BETA = {
    f"lewel_m_beta{round(100 * beta):03}": Ablation(
        "lewel_m", f"LEWEL_M, β={beta:g}", f"{LEWEL} Figure 3a (grid ours)", {"args.beta": beta}
    )
    for beta in (0.0, 0.1, 0.3, 0.7, 0.9, 1.0)
}
_WIDTH = {
    f"lewel_m_c{c}": Ablation(
        "lewel_m", f"LEWEL_M, c={c}", f"{LEWEL} Figure 3b (grid ours)", {"args.c": c}
    )
    for c in (8, 16, 32, 64, 256)
}
_CHECKS = {
    "lewel_m_h1": Ablation("lewel_m", "LEWEL_M, h=1", f"{LEWEL} Section 3.4 (h=1)", {"args.h": 1}),
    "lewel_m_queue16384": Ablation(
        "lewel_m",
        "LEWEL_M, queue 16384",
        "CMC's queue on ImageNet-100 (HobbitLong/CMC @7b227be); LEWEL's is not stated",
        {"args.queue": 16384},
    ),
    "moco_v2_lr03": Ablation(
        "moco_v2",
        "MoCo v2, lr .03",
        f"{LEWEL} Section 3.3 doubles the lr of LEWEL only: the baseline without",
        {"optimizer.lr": 0.03},
    ),
}

ABLATIONS: dict[str, Ablation] = {
    **_COUPLING,
    **_HEADS,
    **_GROUPS,
    **_BETA,
    **_WIDTH,
    **_CHECKS,
}
