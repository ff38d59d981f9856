"""Attach to a model that zcstored keeps in shared memory, as NumPy arrays on the very pages: nothing is copied.

    with zcstore.attach("minilm") as model:
        weights = model.tensors["encoder.layer.0.output.dense.weight"]   # read-only, valid until the end of the block

Needs NumPy and Python 3.9. The protocol is on the page proto/README.md, the table's layout in models/table/table.go.
"""
import json
import mmap
import os
import socket
import struct

import numpy as np

# By the table's numbers. NumPy has no bfloat16 and no 8-bit floats: their bits come as unsigned integers.
DTYPES = dict(enumerate("f8 f4 f2 u2 i8 i4 i2 i1 u8 u4 u2 u1 ?1 u1 u1 c8".split(), 1))
BF16 = 4


def to_float32(bits):
    """The values of a bfloat16 tensor, as a copy: its 16 bits are the upper half of a float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


class Model:
    """What was attached: ref, digest, tensors by name, and the names of those that are bfloat16."""

    def __init__(self, lease, answer, fds):
        self._lease, self.ref, self.digest = lease, answer["ref"], answer["digest"]
        try:
            table, *segments = [mmap.mmap(fd, os.fstat(fd).st_size, prot=mmap.PROT_READ) for fd in fds]
        finally:
            for fd in fds:
                os.close(fd)
        magic, version = struct.unpack_from("<8sI", table)
        if (magic, version) != (b"ZCTABLE1", 2):
            raise ValueError(f"table {magic!r} of version {version}: this program reads ZCTABLE1 of version 2")
        at = [struct.unpack_from("<QQ", table, 64 + 16 * i) for i in range(8)]  # sections: offset, number of entries
        (_, (tensors, _), (dims, _), (names, _), (by_name, n), _, _, (strings, _)) = at
        self.tensors, self.bfloat16 = {}, set()
        for i in range(n):
            name, row = struct.unpack_from("<II", table, by_name + 8 * i)
            begin, length = struct.unpack_from("<II", table, names + 8 * name)
            name = table[strings + begin:strings + begin + length].decode()
            offset, size, dim, _, _, segment, rank, dtype = struct.unpack_from("<QQIIIIHB", table, tensors + 72 * row + 32)
            shape = struct.unpack_from(f"<{rank}Q", table, dims + 8 * dim)
            kind = np.dtype("<" + DTYPES[dtype].replace("?1", "?"))
            buffer = segments[segment] if size else b""  # frombuffer checks that the range lies inside
            self.tensors[name] = np.frombuffer(buffer, kind, size // kind.itemsize, offset if size else 0).reshape(shape)
            if dtype == BF16:
                self.bfloat16.add(name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Ends the lease. The pages go when the last array on them does."""
        self.tensors = {}
        self._lease.close()


def attach(ref, path=None):
    """Takes a lease on a stored version, for as long as the model is open, and maps it."""
    lease = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    lease.connect(path or os.environ["ZCSTORE_SOCKET"])
    lease.sendall(f"ZCR1 attach {ref}\n".encode())
    line, fds = b"", []
    while not line.endswith(b"\n"):
        data, more, flags, _ = socket.recv_fds(lease, 4096, 253)
        line, fds = line + data, fds + list(more)
        if not data or flags & socket.MSG_CTRUNC:
            raise ConnectionError("the daemon closed the connection, or this process has too few descriptors (ulimit -n)")
    answer = json.loads(line)
    if "error" in answer:
        raise LookupError("{kind}: {message}".format(**answer["error"]))
    return Model(lease, answer, fds)
