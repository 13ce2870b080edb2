"""The fixed parts of a zip archive, for its reader and its writer.

Source: PKWARE's APPNOTE 6.3, sections 4.3 (layout), 4.4.4 (flags), 4.5.3 (zip64).
"""

from __future__ import annotations

import struct

LOCAL = struct.Struct("<4s5H3L2H")
CENTRAL = struct.Struct("<4s6H3L5H2L")
END = struct.Struct("<4s4H2LH")
END64 = struct.Struct("<4sQ2H2L4Q")
END64_LOCATOR = struct.Struct("<4sLQL")

LOCAL_MAGIC = b"PK\x03\x04"
CENTRAL_MAGIC = b"PK\x01\x02"
END_MAGIC = b"PK\x05\x06"
END64_MAGIC = b"PK\x06\x06"
END64_LOCATOR_MAGIC = b"PK\x06\x07"

STORED, DEFLATED = 0, 8
"""Methods of packing."""
SIZES_FOLLOW, UTF8 = 1 << 3, 1 << 11
"""Flags: sizes and checksum stand behind the bytes; the name is UTF-8."""
ZIP64 = 1
"""The tag of the extra field that holds what takes more than 32 bits."""
FULL16, FULL32 = 0xFFFF, 0xFFFFFFFF
"""What stands in a field whose value is in the zip64 part."""
