"""What torchkeep can write, from descriptions and bytes: no torch is needed for that.

safetensors.py    a flat state dict
shards.py         the same in several files, with an index
torch_zip.py      a tree of values as `torch.save` writes it; `zip_layout.py` places its records,
                  and `pickling.py`, `pickle_stream.py` and `layouts.py` write its pickle
dcp.py            a distributed checkpoint, whose keys `dcp_flat.py` makes, and whose `.metadata`
                  `dcp_metadata.py` does
payload.py        the bytes of a tensor, read when their turn comes
stream.py         how they go to a file, and are counted
strided.py        elements of views, and how they are copied
boxes.py          a tensor that lies in boxes, put together
suffixes.py       which of these a path asks for
report.py         what a save did
"""
