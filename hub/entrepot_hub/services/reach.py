"""Which buckets the hub cannot use just now: whoever waits hears it, and no more is granted there than shows whether
that was set right."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from entrepot.core.errors import Denied, EntrepotError, InvalidInput, RetryLater
from entrepot_hub.core.ledger import Proposal

#: What readers are told is of this kind, whether the bucket cannot be reached or refuses the hub: their request is
#: right, and the same one succeeds when the hub's owner has set the bucket right.
UNREACHABLE = "bucket-unreachable"
#: For so many seconds after a bucket could not be used readers are told so, unless it was used meanwhile.
AWAY = 30.0
#: Into a bucket that refuses the hub one object is granted in so many seconds. One that only cannot be reached may
#: answer in the next moment, and nothing is held up.
TRY = 5.0
#: Buckets and streams of which that is remembered.
_MOST = 10_000
_HINT = "It goes on when the hub can use the bucket; whoever runs the hub can ask `entrepot-hub channel doctor`."


class Reach:
    """One hub instance's. ``clock`` gives seconds since the epoch."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._away: dict[tuple[str, bytes | None], tuple[EntrepotError, float]] = {}  # None: the hub found it itself
        self._tries: dict[str, float] = {}  # by channel whose bucket refuses the hub: when one more is granted there

    @contextmanager
    def reaching(self, channel: str, *, asks: bool = True) -> Iterator[None]:
        """Around what is done in the channel's bucket: that it cannot be used is what readers hear from then on, until
        it can. What is raised goes on, with the channel named in its data. ``asks``: whether the bucket is asked, so
        that success says something of it; a URL is signed without."""
        try:
            yield
        except EntrepotError as error:
            if error.kind == UNREACHABLE:
                error.data = {**error.data, "channel": channel}
                why = error.data.get("cause") or error.message
                self.failed(channel, None, f"the hub cannot reach the channel's bucket: {why}")
            elif isinstance(error, (Denied, InvalidInput)) and "bucket" in error.data:
                error.data = {**error.data, "channel": channel}
                # What the bucket answered may be told; why the hub has no keys is for whoever runs it.
                why = f": {error.message}" if "status" in error.data else ""
                self.failed(channel, None, f"the hub cannot use the channel's bucket{why}")
                self._tries.setdefault(channel, self._clock() + TRY)
            raise
        if asks:
            self._away.pop((channel, None), None)
            self._tries.pop(channel, None)

    def failed(self, channel: str, stream: bytes | None, why: str) -> None:
        """The bucket could not be used: by the hub, or (with a stream) by whoever has that."""
        if len(self._away) >= _MOST:
            self._away.clear()
        self._away[channel, stream] = RetryLater(why, kind=UNREACHABLE, hint=_HINT), self._clock() + AWAY

    def arrived(self, channel: str, stream: bytes) -> None:
        """Somebody brought an object of the stream."""
        self._away.pop((channel, stream), None)

    def reason(self, channel: str, stream: bytes, now: float) -> EntrepotError | None:
        """Why nothing of the stream reaches the bucket, if the bucket is why."""
        for key in ((channel, None), (channel, stream)):
            error, until = self._away.get(key, (None, 0.0))
            if error is not None and now < until:
                return error
        return None

    def open_to(self, proposals: Sequence[Proposal]) -> tuple[Proposal, ...]:
        """What of these may be granted now: of a bucket that refuses the hub one object in :data:`TRY` seconds."""
        if not self._tries:
            return tuple(proposals)
        passed, now = [], self._clock()
        for proposal in proposals:
            channel = proposal.ref.channel
            again = self._tries.get(channel)
            if again is not None:
                if now < again:
                    continue
                self._tries[channel] = now + TRY
            passed.append(proposal)
        return tuple(passed)
