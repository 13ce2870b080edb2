"""One small training run, written as each library's own documentation says, for `exactness.py`."""
