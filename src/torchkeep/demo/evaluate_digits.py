"""Load parameters into a fresh network, in a fresh process, and count what it gets right."""

from __future__ import annotations

from pathlib import Path

from torchkeep.demo.child import Report, parser, settings_of
from torchkeep.demo.digits import loaders, new_network, prepare
from torchkeep.loading import load_into
from torchkeep.training import evaluate


def main() -> None:
    """Parse the options, load, evaluate under `eval()` without gradients, and report."""
    options = parser("Evaluate ResNet18 on handwritten digits.")
    options.add_argument("--weights", type=Path, required=True, help="file with the parameters")
    given = options.parse_args()
    settings = settings_of(given)
    prepare(settings)
    model = new_network()
    loaded = load_into(model, given.weights)
    _, val_loader = loaders(given.data, settings)
    result = evaluate(model, val_loader)
    Report(given.report).add(
        "evaluated",
        num_loaded=len(loaded.loaded),
        coverage=loaded.coverage,
        num_proven=len(loaded.digests),
        num_correct=result.num_correct,
        num_samples=result.num_samples,
    )


if __name__ == "__main__":
    main()
