"""Bytes <-> records of sanlock's on-disk format. Pure: no I/O, no clock, no logging.

A host that runs sanlock and a host that runs holdfastd share one lockspace, so every byte here is somebody
else's byte too. The rules of the package:

* A record owns its bytes: `decode(raw) -> Record | Malformed` and `encode()`. What comes from a disk is
  never a reason for an exception: a malformed sector is an answer that says which record, which rule and
  what was found.
* Encoding is the other way round: a record that breaks its own rules was built by our code, so `encode()`
  raises `ValueError` rather than let it reach a disk that other hosts trust.
* Decoding loses nothing that is compared or written back: two leaders are equal if and only if their 200
  bytes are, because the protocols decide by "nothing at all has changed".

`geometry` says where things are, `checksum` how they are protected, `leader`, `delta`, `host_block`,
`request` and `rindex` what they say, and `areas` what a freshly initialised area looks like.
"""
