"""The control socket's interface, io.holdfast.Control: its messages, and a blocking client."""
