"""The links of ``scripts/bench`` are as slow and as far as they claim, and transfers are measured on them."""

from __future__ import annotations

import secrets
import socket
import threading
import time
from dataclasses import dataclass

import pytest
from scripts.bench_links import LINKS, PARTIES, lines, missing, shaped
from scripts.bench_tools import Boto3
from tests.servers.namespaces import Network

pytestmark = [pytest.mark.blocking, pytest.mark.soak]

KIB, MIB = 1 << 10, 1 << 20
PORT = 7000
DEADLINE = 60.0


@pytest.fixture(scope="module", autouse=True)
def possible() -> None:
    reason = missing()
    if reason is not None:
        pytest.skip(reason)


@dataclass
class Sent:
    data: bytes
    #: Seconds from the receiver's first byte to its last one.
    seconds: float


def send(network: Network, sender: str, receiver: str, data: bytes) -> Sent:
    """Send this over one connection; what arrived."""
    there = network.parties[receiver]
    listening = there.call(lambda: socket.create_server((there.address, PORT)))
    listening.settimeout(DEADLINE)
    came = bytearray()
    times: list[float] = []

    def receive() -> None:
        connection, _ = listening.accept()
        with connection:
            connection.settimeout(DEADLINE)
            while piece := connection.recv(MIB):
                came.extend(piece)
                times.append(time.monotonic())

    thread = threading.Thread(target=receive)
    thread.start()
    try:
        with network.parties[sender].call(socket.create_connection, (there.address, PORT), DEADLINE) as connection:
            connection.sendall(data)
    finally:
        thread.join(DEADLINE)
        listening.close()
    return Sent(bytes(came), times[-1] - times[0])


def round_trip(network: Network, one: str, other: str) -> float:
    """The least that a connection's handshake took, out of some."""
    there = network.parties[other]
    with there.call(lambda: socket.create_server((there.address, PORT))):

        def connect() -> float:
            began = time.monotonic()
            with socket.create_connection((there.address, PORT), DEADLINE):
                return time.monotonic() - began

        return min(network.parties[one].call(connect) for _ in range(10))


def test_a_gigabit_is_no_more_than_that() -> None:
    """All parties of 1gbit send and receive at a gigabit per second, what a full bucket of tokens lets by aside."""
    link = LINKS["1gbit"]
    data = secrets.token_bytes(32 * MIB)
    with lines(link) as network:
        for sender, receiver in (("lab", "store"), ("store", "laptop")):
            sent = send(network, sender, receiver, data)
            assert sent.data == data
            assert sent.seconds > 0.9 * (len(data) - 1024 * KIB) / link.up
        assert set(link.parties) == set(PARTIES)


def test_far_machines_are_far_and_slower_upwards() -> None:
    """On 50/500 each round trip of a machine takes 40 ms, that of hub and bucket does not; bytes come whole, up and
    down at no more than the line's rate."""
    link = LINKS["50/500"]
    data = secrets.token_bytes(4 * MIB)
    with lines(link) as network:
        for one, other in (("lab", "hub"), ("store", "laptop"), ("lab", "laptop")):
            assert link.round_trip <= round_trip(network, one, other) < 10 * link.round_trip
        assert round_trip(network, "hub", "store") < link.round_trip
        up = send(network, "lab", "store", data)
        down = send(network, "store", "lab", data * 4)
    assert up.data == data
    assert down.data == data * 4
    assert up.seconds > 0.9 * (len(data) - 512 * KIB) / link.up
    assert down.seconds > 0.9 * (4 * len(data) - 512 * KIB) / link.down


@pytest.mark.timeout(300)
def test_transfers_are_measured_on_such_links() -> None:
    """A get and a tool bring a file from the lab to the laptop, and the lines carried what they should have; what they
    carry by themselves is no more than their rates."""
    size = 256 * KIB
    with shaped("50/500", quota=64 * MIB) as ground, Boto3() as tool:
        rates = ground.rates(4 * MIB)
        ours = ground.transfer(size)
        theirs = ground.competitor(tool, size)
        assert not list(ground.folder.glob("*.bin"))
    link = LINKS["50/500"]
    assert 0 < rates["line_up"] < 1.3 * link.up  # a full bucket of tokens goes by first
    assert rates["line_up"] < rates["line_down"] < 1.3 * link.down
    assert 0 < rates["line_both"] < 1.3 * link.up
    for values in (ours, theirs):
        for name in ("wire_lab_out", "wire_store_in", "wire_store_out", "wire_laptop_in"):
            assert size <= values[name] < 2 * size, name
    # A want, its answer, the state and what precedes them: a few round trips at the least.
    assert ours["wall"] > 4 * LINKS["50/500"].round_trip
    assert theirs["up_wall"] > 2 * LINKS["50/500"].round_trip
    assert {"cpu_hub", "cpu_provider", "cpu_store", "rss_requester"} <= ours.keys()
