"""Whether pre-trained features have collapsed: their effective rank compared with that of the
untrained network on the same images."""

from collections.abc import Iterable, Mapping

from lewel_bench.pretrain.recipe import Backbone

MARK = "collapsed: "
RANK = "effective_rank"
UNTRAINED = "untrained_"  # prefix of the monitor's metrics from before the first step

# Collapsed is below this share of the untrained network's effective rank. On 1,000 photographs of
# clothes (ten classes, the recipes of the CPU-sized twins, 6 epochs) MoCo v2, LEWEL_M and SimSiam
# have 0.5 to 0.6 of it. BYOL and LEWEL_B whose targets averaged their batch-norm statistics had
# 0.09 and 0.11, and a kNN accuracy below the untrained network's; on the generated scenes that
# LEWEL_B learned (kNN 33 to 39 %, untrained 18 %) with 0.16 to 0.3.
SHARE = 0.15


def collapse_note(metrics: Mapping[str, float], backbone: Backbone) -> str:
    """The warning of a collapsed pre-training for tables, claims and records; empty for any other,
    and if the ranks were not measured."""
    rank, untrained = metrics.get(RANK), metrics.get(UNTRAINED + RANK)
    if rank is None or untrained is None or rank >= SHARE * untrained:
        return ""
    return f"{MARK}effective rank {rank:.1f} of {backbone.channels}, untrained {untrained:.1f}"


def note_among(warnings: Iterable[str]) -> str:
    """The collapse note among the warnings of a record of a pre-training or of its evaluation, or
    an empty string."""
    return next((warning for warning in warnings if warning.startswith(MARK)), "")
