"""Which samples come in which order, so that a resumed epoch goes on with the next one.

A `Pass` is one walk over a loader. For a map-style `DataLoader` the whole list of index batches
is drawn at the start and kept in the checkpoint with a cursor. It is drawn as the loader itself
draws it with `num_workers=0`: a seed for workers first, then the order, from the same generators.
The batches are then served by an inner loader that is given these index batches, so nothing
depends on how far the workers had fetched ahead.

Every sample is fetched under Python's, NumPy's and torch's generators seeded from (run seed,
epoch, pass, index, occurrence), and a batch is collated under what its last sample left. Hence
the samples are the same with any number of workers and after any resume, and augmentation in the
main process does not disturb the generators that the training draws from. A sample drawn twice in
an epoch is augmented in two ways: that is the occurrence. Where the data set itself fetches a
whole batch in one call, the unit is that call and not the sample: with `__getitems__`, and with
`batch_size=None` and a sampler that gives lists of indices.

A pass is over when its last batch was taken. One that was broken off can still be gone on with,
until the loop begins another one or ends the epoch.

A loader with `state_dict` and `load_state_dict` is restored by them. Any other iterable is walked
again from its start, and what was seen is skipped; that it then goes on with the same batches
can't be known, and is named as inexact.

passes.py    those of the running epoch
walks.py     one walk over a loader, and over one that is known by its own state or not at all
indexed.py   a walk over a map-style loader, of which the whole order is known
regrouping.py  what is left of one, shared out among another number of ranks
fetching.py  batches of known indices, each sample under its own seed
"""

from torchkeep.checkpointing.sample_order.indexed import generators_of, has_known_indices
from torchkeep.checkpointing.sample_order.passes import Passes
from torchkeep.checkpointing.sample_order.regrouping import LEAST_SAMPLES, regrouped

__all__ = ["LEAST_SAMPLES", "Passes", "generators_of", "has_known_indices", "regrouped"]
