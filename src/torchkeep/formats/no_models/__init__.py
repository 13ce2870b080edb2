"""Files that are met under a model's name and are none."""
