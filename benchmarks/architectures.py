"""How well, and how fast, architectures are recognised from names and shapes.

    python benchmarks/architectures.py               the whole table: two minutes
    python benchmarks/architectures.py --real 300    more models built by their libraries

The table's own signatures are asked for with other numbers of classes, behind wrappers, headless
and altered; models that torchvision and timm build on the meta device, with another number of
classes, likewise. A casting to half changes no shape and a renamed file no tensor, so neither is a
case of its own. "Right" means that the name is among the best; "alone" that no other shares it.
"""

from __future__ import annotations

import argparse
import pickle
import random
import statistics
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch

from torchkeep.identify.architectures import THRESHOLD, ArchitectureMatch, recognise
from torchkeep.identify.architectures.search import recognise_in
from torchkeep.identify.architectures.table import PATH, Table, fill, shipped_table

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "scripts")]

from identify.networks import OTHERS, Shapes, shapes_of  # noqa: E402 - needs the path above

COLD = """
import pickle, sys, time
import torchkeep.identify
shapes = pickle.load(sys.stdin.buffer)
for name in [name for name in sys.modules if name.startswith("torchkeep.identify.architectures")]:
    del sys.modules[name]  # the rest of torchkeep is imported for an inspection anyway
start = time.perf_counter()
from torchkeep.identify.architectures import recognise
recognise(shapes)
print(time.perf_counter() - start)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--real", type=int, default=120, help="models to build")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    tell_table()
    tell_whole_table()
    tell_real(args.real, args.seed)
    tell_others()
    tell_left_out()
    tell_cost()


# --- Cases ---------------------------------------------------------------------------------------


def with_classes(rules: dict[str, str], num_classes: int, channels: int = 3) -> Shapes:
    return {
        key: tuple(map(int, filter(None, fill(shape, num_classes, channels).split(","))))
        for key, shape in rules.items()
    }


def behind(prefix: str) -> Callable[[dict[str, str]], Shapes]:
    return lambda rules: {prefix + key: shape for key, shape in with_classes(rules, 10).items()}


def headless(rules: dict[str, str]) -> Shapes:
    return with_classes({key: shape for key, shape in rules.items() if "c" not in shape}, 0)


def lightning(rules: dict[str, str]) -> Shapes:
    return behind("model.")(rules) | {"criterion.weight": (10,), "ema_rate": ()}


def new_head(rules: dict[str, str]) -> Shapes:
    """Return a model whose head is another: two layers under another name."""
    shapes = headless(rules)
    return shapes | {"head.fc.0.weight": (128, 512), "head.fc.2.weight": (10, 128)}


CASES: dict[str, Callable[[dict[str, str]], Shapes]] = {
    "1000 classes": lambda rules: with_classes(rules, 1000),
    "37 classes": lambda rules: with_classes(rules, 37),
    "2 classes, 1 input channel": lambda rules: with_classes(rules, 2, 1),
    "module.": behind("module."),
    "_orig_mod.": behind("_orig_mod."),
    "model.": behind("model."),
    "module.model.net.": behind("module.model.net."),
    "Lightning with a criterion": lightning,
    "without its head": headless,
    "with another head": new_head,
}


# --- Figures -------------------------------------------------------------------------------------


def best_names(matches: Iterable[ArchitectureMatch]) -> list[str]:
    matches = list(matches)
    return [match.name for match in matches if match.score == matches[0].score]


def tell_table() -> None:
    table = shipped_table()
    sharing = Counter(len(table.names(signature)) for signature in range(len(table)))
    models = {name for signature in range(len(table)) for name in table.names(signature)}
    print(f"{', '.join(table.versions)}: {PATH.stat().st_size / 1e6:.2f} MB")
    print(f"{len(models)} models with {len(table)} signatures; threshold {THRESHOLD}")
    told = ", ".join(f"{count} of {size}" for size, count in sorted(sharing.items()))
    print(f"signatures of so many models: {told}")


def tell_whole_table() -> None:
    table = shipped_table()
    for case, alter in CASES.items():
        results = []
        for signature in range(len(table)):
            matches = best_names(recognise(alter(table.shapes(signature))))
            results += [(name, matches) for name in table.names(signature)]
        tell_results(f"whole table, {case}", results)


def tell_results(title: str, results: list[tuple[str, list[str]]]) -> None:
    right = [(name, best) for name, best in results if name in best]
    alone = sum(len(best) == 1 for _, best in right)
    print(
        f"{title:45} {len(right):5} of {len(results)} right ({len(right) / len(results):7.2%}): "
        f"{alone} alone, {len(right) - alone} share it"
    )
    for name, best in [(name, best) for name, best in results if name not in best][:3]:
        print(f"    {name} was taken for {', '.join(best) or 'nothing'}")


def tell_real(count: int, seed: int) -> None:
    results = []
    numbers = []
    for name, shapes, num_classes in real_models(count, seed):
        matches = recognise({f"module.{key}": shape for key, shape in shapes.items()})
        results.append((name, best_names(matches)))
        if matches and matches[0].num_classes is not None:
            numbers.append(matches[0].num_classes == num_classes)
    tell_results("built by the libraries, 23 classes, module.", results)
    print(f"    {sum(numbers)} of {len(numbers)} numbers of classes right; the others have no head")


def real_models(count: int, seed: int) -> Iterator[tuple[str, Shapes, int]]:
    from build_architectures import timm_models, torchvision_models

    recipes = [*torchvision_models(), *timm_models()]
    recipes = [it for it in recipes if not it.name.startswith(("torchvision/quantized_",))]
    for recipe in random.Random(seed).sample(recipes, len(recipes)):
        if count == 0:
            return
        try:
            with torch.device("meta"):
                model = recipe.make(**recipe.arguments, num_classes=23)
        except (NotImplementedError, TypeError):  # not on meta; no classes to choose
            continue
        count -= 1
        yield recipe.name, shapes_of(model), 23


def tell_others() -> None:
    with torch.device("meta"):
        wrong = [make.__name__ for make in OTHERS if recognise(shapes_of(make()))]
    print(f"{len(OTHERS) - len(wrong)} of {len(OTHERS)} networks of no table give nothing")
    print("".join(f"    {name} does not\n" for name in wrong), end="")


class Without(Table):
    """The table without some signatures."""

    left_out: frozenset[int] = frozenset()

    def hits(self, hashes: Iterable[int]) -> Counter[int]:
        """Return what the table does, less what is left out."""
        found = super().hits(hashes)
        for signature in self.left_out:
            del found[signature]
        return found


def tell_left_out() -> None:
    """Tell what happens to a model that the table has, if it had it not."""
    table = Without(PATH.read_bytes())
    scores = []
    for signature in range(len(table)):
        table.left_out = frozenset({signature})
        matches = recognise_in(table, with_classes(table.shapes(signature), 10))
        scores.append(matches[0].score if matches else 0.0)
    none = sum(score == 0 for score in scores)
    print(f"each signature in turn left out of the table: {none} of {len(scores)} give nothing,")
    for low, high in ((THRESHOLD, 0.8), (0.8, 0.9), (0.9, 1.0)):
        print(f"    {sum(low <= score < high for score in scores)} a relative at {low} to {high}")
    print(f"    {sum(score == 1 for score in scores)} one that agrees in full")


def tell_cost() -> None:
    from torchvision.models import resnet50

    with torch.device("meta"):
        shapes = shapes_of(resnet50(weights=None, num_classes=10))
    cold = [first_call(shapes) for _ in range(9)]
    warm = []
    for _ in range(20):
        start = time.perf_counter()
        recognise(shapes)
        warm.append(time.perf_counter() - start)
    print(
        f"ResNet50: {statistics.median(cold) * 1e3:.1f} ms in a cold process with the import and "
        f"the table (best {min(cold) * 1e3:.1f}), {statistics.median(warm) * 1e3:.1f} ms after that"
    )


def first_call(shapes: Shapes) -> float:
    """Return the seconds of importing and asking in a process of its own."""
    command = [sys.executable, "-c", COLD]
    given = pickle.dumps(shapes)
    return float(subprocess.run(command, input=given, capture_output=True, check=True).stdout)


if __name__ == "__main__":
    main()
