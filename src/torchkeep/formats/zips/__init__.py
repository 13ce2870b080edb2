"""Zip archives: their directory, what is odd about it, and which kind of archive one is."""
