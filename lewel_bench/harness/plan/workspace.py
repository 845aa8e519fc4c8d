"""Where a command works: the run root, suite, data sets and settings that its options come to."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lewel_bench.files import follow_group
from lewel_bench.harness.plan import plugins, site, suites
from lewel_bench.harness.plan.catalog import Catalog, ScaledCatalog, chosen_settings
from lewel_bench.harness.plan.datasets import Datasets
from lewel_bench.harness.plan.site import Site
from lewel_bench.harness.plan.suite import Suite
from lewel_bench.harness.request import Where


@dataclass(frozen=True)
class Workspace:
    """What the options of a `Where` come to on this machine."""

    where: Where
    site: Site
    root: Path
    suite: Suite
    datasets: Datasets
    catalog: Catalog

    def choices(self, protocols: Iterable[str]) -> list[tuple[str, Any]]:
        """The settings that --refit, --lrs and --engine stand for with these protocols."""
        where = self.where
        engines = list(dict.fromkeys(where.engine))
        known = [self.catalog.protocols[name] for name in protocols]
        return chosen_settings(known, refit=where.refit, lrs=where.lrs, engines=engines)

    def settings(self, protocols: Iterable[str]) -> tuple[tuple[str, Any], ...]:
        """All settings of recipes and of these protocols."""
        return (*self.where.set, *self.choices(protocols))

    def scaled(self, protocols: Iterable[str]) -> ScaledCatalog:
        """The catalogue at the suite's scale, with all settings of these protocols applied."""
        return ScaledCatalog(self.catalog, self.suite, list(self.settings(protocols)))


def open_workspace(where: Where, *, needs_data: bool = False) -> Workspace:
    """The workspace of some options; `needs_data`: data
    sets are not only named in keys but read. Raises ValueError for a site file, suite or run root
    that cannot be used."""
    here = site.load()
    root = where.root.expanduser().resolve() if where.root else here.resolve(here.runs)
    if root.exists() and not root.is_dir():
        raise ValueError(f"the run root {root} is a file: name a folder with --root")
    follow_group(root)
    catalog = plugins.load(root)
    suite = suites.get(where.suite, here)
    datasets = Datasets(here, root, suite, dict(where.data), needed=needs_data)
    return Workspace(where, here, root, suite, datasets, catalog)
