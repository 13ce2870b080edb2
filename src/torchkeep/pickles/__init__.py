"""Pickles read as data: a machine that runs every opcode and calls nothing.

`limits` bounds the work, `source` hands out bytes, `opcodes` lists what the bytes mean, `text`
reads the numbers and strings that are written as text, and `machine` runs it all on a `stack`.
`calls` keeps what is named, called and changed, and knows the tricks among it. `constructors`
knows the few callables of Python and NumPy that only make plain values, and makes those values
itself, with `keys` and `arrays`. `pickled` is the result.
"""
