"""What `torch.save` writes and wrote: zip, stream and tar, and the objects in their pickles."""
