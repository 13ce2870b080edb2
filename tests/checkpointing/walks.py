"""Walks over a loader, as the loop of a run makes them."""

from __future__ import annotations

from torchkeep.checkpointing.sample_order import Passes


def walk(passes: Passes, given_loader, num_batches: int | None = None) -> list[list[int]]:
    """Walk over a loader, so far, and finish each batch; return what it gave."""
    following = passes.begin(given_loader, 0, 0)
    seen = []
    for batch in following.served(following.remaining()):
        seen.append(batch[0].flatten().tolist())
        passes.finish_step()
        if len(seen) == num_batches:
            break
    return seen
