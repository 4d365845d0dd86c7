"""Work of channels side by side, and which looks are made for members."""

from __future__ import annotations

import asyncio
from functools import partial

import structlog
import structlog.testing

from entrepot.core.errors import RetryLater
from entrepot_hub.core.ledger import ObjectRef
from entrepot_hub.services.background import Background, Lanes
from entrepot_hub.services.exchange import Looks


async def until(event: asyncio.Event) -> None:
    async with asyncio.timeout(10):
        await event.wait()


def ref(number: int) -> ObjectRef:
    return ObjectRef("demo", b"lock", b"stream", number)


async def test_a_channel_that_hangs_holds_up_no_other() -> None:
    """Of each channel a few pieces run at once; those of another one do not wait for them."""
    never, reached = asyncio.Event(), asyncio.Event()
    begun: list[int] = []

    async def hang(number: int) -> None:
        begun.append(number)
        await never.wait()

    async def reach() -> None:
        reached.set()

    async with Background() as background:
        lanes = Lanes(background.spawn, wide=2)
        for number in range(5):
            assert lanes.put("bad", partial(hang, number))
        lanes.put("good", reach)
        await until(reached)
        assert begun == [0, 1]
        assert lanes.busy("bad")
    assert begun == [0, 1]  # what waited is not begun by the end of those before it


async def test_what_fails_is_told_and_the_rest_goes_on() -> None:
    """Every piece is done, whatever the others raise."""
    done: list[int] = []
    last = asyncio.Event()
    told: list[BaseException] = []

    async def work(number: int) -> None:
        done.append(number)
        if number == 4:
            last.set()
        raise RetryLater("no")

    def spawn(coroutine: object) -> None:
        async def guard() -> None:
            try:
                await coroutine  # type: ignore[misc]
            except RetryLater as error:
                told.append(error)

        tasks.append(asyncio.get_running_loop().create_task(guard()))

    tasks: list[asyncio.Task] = []
    lanes = Lanes(spawn, wide=1)
    for number in range(5):
        lanes.put("demo", partial(work, number))
    await until(last)
    await asyncio.gather(*tasks)
    assert (done, len(told), lanes.busy("demo")) == ([0, 1, 2, 3, 4], 5, False)


async def test_work_that_finds_no_room_waits_for_the_next_call() -> None:
    """Where nothing more may be spawned nothing is lost, up to a bound."""
    done = asyncio.Event()

    async def work() -> None:
        done.set()

    async with Background(most=0) as full, Background() as free:
        at = full

        def spawn(coroutine):
            return at.spawn(coroutine)

        lanes = Lanes(spawn, most=1)
        assert lanes.put("demo", work)
        assert not lanes.put("demo", work)
        at = free
        assert lanes.busy("demo")
        await until(done)


def test_an_object_is_looked_at_once_a_second() -> None:
    """Whoever asks."""
    looks = Looks()
    assert looks.may(ref(0), "a", 100.0)
    assert not looks.may(ref(0), "a", 100.9)
    assert not looks.may(ref(0), "b", 100.9)
    assert looks.may(ref(0), "b", 101.0)
    assert looks.may(ref(0), "b", 50.0)  # a clock that was set back stops nothing


def test_a_node_has_so_many_looks_a_second() -> None:
    """Ten at once and ten a second; another node has its own."""
    looks = Looks()
    assert sum(looks.may(ref(number), "a", 100.0) for number in range(50)) == 10
    assert looks.may(ref(99), "b", 100.0)
    assert sum(looks.may(ref(number), "a", 100.5) for number in range(100, 150)) == 5


async def test_trouble_that_stays_is_told_once_a_minute_with_its_channel() -> None:
    """The same trouble of the same channel is one line, not one each time; that of another channel has its own."""
    async with Background() as background:
        with structlog.testing.capture_logs() as lines:
            for channel in ("one", "one", "one", "two", "one"):

                async def fail(channel: str = channel) -> None:
                    raise RetryLater("it is away", kind="bucket-unreachable", channel=channel, key="k")

                await background.guard(fail())
    assert [(line["event"], line["kind"], line["channel"]) for line in lines] == [
        ("trouble", "bucket-unreachable", "one"),
        ("trouble", "bucket-unreachable", "two"),
    ]
    assert "key" not in lines[0]
