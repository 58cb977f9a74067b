"""An end that was killed is taken up by the next one, and a region that cannot be by a new one: the books go on."""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringway.engine.loop import Loop
from ringway.shm import (
    Carried,
    CarriedRing,
    Counts,
    DropCause,
    Geometry,
    LossState,
    QueueBells,
    Region,
    RegionHeldError,
    carried_from,
    count_losses,
    create_region,
    make_bell,
    read_region,
    watch_losses,
)
from ringway.shm._native import ffi, lib
from ringway.stack.filter import Filter
from ringway.stack.pipeline import Pipeline
from ringway.stack.steering import Steering
from tests.support.carrier import LINK, WORD, Carrier, carrier

GEOMETRY = Geometry(queues=2, slot_count=64, slot_payload=256, headroom=64)
FRAME = bytes(range(60))
WORDS = st.one_of(st.integers(0, 5000), st.integers(0, WORD - 1), st.sampled_from([0, WORD - 1, WORD // 2]))


def run_and_kill(end: Callable[[], None]) -> None:
    """Run `end` in a child and kill it as soon as it has returned; what it raises fails here."""
    done, saying = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            end()
            os.write(saying, b"x")
            signal.pause()
        finally:
            os._exit(1)
    os.close(saying)
    try:
        assert os.read(done, 1) == b"x", "the end failed before it was killed"
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(done)


# --- the next incarnation ------------------------------------------------------------------------------------------


def test_a_killed_sender_is_continued_with_drops_that_it_had_not_stored() -> None:
    with carrier(GEOMETRY) as made:

        def send_and_drop() -> None:
            a = made.attach(0)
            assert a.producers[0].send([FRAME] * 5) == 5
            lib.rway_producer_drop(a.producers[0].native, DropCause.SINK, 3)
            assert a.producers[0].send([FRAME]) == 1
            lib.rway_producer_drop(a.producers[0].native, DropCause.SINK, 100)  # nobody ever learns of these

        run_and_kill(send_and_drop)
        with made.attach(0, incarnation=2), made.attach(1) as b:
            (ring, *_) = read_region(made.fd).rings
            assert (ring.produced.frames, ring.produced.drops, ring.offered) == (6, {"sink": 3}, 9)
            assert b.consumers[0].receive() == [FRAME] * 6


def test_counts_that_a_killed_producer_had_not_stored_are_found_beside_its_head() -> None:
    with carrier(GEOMETRY) as made, made.attach(0) as a:
        ring = made.ring(0)
        assert a.producers[0].send([FRAME] * 4) == 4
        # As one leaves it that was killed before it could store the head of its next burst.
        for word, value in (("frames", 9), ("bytes", 999)):
            made.write(value, ring, "rway_ring_control", "produced", word)
            made.write(value, ring, "rway_ring_control", "published", 0, word)
        made.write(9, ring, "rway_ring_control", "published", 0, "at")
        made.write(7, ring, "rway_ring_control", "published", 1, "dropped")
        before = read_region(made.fd).rings[0]
        with made.attach(0, incarnation=2):
            after = read_region(made.fd).rings[0]
        assert before == after, "a tool sees what the next end takes up"
        assert (after.produced.frames, after.produced.bytes, after.produced.drops) == (4, 240, {"restart": 7})
        assert after.balanced


def test_rings_that_no_commit_belongs_to_are_continued_from_their_counts() -> None:
    with carrier(GEOMETRY) as made:
        out, back = made.ring(0), made.ring(1)
        for ring, account, counter in ((out, "produced", "head"), (back, "consumed", "tail")):
            made.write(100, ring, "rway_ring_control", "head")
            made.write(100, ring, "rway_ring_control", "tail")
            for other in ("produced", "consumed"):
                made.write(90, ring, "rway_ring_control", other, "frames")
            made.write(2, ring, "rway_ring_control", account, "drops", DropCause.SINK)
            assert made.read(ring, "rway_ring_control", counter) == 100
        for incarnation in range(3):
            with made.attach(0, incarnation) as a, made.attach(1, incarnation) as b:
                assert a.producers[0].send([FRAME] * 3) == b.producers[0].send([FRAME] * 3) == 3
                assert len(a.consumers[0].receive()) == len(b.consumers[0].receive()) == 3
        first, _, second, _ = read_region(made.fd).rings
        assert (first.produced.frames, first.produced.drops, first.consumed.frames) == (99, {"sink": 2}, 99)
        assert (second.consumed.frames, second.consumed.drops, second.produced.frames) == (99, {"sink": 2}, 99)


def test_frames_that_were_begun_are_not_handed_on_again_and_the_last_counts_as_lost() -> None:
    with carrier(GEOMETRY) as made, made.attach(0) as a:
        assert a.producers[0].send([bytes([number]) * 600 for number in range(6)]) == 6

        def begin_three() -> None:
            consumer = made.attach(1).consumers[0].native
            frames = ffi.new("struct rway_frame[]", 6)
            assert lib.rway_ring_peek(consumer, frames, 6) == 6
            for number in range(3):
                lib.rway_consumer_begin(consumer, ffi.addressof(frames, number))

        run_and_kill(begin_three)
        assert (read_region(made.fd).rings[0].in_flight, read_region(made.fd).rings[0].begun) == (6, 3)
        with made.attach(1, incarnation=2) as b:
            ring = read_region(made.fd).rings[0]
            assert (ring.consumed.frames, ring.consumed.drops, ring.delivered) == (3, {"restart": 1}, 2)
            assert [frame[0] for frame in b.consumers[0].receive()] == [3, 4, 5]
        assert read_region(made.fd).rings[0].balanced


def test_frames_that_were_put_back_come_again() -> None:
    with carrier(GEOMETRY) as made, made.attach(0) as a, made.attach(1) as b:
        assert a.producers[0].send([bytes([number]) * 600 for number in range(6)]) == 6
        consumer = b.consumers[0].native
        frames = ffi.new("struct rway_frame[]", 6)
        assert lib.rway_ring_peek(consumer, frames, 6) == 6
        lib.rway_consumer_put_back(consumer, ffi.addressof(frames, 2), 4)
        lib.rway_ring_release(consumer)
        assert read_region(made.fd).rings[0].consumed.bytes == 1200
        assert [frame[0] for frame in b.consumers[0].receive()] == [2, 3, 4, 5]
        assert read_region(made.fd).rings[0].balanced


# --- what a forwarder held -------------------------------------------------------------------------------------------


@pytest.fixture
def two_links() -> Iterator[tuple[Carrier, int]]:
    """The link that frames come in by, and the descriptor of the one that they go out by: link LINK + 1."""
    with carrier(GEOMETRY) as made:
        fd = create_region(GEOMETRY, LINK + 1)
        yield made, fd
        os.close(fd)


def attach_out(fd: int) -> Region:
    return Region.attach(fd, GEOMETRY, LINK + 1, 0, 1)


def lose(made: Carrier, fd: int, frames: int) -> None:
    """Begin to forward, take so many frames out of the first link, and be killed with them."""

    def take() -> None:
        source, target = made.attach(1), attach_out(fd)
        watch_losses([source], [target])
        assert len(source.consumers[1].receive(frames)) == frames

    with made.attach(0) as sender:
        assert sender.producers[1].send([FRAME] * frames) == frames
    run_and_kill(take)


@pytest.mark.parametrize("frames", [0, 1, 64])
def test_what_a_killed_forwarder_held_is_counted_as_restart_where_it_was_going(
    two_links: tuple[Carrier, int], frames: int
) -> None:
    made, fd = two_links
    lose(made, fd, frames)
    for _ in range(2):  # a second time there is nothing more to count
        with made.attach(1) as source, attach_out(fd) as target:
            state, lost = count_losses([source, target])
            assert state is LossState.COUNTED
            ring = read_region(fd).rings[0]
            assert ring.offered == frames == sum(ring.produced.drops.values())
            assert set(ring.produced.drops) <= {"restart"}
            assert lost in (frames, 0)


def test_a_forwarder_that_ended_in_an_orderly_way_has_lost_nothing(two_links: tuple[Carrier, int]) -> None:
    made, fd = two_links
    lose(made, fd, 5)
    with made.attach(1) as source, attach_out(fd) as target:
        assert count_losses([source, target]) == (LossState.COUNTED, 5)
        watch_losses([source], [target])
        target.forget_losses()
        assert count_losses([source, target]) == (LossState.UNKNOWN, 0)
    # An application takes its place and keeps what it receives.
    with made.attach(0) as sender, made.attach(1) as source, attach_out(fd) as target:
        assert sender.producers[0].send([FRAME] * 7) == 7
        assert len(source.consumers[0].receive()) == 7
        assert count_losses([source, target]) == (LossState.UNKNOWN, 0)
    assert read_region(fd).rings[0].produced.drops == {"restart": 5}


def test_frames_moved_since_the_attach_make_no_loss_of_a_forwarder_before(two_links: tuple[Carrier, int]) -> None:
    made, fd = two_links
    lose(made, fd, 5)
    with made.attach(1) as source, attach_out(fd) as target:
        assert target.producers[1].send([FRAME]) == 1
        assert count_losses([source, target]) == (LossState.UNKNOWN, 0)
    assert read_region(fd).rings[0].produced.drops == {}


def test_a_forwarder_to_another_link_knows_nothing_of_the_one_before(two_links: tuple[Carrier, int]) -> None:
    made, fd = two_links
    lose(made, fd, 5)
    other = create_region(GEOMETRY, LINK + 2)
    with made.attach(1) as source, Region.attach(other, GEOMETRY, LINK + 2, 0, 1) as target:
        assert count_losses([source, target]) == (LossState.UNKNOWN, 0)
        assert not read_region(other).rings[0].produced.drops
    os.close(other)


@pytest.mark.parametrize("lead", [WORD - 1, WORD // 2, 64 * GEOMETRY.queues + 1, 10**6])
def test_more_than_a_kill_can_lose_is_said_and_not_counted(two_links: tuple[Carrier, int], lead: int) -> None:
    made, fd = two_links
    lose(made, fd, 0)
    made.write(-lead, made.side(1), "rway_side", "taken", "base")
    with made.attach(1) as source, attach_out(fd) as target:
        assert count_losses([source, target]) == (LossState.IMPLAUSIBLE, lead)
        assert read_region(fd).rings[0].produced.drops == {}
        watch_losses([source], [target])
    with made.attach(1) as source, attach_out(fd) as target:
        assert count_losses([source, target]) == (LossState.COUNTED, 0), "from here on the sum is right again"


class Bridge:
    """Three links' ends as one forwarder that sends each frame of the first to both others."""

    def __init__(self, fds: list[int]) -> None:
        self.ports = [Region.attach(fd, GEOMETRY, LINK + number, 1, 1) for number, fd in enumerate(fds)]

    def begin(self) -> None:
        watch_losses(self.ports, self.ports)

    def take(self, frames: int) -> None:
        lib.rway_consumer_replicated(self.ports[0].consumers[0].native, frames)
        assert len(self.ports[0].consumers[0].receive(frames)) == frames

    def close(self) -> None:
        for port in self.ports:
            port.detach()


@pytest.fixture
def three_links() -> Iterator[list[int]]:
    fds = [create_region(GEOMETRY, LINK + number) for number in range(3)]
    yield fds
    for fd in fds:
        os.close(fd)


def send_to_bridge(fds: list[int], frames: int) -> None:
    with Region.attach(fds[0], GEOMETRY, LINK, 0, 1) as sender:
        assert sender.producers[0].send([FRAME] * frames) == frames


def is_balanced(fds: list[int]) -> bool:
    """Law 8, over all ports of the bridge: owed by what came in, paid by what went out."""
    rings = [ring for fd in fds for ring in read_region(fd).rings]
    owed = sum(ring.owed for ring in rings if ring.producing_side == 0)
    return owed == sum(ring.paid for ring in rings if ring.producing_side == 1)


@pytest.mark.parametrize("copies", [0, 1, 2])
def test_a_killed_bridge_is_missed_to_the_copy(three_links: list[int], copies: int) -> None:
    """After so many of two copies of each frame were published."""

    def flood() -> None:
        bridge = Bridge(three_links)
        bridge.begin()
        bridge.take(7)
        for port in bridge.ports[1 : 1 + copies]:
            assert port.producers[0].send([FRAME] * 7) == 7

    send_to_bridge(three_links, 7)
    run_and_kill(flood)
    assert is_balanced(three_links) == (copies == 2)
    bridge = Bridge(three_links)
    assert count_losses(bridge.ports) == (LossState.COUNTED, 7 * (2 - copies))
    assert is_balanced(three_links)
    bridge.close()


def test_what_a_function_consumed_or_made_itself_is_no_loss_and_no_gain(three_links: list[int]) -> None:
    def answer() -> None:
        bridge = Bridge(three_links)
        bridge.begin()
        first = bridge.ports[0]
        lib.rway_consumer_consumed(first.consumers[0].native, 3)
        assert len(first.consumers[0].receive(3)) == 3
        lib.rway_producer_originated(first.producers[0].native, 2)
        assert first.producers[0].send([FRAME] * 2) == 2
        lib.rway_producer_originated(first.producers[1].native, 1)
        first.producers[1].drop(DropCause.FULL, 1)
        assert first.producers[1].send([FRAME]) == 1  # the third: forwarded, and its input is killed before it shows

    send_to_bridge(three_links, 4)
    run_and_kill(answer)
    rings = read_region(three_links[0]).rings
    assert [(ring.originated, ring.paid) for ring in rings if ring.producing_side == 1] == [(2, 0), (1, 1)]
    (taken, *_) = rings
    assert (taken.consumed.frames, taken.replicated, taken.owed) == (3, WORD - 3, 0)


def test_a_bridge_of_other_ports_knows_what_the_one_before_lost_if_all_of_that_ones_are_there(
    three_links: list[int],
) -> None:
    def flood() -> None:
        bridge = Bridge(three_links)
        watch_losses(bridge.ports[:2], bridge.ports[:2])
        bridge.take(5)

    send_to_bridge(three_links, 5)
    run_and_kill(flood)
    bridge = Bridge(three_links)
    assert count_losses(bridge.ports[::2]) == (LossState.UNKNOWN, 0), "one of its two ports is not there"
    assert count_losses(bridge.ports) == (LossState.COUNTED, 10)
    bridge.begin()
    assert count_losses(bridge.ports) == (LossState.COUNTED, 0)
    bridge.close()


def test_a_forwarder_that_is_killed_while_it_begins_has_lost_nothing(three_links: list[int]) -> None:
    bridge = Bridge(three_links)
    bridge.begin()
    bridge.ports[0].forget_losses()  # as between the first half's number and the next one's
    assert count_losses(bridge.ports) == (LossState.UNKNOWN, 0)
    bridge.close()


# --- a region that replaces another ----------------------------------------------------------------------------------


def counts(frames: int, byte_count: int = 0, **drops: int) -> Counts:
    return Counts(frames, byte_count, 0, 0, 0, 0, drops)


def test_a_new_region_goes_on_from_the_books_of_the_old_and_what_was_in_flight_is_lost() -> None:
    with carrier(GEOMETRY) as made:
        with made.attach(0) as a, made.attach(1) as b:
            assert a.producers[1].send([FRAME] * 10 + [b"runt"]) == 11
            assert len(b.consumers[1].receive(4)) == 4
        fd = create_region(GEOMETRY, LINK, carried=carried_from(made.fd))
    ring = read_region(fd).rings[1]
    assert (ring.head, ring.tail, ring.in_flight, ring.offered, ring.delivered) == (0, 0, 0, 11, 4)
    assert (ring.produced.drops, ring.consumed.drops, ring.balanced) == ({"runt": 1}, {"restart": 6}, True)
    assert ring.consumed.bytes == ring.produced.bytes == 600
    with Region.attach(fd, GEOMETRY, LINK, 0) as a, Region.attach(fd, GEOMETRY, LINK, 1) as b:
        assert a.producers[1].send([FRAME]) == 1
        assert b.consumers[1].receive() == [FRAME]
    ring = read_region(fd).rings[1]
    assert (ring.offered, ring.delivered, ring.consumed.drops) == (12, 5, {"restart": 6})
    os.close(fd)


def test_frames_that_were_handed_on_before_a_kill_were_delivered_also_in_the_new_regions_books() -> None:
    with carrier(GEOMETRY) as made, made.attach(0) as a:
        assert a.producers[0].send([FRAME] * 6) == 6
        made.write(4, made.ring(0), "rway_ring_control", "begun")
        fd = create_region(GEOMETRY, LINK, carried=carried_from(made.fd))
    ring = read_region(fd).rings[0]
    assert (ring.delivered, ring.consumed.drops) == (3, {"restart": 3})
    os.close(fd)


def test_counts_of_a_ring_whose_head_and_tail_contradict_each_other_are_carried_all_the_same() -> None:
    with carrier(GEOMETRY) as made:
        with made.attach(0) as a:
            assert a.producers[0].send([FRAME] * 6) == 6
        made.set_tail(made.ring(0), 1000)
        carried = carried_from(made.fd)
    assert (carried.sides[0][0].produced.frames, carried.sides[0][0].consumed.frames) == (6, 0)
    assert len(carried.sides[0]) == len(carried.sides[1]) == GEOMETRY.queues


@pytest.mark.parametrize("field", ["magic", "major", "section_count"])
def test_nothing_is_carried_from_a_region_whose_header_is_damaged(field: str) -> None:
    with carrier(GEOMETRY) as made:
        made.write(77, 0, "rway_header", field)
        assert carried_from(made.fd) == Carried()
        fd = create_region(GEOMETRY, LINK, carried=Carried())
    assert all(ring.offered == 0 for ring in read_region(fd).rings)
    os.close(fd)


def test_nothing_is_carried_from_what_is_no_region(tmp_path: os.PathLike[str]) -> None:
    with open(os.path.join(tmp_path, "empty"), "w+b") as file:  # noqa: PTH118, PTH123
        assert carried_from(file.fileno()) == Carried()


def test_counts_of_queues_that_the_new_region_lacks_are_added_to_its_first_and_new_queues_begin_at_0() -> None:
    rings = tuple(CarriedRing(counts(10**n, 1, full=n), counts(10**n, 1)) for n in range(3))
    carried = Carried((rings, ()))
    fewer = carried.over(2).sides
    assert fewer[0][0] == CarriedRing(counts(101, 2, full=2), counts(101, 2))
    assert fewer[0][1] == rings[1]
    assert fewer[1] == (CarriedRing(), CarriedRing())
    more = carried.over(5).sides
    assert more[0] == (*rings, CarriedRing(), CarriedRing())
    assert len(more[1]) == 5


ACCOUNTS = st.builds(
    Counts, *[WORDS] * 6, drops=st.dictionaries(st.sampled_from([c.name.lower() for c in DropCause]), WORDS)
)
RINGS = st.lists(st.builds(CarriedRing, ACCOUNTS, ACCOUNTS), max_size=4).map(tuple)


@settings(deadline=None, max_examples=200)
@given(carried=st.builds(Carried, st.tuples(RINGS, RINGS)), queues=st.integers(1, 4))
def test_absurd_counts_are_carried_modulo_2_to_the_64_and_their_sums_go_on(carried: Carried, queues: int) -> None:
    geometry = Geometry(queues=queues, slot_count=64, slot_payload=256, headroom=64)
    fd = create_region(geometry, LINK, carried=carried)
    try:
        with Region.attach(fd, geometry, LINK, 0), Region.attach(fd, geometry, LINK, 1):
            snapshot = read_region(fd)
    finally:
        os.close(fd)
    assert all(ring.balanced and ring.in_flight == 0 for ring in snapshot.rings)
    for side in (0, 1):
        before = carried.sides[side]
        after = [ring for ring in snapshot.rings if ring.producing_side == side]
        for of in (
            lambda ring: ring.produced.frames + sum(ring.produced.drops.values()),
            lambda ring: ring.consumed.frames - sum(ring.consumed.drops.values()),
        ):
            assert sum(map(of, after)) % WORD == sum(map(of, before)) % WORD


# --- holding a region ------------------------------------------------------------------------------------------------


def test_a_detach_waits_until_nobody_holds_the_region() -> None:
    with carrier(GEOMETRY) as made:
        region = made.attach(0)
        held, let_go = threading.Event(), threading.Event()

        def use() -> None:
            with region.hold("a user"):
                held.set()
                let_go.wait()
                assert region.attached, "the region went away under its user"

        user = threading.Thread(target=use)
        user.start()
        held.wait()
        with pytest.raises(RegionHeldError, match="a user") as caught:
            region.detach(timeout=0)
        assert caught.value.holders == ("a user",)
        assert region.producers[0].send([FRAME]) == 1, "a detach that was refused changes nothing"
        let_go.set()
        region.detach()
        user.join()
        assert not region.attached
        with pytest.raises(ValueError, match="detached"), region.hold("too late"):
            pass


def test_a_region_that_is_being_detached_takes_no_new_holders() -> None:
    with carrier(GEOMETRY) as made:
        region = made.attach(0)
        with region.hold("a user"):
            leaving = threading.Thread(target=region.detach)
            leaving.start()
            refused = False
            while not refused:
                try:
                    with region.hold("another"):
                        pass
                except ValueError:
                    refused = True
        leaving.join()
        assert not region.attached


def test_a_loop_holds_all_regions_that_it_uses_until_it_is_closed(two_links: tuple[Carrier, int]) -> None:
    made, fd = two_links
    source, target = made.attach(1), attach_out(fd)
    loop = Loop("inside-outside/0", 0)
    packet_filter = Filter(("inside", "outside"))
    pipeline = Pipeline(loop)
    pipeline.filter(packet_filter.native)
    pipeline.out(1, Steering(target))
    pipeline.wire(source.consumers[0], 0, 1, 0)
    loop.start()
    for region in (source, target):
        with pytest.raises(RegionHeldError, match="loop inside-outside/0"):
            region.detach(timeout=0)
    loop.close()
    packet_filter.close()
    source.detach()
    target.detach()


def test_a_spread_alone_keeps_no_region() -> None:
    with carrier(GEOMETRY) as made:
        region = made.attach(0)
        steering = Steering(region)
        assert steering.send([FRAME]) == (1, None)
        region.detach(timeout=0)
        with pytest.raises(ValueError, match="detached"):
            steering.send([FRAME])


@pytest.mark.parametrize("killed", ["producer", "consumer"])
def test_a_new_incarnation_rings_for_what_the_killed_one_did_not(killed: str) -> None:
    fd = create_region(GEOMETRY, LINK)
    pipes = [make_bell() for _ in range(4 * GEOMETRY.queues)]  # by queue: for producer and consumer of a→b, of b→a
    sleeper = pipes[1 if killed == "producer" else 2][0]

    def silent_end() -> None:  # it has no bells: as one that is killed before it rings
        end = Region.attach(fd, GEOMETRY, LINK, 0)
        end.producers[0].send([FRAME])
        end.consumers[0].receive()

    with Region.attach(fd, GEOMETRY, LINK, 1) as peer:
        peer.producers[0].send([FRAME])
    run_and_kill(silent_end)
    assert select.select([sleeper], [], [], 0)[0] == []
    bells = []
    for queue in range(GEOMETRY.queues):
        own_producer, peers_consumer, peers_producer, own_consumer = pipes[4 * queue : 4 * queue + 4]
        bells.append(QueueBells(own_producer[0], peers_consumer[1], own_consumer[0], peers_producer[1]))
    with Region.attach(fd, GEOMETRY, LINK, 0, 2, bells):
        assert select.select([sleeper], [], [], 0)[0] == [sleeper]
    os.close(fd)
    for queue in range(GEOMETRY.queues):
        own_producer, peers_consumer, peers_producer, own_consumer = pipes[4 * queue : 4 * queue + 4]
        for left in (own_producer[1], peers_consumer[0], peers_producer[0], own_consumer[1]):
            os.close(left)
