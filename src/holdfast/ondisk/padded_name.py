"""A name in a fixed field of 48 bytes.

Names are padded with NULs and are not terminated when all 48 bytes are used. Programs compare them only up
to the first NUL, and a shorter name written over a longer one may leave the longer one's tail behind the
NUL. So there are two questions, and they are not the same:

* "is this lockspace's name LS1?": up to the first NUL: `field.says("LS1")`;
* "has this record changed?": every byte, tails included: `==`.

Keeping the field whole lets both be asked of one value. Bytes that are not UTF-8 survive through surrogate
escapes.
"""

from dataclasses import dataclass
from typing import Self

NAME_BYTES = 48
# A host name is stored with its NUL, but sanlock compares 48 bytes of it: a 48-byte host name never equals
# itself.
HOST_NAME_BYTES_MAX = NAME_BYTES - 1


def _bytes_of(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


@dataclass(frozen=True, slots=True)
class PaddedName:
    """One name field exactly as it stands on disk."""

    field: bytes = bytes(NAME_BYTES)

    def __post_init__(self) -> None:
        if len(self.field) != NAME_BYTES:
            raise ValueError(f"a name field has {NAME_BYTES} bytes, not {len(self.field)}")

    @classmethod
    def of(cls, text: str, bytes_max: int = NAME_BYTES) -> Self:
        """Pad `text`; a name that would be cut, or that holds a NUL, is refused: cut names make two
        locks one.
        """
        name = _bytes_of(text)
        if b"\0" in name:
            raise ValueError(f"a name cannot hold a NUL: {text!r}")
        if len(name) > bytes_max:
            raise ValueError(f"a name has at most {bytes_max} bytes, this one has {len(name)}: {text!r}")
        return cls(name.ljust(NAME_BYTES, b"\0"))

    @property
    def text(self) -> str:
        return self._significant.decode("utf-8", "surrogateescape")

    def says(self, text: str) -> bool:
        """Compare as sanlock does: up to the first NUL, at most 48 bytes."""
        return self._significant == _bytes_of(text)[:NAME_BYTES]

    @property
    def _significant(self) -> bytes:
        return self.field.split(b"\0", 1)[0]

    def __str__(self) -> str:
        return self.text


NO_NAME = PaddedName()
