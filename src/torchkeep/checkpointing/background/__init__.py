"""Saving beside the loop: a state is copied while it stands still, and written meanwhile.

saver.py     from a state to the disk
snapshot.py  tensors as they are at one moment
stepping.py  what only an optimizer changes, and who tells before it does
samples.py   whether a tensor is still what it was
arena.py     memory for copies
cuda.py      copies from CUDA devices
thread.py    the thread that does it
"""
