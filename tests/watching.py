"""What a watched child process runs first, so that only what a file causes is seen."""

EVERYTHING_IS_LOADED = """
import codecs, importlib, pkgutil
import bz2, lzma, tarfile  # what Python or a reader loads when it needs it
import torchkeep.formats, torchkeep.identify, torchkeep.pickles
for package in (torchkeep.formats, torchkeep.identify, torchkeep.pickles):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
for name in ("latin-1", "raw-unicode-escape", "utf-16", "utf-8-sig"):
    codecs.lookup(name)
"""
