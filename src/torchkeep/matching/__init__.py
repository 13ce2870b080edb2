"""Which tensor of a file goes where in a model, decided without either of them. No torch."""
