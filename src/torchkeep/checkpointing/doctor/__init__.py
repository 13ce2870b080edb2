"""What keeps a run from going on bit for bit.

examination.py  a run on disk, compared with what is here
environment.py  versions, settings, and how the program was started
inventory.py    what of a live run a checkpoint can't hold
generators.py   which of that has moved
findings.py     what was found
"""
