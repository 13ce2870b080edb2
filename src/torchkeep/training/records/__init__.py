"""What a run leaves in its folder for people and other programs, besides checkpoints and models.

names.py       what its files are called
settings.py    what it was started with
findings.py    what was noticed
history.py     the epochs
timing.py      how long they took
tensorboard.py the same as a log for TensorBoard
reporting.py   the run as its report tells it
"""
