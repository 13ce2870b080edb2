"""Runs on disk: folders of checkpoints.

checkpoints.py  which there are, and which is the newest whole one
overview.py     what a run has, for a person
folder.py       a run's folder in the hands of its one writer
lock.py         who that is
retention.py    which checkpoints to delete
pruning.py      deleting them by hand
"""
