"""Networks with the pretrained weights of their library, and what these expect of images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import nn

from torchkeep.errors import FileMissing, MissingExtra, WrongArgument
from torchkeep.networks import build
from torchkeep.training.data.preprocessing import Preprocessing, of_timm, of_torchvision


@dataclass(frozen=True, slots=True)
class Pretrained:
    """A network with the weights of its library."""

    model: nn.Module
    """The network, with the outputs of its library."""
    arch: str
    """Its name, as `torchkeep.networks.build` takes it."""
    weights: str
    """Where its values come from, in words."""
    preprocessing: Preprocessing
    """What the weights expect of images."""


def pretrained(arch: str) -> Pretrained:
    """Return a network of torchvision or timm with their weights.

    Args:
        arch: its name, with or without that of the library; torchvision's comes first.

    Raises:
        WrongArgument: it is code of one's own, or the library has no such network or no weights.
        FileMissing: the weights are not here and can't be fetched.
        MissingExtra: the library is not installed.
    """
    if ":" in arch:
        raise WrongArgument(
            f"{arch} is code of your own, for which no library has weights",
            advice="Give a file with --weights, or --weights none.",
        )
    library, _, name = arch.rpartition("/")
    if library != "timm" and _is_in_torchvision(name):
        model, weights, recipe = _of_torchvision(name)
        return Pretrained(model, f"torchvision/{name}{arguments_of(model)}", weights, recipe)
    model, weights, recipe = _of_timm(name)
    return Pretrained(model, f"timm/{name}", weights, recipe)


def arguments_of(model: nn.Module) -> str:
    """Return the arguments by which a network of torchvision with weights differs from one without.

    `vit_h_14` then takes images of 518 pixels, and not 224; GoogLeNet has no auxiliary outputs.
    """
    told = {"image_size": 224, "aux_logits": True}
    found = {name: vars(model).get(name, usual) for name, usual in told.items()}
    others = [f"{name}={x}" for name, x in found.items() if x != told[name]]
    return f"({', '.join(others)})" if others else ""


def _is_in_torchvision(name: str) -> bool:
    try:
        from torchvision import models  # type: ignore[import-untyped]
    except ModuleNotFoundError:
        return False
    return name in models.list_models(module=models)


def _of_torchvision(name: str) -> tuple[nn.Module, str, Preprocessing]:
    from torchvision import models

    weights = models.get_model_weights(name).DEFAULT
    try:
        model: nn.Module = models.get_model(name, weights=weights)
        if hasattr(model, "transform_input"):
            model.transform_input = False  # type: ignore[assignment] # see `of_torchvision`
    except (URLError, OSError, RuntimeError) as error:
        cache = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rpartition("/")[2]
        raise FileMissing(
            f"the weights {weights} of {name} are not here and can't be fetched ({error})",
            advice=f"Fetch {weights.url} where there is a network, and put it at {cache}; or give "
            "a file with --weights.",
        ) from None
    return model, f"torchvision's {weights}", of_torchvision(weights)


def _of_timm(name: str) -> tuple[nn.Module, str, Preprocessing]:
    try:
        import timm
    except ModuleNotFoundError:
        raise MissingExtra.for_modules("a network of timm", ["timm"], "train") from None
    base, _, arguments = name.removesuffix(")").partition("(")
    if not timm.is_model(base):
        build(name)  # says which names there are
    if not timm.models.is_model_pretrained(base):
        raise WrongArgument(
            f"timm has no weights for {base}", advice="Give a file, or --weights none."
        )
    try:
        model = build(f"timm/{base}(pretrained=True, {arguments})")
    except WrongArgument:
        raise
    except Exception as error:  # whatever its hub's client raises
        config: Any = timm.get_pretrained_cfg(base)
        raise FileMissing(
            f"the weights of timm/{base} are not here and can't be fetched "
            f"({type(error).__name__})",
            advice=f"Fetch {config.hf_hub_id or config.url} where there is a network, and give "
            "the file with --weights.",
        ) from None
    told: Any = model.pretrained_cfg
    return model, f"timm's {base}.{told.get('tag') or 'default'}", of_timm(told)


def usual_preprocessing(arch: str) -> Preprocessing | None:
    """Return what the library's own weights of a network expect; None if it has none."""
    library, _, name = arch.partition("(")[0].rpartition("/")
    try:
        if library != "timm" and _is_in_torchvision(name):
            from torchvision import models

            return of_torchvision(models.get_model_weights(name).DEFAULT)
        import timm

        config: Any = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
        return None if config is None else of_timm(config.to_dict())
    except (ModuleNotFoundError, ValueError):
        return None
