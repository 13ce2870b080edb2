"""What torchkeep itself writes: metadata in a file, and the folders of checkpoints and runs."""
