"""The architecture of a model, recognised by the names and shapes of its tensors alone.

`table` has those of every model of torchvision and timm, `search` compares a state dict with them,
`naming` looks for what the file itself says, `words` says the result to a person.
"""

from torchkeep.identify.architectures.naming import named_by_class, named_by_values, prefer
from torchkeep.identify.architectures.search import THRESHOLD, ArchitectureMatch, recognise
from torchkeep.identify.architectures.words import NOT_IN_WEIGHTS, best_of, in_words

__all__ = [
    "NOT_IN_WEIGHTS",
    "THRESHOLD",
    "ArchitectureMatch",
    "best_of",
    "in_words",
    "named_by_class",
    "named_by_values",
    "prefer",
    "recognise",
]
