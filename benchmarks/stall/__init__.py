"""What `checkpoint_stall.py` sets against each other.

jobs.py         what is trained
contestants.py  who saves it
"""
