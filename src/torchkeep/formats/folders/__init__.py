"""What lies in several files: shards, distributed checkpoints, training outputs, runs of ours."""
