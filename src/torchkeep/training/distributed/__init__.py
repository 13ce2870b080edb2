"""Several processes that train one network, on PyTorch's own engine.

torchrun, or `torchkeep train --nproc`, starts them. Each takes its share of every batch, and all
make the same steps.

processes.py   what they are, and whether they can train together as the settings say
strategies.py  how they train: each with all of the network (DDP), or a piece of it (FSDP2)
sharding.py    a network in pieces
"""
