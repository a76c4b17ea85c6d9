"""The checksum of leader records and dblocks.

It is CRC-32C (Castagnoli), but not the variant that libraries offer: the register starts at 0xFFFFFFFE
instead of 0xFFFFFFFF and the result is not inverted. A library's `extend(crc, data)` un-inverts `crc`, runs
the register over `data` and inverts again. So a start value of 1 gives the register 0xFFFFFFFE, and
inverting the result once more gives sanlock's number:

    library:  register = ~value = ~1 = 0xFFFFFFFE  ->  over the bytes  ->  ~register
    sanlock:  register =          0xFFFFFFFE       ->  over the bytes  ->   register

The sum protects against torn and foreign sectors, not against everything: io_timeout, the write_* fields,
the flags of a dblock, mode blocks, request records, bitmaps and the resource index are outside it.
"""

from typing import cast

import google_crc32c

_LIBRARY_START = 1
_REGISTER_MASK = 0xFFFFFFFF


def sanlock_crc32c(covered: bytes) -> int:
    """Return sanlock's checksum over `covered`."""
    library_result = cast(int, google_crc32c.extend(_LIBRARY_START, covered))
    return library_result ^ _REGISTER_MASK
