"""A device whose packets come back on it after a while, in their order: a program for a router's namespace.

    python delay.py NAME SECONDS

It makes the tunnel NAME and says ``ready``. What the router sends into it comes out of it after SECONDS, so that the
router sends it on; it ends with its standard input. Packets come as the kernel's senders make them, up to 64 KiB each
with what divides them later (``IFF_VNET_HDR``): so a Python keeps up with more than a gigabit per second. It holds at
most 256 MiB and drops what comes beyond.
"""

from __future__ import annotations

import collections
import contextlib
import fcntl
import os
import select
import struct
import sys
import time

_TUNSETIFF, _TUNSETOFFLOAD = 0x400454CA, 0x400454D0
_TUN, _NO_PI, _VNET_HDR = 0x0001, 0x1000, 0x4000
_CHECKSUMS, _TSO4, _TSO_ECN = 0x01, 0x02, 0x08
_LARGEST = 10 + (64 << 10)  # a packet behind its struct virtio_net_hdr
_HELD = 256 << 20
_TURN = 8  # packets that are taken before those that are due are looked after


def main(name: str, seconds: float) -> None:
    """Hold packets until the standard input ends."""
    tunnel = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(tunnel, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _TUN | _NO_PI | _VNET_HDR))
    fcntl.ioctl(tunnel, _TUNSETOFFLOAD, _CHECKSUMS | _TSO4 | _TSO_ECN)
    with contextlib.suppress(OSError):
        os.nice(-20)  # a line does not wait for a processor
    print("ready", flush=True)
    held: collections.deque[tuple[float, bytes]] = collections.deque()
    size = 0
    clock = time.monotonic
    while True:
        wait = max(held[0][0] - clock(), 0) if held else None
        readable, _, _ = select.select([tunnel, 0], [], [], wait)
        if 0 in readable and not os.read(0, 1):
            return
        if tunnel in readable:
            with contextlib.suppress(BlockingIOError):
                for _ in range(_TURN):
                    packet = os.read(tunnel, _LARGEST)
                    if size + len(packet) <= _HELD:
                        held.append((clock() + seconds, packet))
                        size += len(packet)
        now = clock()
        while held and held[0][0] <= now:
            _, packet = held.popleft()
            size -= len(packet)
            with contextlib.suppress(OSError):  # as a line drops what cannot be sent
                os.write(tunnel, packet)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
