"""What a run's objects are made of: taken out of them, taken apart, and put back.

capturing.py   the state of any objects, by what they are; `capture` and `restore`
kinds.py       the list of what they may be
walking.py     what is in dicts and lists of them
modules.py     that of modules, wrapped ones too
optimizers.py  that of optimizers, by the names of their parameters
rng.py         that of random number generators
sharded.py     tensors of which each rank has a piece
gradient_order.py  the order of gradients, by which a DDP lays out its buckets
encoding.py    a state as named tensors and plain JSON
"""
