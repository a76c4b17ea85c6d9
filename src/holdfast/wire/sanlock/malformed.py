"""The one error of this package: bytes that are not what they should be."""


class MalformedMessage(ValueError):
    """Bytes that can't be the message or structure they were read as; the text names what was expected and found."""


def need(raw: bytes | bytearray | memoryview, start: int, size: int, what: str) -> None:
    """Raise unless `size` bytes of `what` stand at `start`."""
    if len(raw) < start + size:
        raise MalformedMessage(f"{what} has {size} bytes, here are {max(0, len(raw) - start)}")
