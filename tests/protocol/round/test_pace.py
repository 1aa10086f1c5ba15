"""How long a node waits: for whom, and for how long at most."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import pytest

from sterna_protocol.round.neighbours import Neighbours
from sterna_protocol.round.pace import KEPT_ROUNDS, MIN_ARRIVALS, Course, Pace
from sterna_protocol.round.phases import Phase
from sterna_protocol.wire.messages import Kind
from tests.support.virtual_network import VirtualNetwork
from tests.support.virtual_peer import key_of, virtual_charter

CHARTER = virtual_charter((key_of(0).peer,))  # 20 s to train, stale by 2 at most; 3 s to attest; 1 s a vote
ME, FRIEND, OTHER = (key_of(number).peer for number in range(3))


def pace_of(phase: Phase, *rounds: Iterable[float]) -> Pace:
    pace = Pace(CHARTER)
    for number, seconds in enumerate(rounds):
        course = Course()
        course.begin(phase, 100.0 * number)
        for place, each in enumerate(seconds):
            course.note_arrival(phase, bytes((place,)), 100.0 * number + each)
        pace.note_round(course, 100.0 * number + 50.0)
    return pace


def test_without_experience_a_phase_has_the_charters_time():
    assert Pace(CHARTER).limits() == {
        Phase.TRAIN: 20.0,
        Phase.REVEAL: 3.0,
        Phase.ATTEST: 3.0,
        Phase.DECIDE: 1.0,
    }
    too_few = [1.0] * (MIN_ARRIVALS - 1)
    assert pace_of(Phase.TRAIN, too_few).limits()[Phase.TRAIN] == 20.0


def test_the_time_is_the_usual_one_and_six_times_how_much_it_varies():
    times = [8.0, 8.5, 9.0, 9.0, 9.0, 9.5, 10.0, 10.0, 30.0]  # median 9.0, deviations' median 0.5
    assert pace_of(Phase.TRAIN, times).limits()[Phase.TRAIN] == 9.0 + 6 * 0.5


@pytest.mark.parametrize(
    ("phase", "least", "most"),
    [
        (Phase.TRAIN, 20 / 3, 20.0),
        (Phase.REVEAL, 0.75, 3.0),
        (Phase.ATTEST, 0.75, 3.0),
        (Phase.DECIDE, 0.25, 1.0),
    ],
)
def test_the_time_stays_within_the_charters_bounds(phase: Phase, least: float, most: float):
    assert pace_of(phase, [0.0] * 20).limits()[phase] == pytest.approx(least)
    assert pace_of(phase, [50.0] * 20).limits()[phase] == most


def test_what_was_long_ago_is_forgotten():
    slow, quick = [15.0] * 8, [7.0] * 8
    assert pace_of(Phase.TRAIN, slow, *[quick] * (KEPT_ROUNDS - 1)).limits()[Phase.TRAIN] == 7.0
    remembered = pace_of(Phase.TRAIN, *[slow] * 5, *[quick] * (KEPT_ROUNDS - 5))
    assert remembered.limits()[Phase.TRAIN] == 15.0


def test_a_round_without_arrivals_teaches_nothing():
    pace = pace_of(Phase.TRAIN, [7.0] * 8, *[[]] * KEPT_ROUNDS)
    assert pace.limits()[Phase.TRAIN] == 7.0


def test_what_comes_before_its_phase_counts_as_at_once_and_what_never_comes_until_the_round_closed():
    course = Course()
    course.note_arrival(Phase.ATTEST, b"early", 5.0)
    course.begin(Phase.ATTEST, 7.0)
    course.note_arrival(Phase.ATTEST, b"in time", 8.0)
    course.note_late(Phase.ATTEST, [b"in time", b"late", b"never"])
    course.note_arrival(Phase.ATTEST, b"late", 11.0)
    course.note_arrival(Phase.ATTEST, b"late", 12.0)
    course.note_arrival(Phase.REVEAL, b"of a phase that was skipped", 8.0)
    assert course.arrivals(17.0) == [
        (Phase.ATTEST, 0.0),
        (Phase.ATTEST, 1.0),
        (Phase.ATTEST, 4.0),
        (Phase.ATTEST, 10.0),
    ]


# Who is there


def test_who_was_neither_connected_nor_heard_is_away():
    around = Neighbours(ME, 4.0)
    assert around.is_present(ME)
    assert not around.is_present(FRIEND)
    around.note_heard(FRIEND, 3)
    around.set_connected(0.0, frozenset({OTHER}))
    assert around.is_present(FRIEND)
    assert around.is_present(OTHER)


def test_who_loses_the_connection_is_away_a_moment_later():
    around = Neighbours(ME, 4.0)
    around.set_connected(0.0, frozenset({FRIEND}))
    around.note_heard(FRIEND, 1)
    around.set_connected(10.0, frozenset())
    around.settle(10.9)
    assert around.is_present(FRIEND)
    assert around.next_gone() == 11.0
    around.settle(11.0)
    assert not around.is_present(FRIEND)
    assert around.next_gone() == float("inf")


def test_who_is_back_or_heard_again_is_there():
    around = Neighbours(ME, 4.0)
    around.set_connected(0.0, frozenset({FRIEND, OTHER}))
    around.set_connected(10.0, frozenset())
    around.set_connected(10.5, frozenset({FRIEND}))
    around.note_heard(OTHER, 1)
    around.settle(20.0)
    assert around.is_present(FRIEND)
    assert around.is_present(OTHER)


def test_who_was_heard_two_rounds_ago_is_away():
    around = Neighbours(ME, 4.0)
    around.note_heard(FRIEND, 3)
    around.open_round(4)
    assert around.is_present(FRIEND)
    around.open_round(5)
    assert not around.is_present(FRIEND)


# Swarms in virtual time


def closing_times(net: VirtualNetwork, rounds: int) -> list[float]:
    """Virtual seconds that each of the next rounds takes, until all who live have closed it."""
    times = [net.now]
    for _ in range(rounds):
        first = min(len(peer.disk.certificates) for peer in net.peers if peer.node is not None)
        net.run(
            lambda net, goal=first + 1: all(
                len(peer.disk.certificates) >= goal for peer in net.peers if peer.node is not None
            ),
            net.now + 1000.0,
        )
        times.append(net.now)
    return [later - earlier for earlier, later in pairwise(times)]


def kill(net: VirtualNetwork, number: int) -> None:
    """Take a peer down for good."""
    peer = net.peers[number]
    peer.node = None
    peer.life += 1
    net._connect()


def slow_charter(peers: int):
    """Phases as long as the default charter's, so that waiting one out shows."""
    founders = tuple(sorted(key_of(number).peer for number in range(peers)))
    timing = CHARTER.timing.model_copy(update={"train": 600_000, "attest": 60_000, "vote": 10_000})
    return virtual_charter(founders).model_copy(update={"timing": timing})


@pytest.mark.parametrize("dead", range(4))
def test_a_dead_member_costs_its_last_committee_no_phase(dead: int):
    net = VirtualNetwork(7, 4, charter=slow_charter(4))
    net.run_rounds(2)
    training = net.now + 1.0
    net.run(lambda net: net.now >= training, 10_000.0)
    kill(net, dead)
    assert max(closing_times(net, 3)) < 20.0


def test_a_member_that_dies_between_its_commitment_and_its_announcement_costs_no_phase():
    net = VirtualNetwork(3, 4, charter=slow_charter(4))
    net.run_rounds(1)
    victim = net.peers[2].id
    net.passes = lambda sender, receiver, frame: sender.id != victim or frame[0] != Kind.ANNOUNCEMENT
    net.syncs = lambda asker, peer: peer.id != victim
    net.run(lambda net: victim in net.peers[0].node.status().committed, 10_000.0)
    net.run(lambda net: net.peers[0].node.phase is not Phase.TRAIN, 10_000.0)
    kill(net, 2)
    assert closing_times(net, 1)[0] < 30.0


def test_a_connected_member_that_hangs_is_waited_for_as_long_as_usual():
    net = VirtualNetwork(5, 5, charter=slow_charter(5))
    net.run_rounds(4)
    hung = net.peers[4].id
    net.passes = lambda sender, receiver, frame: sender.id != hung
    net.syncs = lambda asker, peer: peer.id != hung
    [seconds] = closing_times(net, 1)
    # TRAIN at its least: 600 s / 3; REVEAL and ATTEST at most a quarter of a minute each; a dead proposer.
    assert 200.0 <= seconds < 260.0


def test_a_member_that_is_only_heard_through_others_is_waited_for():
    net = VirtualNetwork(11, 4, charter=slow_charter(4))
    slow = net.peers[3]
    linked = net.are_connected
    net.are_connected = lambda one, other: linked(one, other) and {one.number, other.number} != {0, 3}
    net.run_rounds(1)
    node = net.peers[0].node
    held_back = {"until": float("inf")}
    net.passes = lambda sender, receiver, frame: (
        not (sender is slow and frame[0] == Kind.ATTESTATION and net.now < held_back["until"])
    )
    net.syncs = lambda asker, peer: peer is not slow or net.now >= held_back["until"]
    net.run(lambda net: node.phase is Phase.ATTEST and node.round_ == 2, 10_000.0)
    held_back["until"] = net.now + 10.0
    net.run(lambda net: node.phase is not Phase.ATTEST, 10_000.0)
    assert slow.id not in net.peers[0].node._neighbours.connected
    assert net.now >= held_back["until"]
