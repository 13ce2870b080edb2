"""Networks that are saved as programs: TorchScript, exported graphs, packages, early C++."""
