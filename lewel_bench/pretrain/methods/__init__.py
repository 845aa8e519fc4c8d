"""The pre-training methods by name, one file each; importing this does not import torch."""

import importlib
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from lewel_bench.pretrain.methods.settings import (
    OFFERED,
    BarlowTwinsSettings,
    BYOLSettings,
    DenseCLSettings,
    InstDiscSettings,
    LewelBSettings,
    LewelMSettings,
    MoCoV2Settings,
    PCLSettings,
    PixProSettings,
    ReSimSettings,
    Settings,
    SimCLRSettings,
    SimSiamSettings,
    SupervisedSettings,
    SwAVSettings,
)
from lewel_bench.pretrain.recipe import Recipe
from lewel_bench.pretrain.views import AUGMENTS
from lewel_bench.value import explain, unknown

if TYPE_CHECKING:
    from lewel_bench.pretrain.method import Method

METHODS: dict[str, type[Settings]] = {
    "barlow_twins": BarlowTwinsSettings,
    "byol": BYOLSettings,
    "densecl": DenseCLSettings,
    "instdisc": InstDiscSettings,
    "lewel_b": LewelBSettings,
    "lewel_m": LewelMSettings,
    "moco_v2": MoCoV2Settings,
    "pcl": PCLSettings,
    "pixpro": PixProSettings,
    "resim": ReSimSettings,
    "simclr": SimCLRSettings,
    "simsiam": SimSiamSettings,
    "supervised": SupervisedSettings,
    "swav": SwAVSettings,
}


def build(recipe: Recipe, seed: int, *, images: int = 0, classes: int = 0) -> "Method":
    """The method of `recipe`, initialised from `seed` alone (the same on every rank).

    `images` and `classes` are the numbers of the training set, for methods that keep something for
    each. Raises ValueError as `settings_of` does.
    """
    import inspect

    import torch

    from lewel_bench.pretrain import backbone
    from lewel_bench.pretrain.norm import BatchNorm, TokenNorm

    settings, group = settings_of(recipe), recipe.bn_group
    class_ = method_class(recipe, settings)
    offered = dict(zip(OFFERED, (recipe.ema, seed, images, classes), strict=True))
    parameters = inspect.signature(class_).parameters
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return class_(
            settings,
            lambda: backbone.build(recipe.backbone, lambda n: BatchNorm(n, group)),
            lambda n: TokenNorm(n, group),
            **{name: value for name, value in offered.items() if name in parameters},
        )


def method_class(recipe: Recipe, settings: Settings) -> "type[Method]":
    """The class that implements the method of `recipe` with its `settings`."""
    if recipe.own:
        from lewel_bench.pretrain import own_method

        return own_method.load_class(recipe.own, recipe.method)
    module, name = settings.class_path(recipe.method)
    class_: type[Method] = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    return class_


def settings_of(recipe: Recipe) -> Settings:
    """The settings of a recipe's method, defaults filled in and every rule checked.

    Runs the file of a user's own method. Raises ValueError for an unknown method, augmentation or
    argument, and for values that are not allowed.
    """
    _check_names(recipe)
    if recipe.own:
        from lewel_bench.pretrain import own_method

        class_ = own_method.load_settings(recipe.own, recipe.method)
        needs_ema = own_method.takes_ema(recipe.own, recipe.method)
    else:
        class_ = METHODS[recipe.method]
        needs_ema = class_.needs_ema
    try:
        settings = class_.model_validate(recipe.args, strict=True)
    except ValidationError as error:
        raise ValueError(f"{recipe.method}: args.{explain(error)}") from None
    if needs_ema and recipe.ema is None:
        raise ValueError(f"{recipe.method} has a momentum network: set ema.start")
    try:
        settings.check(recipe)
    except ValueError as error:
        raise ValueError(f"{recipe.method}: {error}") from None
    return settings


def arguments(recipe: Recipe) -> dict[str, Any]:
    """Every argument of a recipe's method with its value, as the key of a number has them.

    Runs no file: the defaults of a user's own method were stored when it was registered. Raises
    ValueError as `settings_of` does; of an own method's arguments only the names are checked.
    """
    if recipe.own:
        _check_names(recipe)
        return recipe.own.defaults | recipe.args
    return settings_of(recipe).model_dump() | recipe.args


def full_loss_epoch(recipe: Recipe) -> int:
    """The epoch (0-based) from which `recipe` has all its losses; 0 for a user's own method, whose
    file is not run."""
    return 0 if recipe.own else settings_of(recipe).full_loss_epoch


def _check_names(recipe: Recipe) -> None:
    if recipe.own is None and recipe.method not in METHODS:
        raise ValueError(unknown("method", recipe.method, METHODS))
    if recipe.augment not in AUGMENTS:
        raise ValueError(unknown("augment", recipe.augment, AUGMENTS))
    known = recipe.own.defaults if recipe.own else METHODS[recipe.method].model_fields
    for name in recipe.args:
        if name not in known:
            raise ValueError(unknown(f"argument of {recipe.method}", name, known))
