"""One small GET that finds out whether this machine reaches a bucket. Blocks; runs in a thread."""

from __future__ import annotations

from typing import Final

from entrepot.adapters.transfer.answers import cancelled, error_body, network_errors, refusal
from entrepot.adapters.transfer.connections import Connections
from entrepot.adapters.transfer.requests import CancelToken, SignedRequest
from entrepot.adapters.transfer.sending import attached, begin

_MOST: Final = 1 << 16  # bytes of the answer that are read


def reach(connections: Connections, request: SignedRequest, *, token: CancelToken, fresh: bool) -> int:
    """Ask once and read the answer, which is thrown away: how many bytes came. Raises as any download."""
    target = connections.target(request)
    host = target.host
    if token.is_set():
        raise cancelled()
    with network_errors(host, token):
        connection = connections.take(target, fresh=fresh)
    with attached(connection, token):
        with network_errors(host, token, stale=connection.reused):
            begin(connection, request, {})
            response = connection.http.getresponse()
        with network_errors(host, token):
            if response.status != 200:
                raise refusal(host, response, error_body(response))
            body, done = memoryview(bytearray(_MOST)), 0
            while done < _MOST and (count := response.readinto(body[done:])):
                done += count
        connection.close()
        return done
