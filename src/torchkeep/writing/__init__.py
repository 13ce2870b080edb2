"""Files of both writable formats, from descriptions and bytes: no torch is needed to write one."""
