"""Networks by name: torchvision's, timm's, and the user's own, without weights."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable
from difflib import get_close_matches
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from torchkeep.errors import MissingExtra, WrongArgument
from torchkeep.identify import inspect as identify
from torchkeep.wording import printable, shortened

_NAME = re.compile(r"(?:(torchvision|timm)/)?([\w.\-]+)(?:\((.*)\))?")
_ARGUMENT = r"(?:aux_(?:logits|loss)=(?:True|False)|(?:image|img|patch)_size=\d{1,4})"
_OF_LIBRARY = re.compile(
    rf"(?:(?:torchvision|timm)/)?[\w.\-]+(?:\({_ARGUMENT}(?:, {_ARGUMENT})*\))?"
)
_OWN = re.compile(r"([\w.]+):([\w.]+)")


def build(
    name: str,
    *,
    num_classes: int | None = None,
    input_channels: int | None = None,
    device: str | torch.device = "cpu",
) -> torch.nn.Module:
    """Return a network with fresh values.

    Args:
        name: as `inspect` names them: `torchvision/resnet18`, `timm/vit_tiny_patch16_224`,
            `torchvision/googlenet(aux_logits=False)`. Without a library, torchvision is asked
            first. `module:callable` is imported and called: code of the user's own.
        num_classes: the number of classes, if not the default.
        input_channels: the number of input channels, if not the default; timm's models take it.
        device: where its tensors are made. `meta` takes no memory; a network that computes with
            its parameters while it is made is made on the CPU, and moved.

    Raises:
        WrongArgument: there is no such network, or it has no such argument.
        MissingExtra: its library is not installed.
    """
    make, arguments = _maker(name)
    if num_classes is not None:
        arguments["num_classes"] = num_classes
    if input_channels is not None:
        arguments["in_chans"] = input_channels
    try:
        try:
            with torch.device(device):
                made = make(**arguments)
        except NotImplementedError:  # it computes with values, and meta has none
            made = make(**arguments).to(device)
    except TypeError as error:
        raise WrongArgument(
            f"{name} can't be made with {_written(arguments)}: {error}",
            advice="Leave the option out, or build the model in Python.",
        ) from None
    if not isinstance(made, torch.nn.Module):
        raise WrongArgument(f"{name} gave a {type(made).__name__}, and no torch.nn.Module")
    return made


def _written(arguments: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in arguments.items()) or "no arguments"


def _maker(name: str) -> tuple[Callable[..., Any], dict[str, Any]]:
    own = _OWN.fullmatch(name)
    if own:
        return _own(*own.groups()), {}
    found = _NAME.fullmatch(name)
    if not found:
        raise WrongArgument(
            f"{name!r} is no name of a network",
            advice="Write torchvision/resnet18, timm/resnet18 or module:callable.",
        )
    library, model, text = found.groups()
    arguments = _parsed(name, text or "")
    makers = [_MAKERS[library]] if library else list(_MAKERS.values())
    for maker in makers:
        made = maker(model)
        if made is not None:
            return made[0], made[1] | arguments
    near = get_close_matches(model, sorted(_all_names(library)), n=3)
    raise WrongArgument(
        f"there is no network called {shortened(repr(name), 200)}",
        advice=f"Is it {' or '.join(near)}?" if near else "Check its name.",
    )


def _parsed(name: str, text: str) -> dict[str, Any]:
    """Return keyword arguments that are written as Python has them."""
    try:
        call = ast.parse(f"f({text})", mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            raise ValueError
        return {str(item.arg): ast.literal_eval(item.value) for item in call.keywords}
    except (SyntaxError, ValueError):
        raise WrongArgument(f"the arguments in {name!r} can't be read") from None


def _torchvision(model: str) -> tuple[Callable[..., Any], dict[str, Any]] | None:
    models = _library("torchvision.models")
    if model not in models.list_models():
        return None
    builder = models.get_model_builder(model)
    parameters = inspect.signature(builder).parameters
    known = {key: None for key in ("weights", "weights_backbone") if key in parameters}
    # These two warn unless they are told what is the default anyway.
    told = {"init_weights": True} if model in ("googlenet", "inception_v3") else {}
    return builder, known | told


def _timm(model: str) -> tuple[Callable[..., Any], dict[str, Any]] | None:
    timm = _library("timm")
    if not timm.is_model(model):
        return None
    return timm.create_model, {"model_name": model, "pretrained": False}


_MAKERS = {"torchvision": _torchvision, "timm": _timm}


def _all_names(library: str | None) -> set[str]:
    modules = {"torchvision": "torchvision.models", "timm": "timm"}
    chosen = [module for key, module in modules.items() if library in (None, key)]
    return {str(name) for module in chosen for name in _library(module).list_models()}


def _library(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        raise MissingExtra.for_modules("a network by name", [str(error.name)], "train") from None


def is_of_library(name: str) -> bool:
    """Whether a name can only mean a network of torchvision or timm, with nothing that runs.

    So a file may give it. Arguments are no matter for a stranger: timm's `checkpoint_path` loads a
    pickle.
    """
    return _OF_LIBRARY.fullmatch(name) is not None


def _imported(module: str) -> ModuleType:
    """Import a module that the user has named; it may also lie in the current folder.

    It alone: were that folder searched for all modules, a download of the right name would run.
    """
    top = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        spec = PathFinder.find_spec(top, [str(Path.cwd())])
        if error.name != top or spec is None or spec.loader is None:
            raise
    sys.modules[top] = made = module_from_spec(spec)
    try:
        spec.loader.exec_module(made)
    except BaseException:
        del sys.modules[top]
        raise
    return importlib.import_module(module)


def image_size_of(name: str) -> int | None:
    """Return the height and width that a name's arguments say; None if they don't."""
    found = re.search(r"\((?:.*, *)?(?:image|img)_size=(\d+)", name)
    return None if found is None else int(found[1])


def recognised(path: str | os.PathLike[str]) -> tuple[str, int | None]:
    """Return the name of the network that a file's weights are of, and its number of classes.

    Raises:
        WrongArgument: there are no weights in it, or they fit no network of torchvision or timm.
        FileProblem: it is missing, damaged, or of no readable kind.
    """
    inspection = identify(path)
    place = printable(os.fspath(path))
    if inspection.architecture:
        found = inspection.architecture[0]
        return found.name, found.num_classes
    if not inspection.state_dicts:
        raise WrongArgument(
            f"{place}: there are no weights to start from in it: {inspection.summary}",
            advice="Give the file of a model, or of a training checkpoint.",
        )
    raise WrongArgument(
        f"{place}: its names and shapes fit no network of torchvision or timm",
        advice="Name the network with --arch.",
    )


def own_callable(name: str) -> Callable[..., Any]:
    """Return what `module:callable` names: code of the user's own, which is imported.

    Raises:
        WrongArgument: it is no such name, or there is nothing that can be called.
    """
    found = _OWN.fullmatch(name)
    if not found:
        raise WrongArgument(f"{name!r} is no module:callable")
    return _own(*found.groups())


def _own(module: str, path: str) -> Callable[..., Any]:
    try:
        found: Any = _imported(module)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise WrongArgument(
            f"{module}:{path} can't be imported: {error}",
            advice="Check the name, and that its folder is this one or on PYTHONPATH.",
        ) from None
    if not callable(found):
        raise WrongArgument(f"{module}:{path} can't be called")
    made: Callable[..., Any] = found
    return made
