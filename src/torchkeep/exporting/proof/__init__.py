"""A written file, run in a process of its own, and compared.

session.py  the process, seen from outside
child.py    the process itself
wire.py     what both say to each other
parity.py   how far outputs are from those of the original
layers.py   which layer, or which tensor, is the first to differ
timing.py   how long calls take
"""
