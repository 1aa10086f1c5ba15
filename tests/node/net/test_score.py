from sterna.net import score
from sterna.net.score import Offence, Scores

ALICE, BOB = b"a" * 32, b"b" * 32


def test_a_second_lie_bans_and_a_first_does_not():
    scores = Scores()
    assert not scores.add(ALICE, Offence.LIED, 0.0)
    assert not scores.is_banned(ALICE, 0.0)
    assert scores.add(ALICE, Offence.LIED, 0.0)
    assert scores.is_banned(ALICE, 0.0)
    assert not scores.is_banned(BOB, 0.0)


def test_points_halve_in_one_half_life():
    scores = Scores()
    scores.add(ALICE, 80, 0.0)
    assert scores.points(ALICE, score.HALF_LIFE) == 40.0
    assert not scores.add(ALICE, 50, score.HALF_LIFE)
    assert scores.points(ALICE, score.HALF_LIFE) == 90.0


def test_a_ban_ends_at_its_time_and_starts_from_nothing():
    scores = Scores()
    scores.add(ALICE, score.LIMIT, 0.0)
    assert scores.is_banned(ALICE, score.BAN_SECONDS - 0.001)
    assert not scores.is_banned(ALICE, score.BAN_SECONDS)
    assert not scores.add(ALICE, Offence.LIED, score.BAN_SECONDS)


def test_a_banned_peer_is_banned_once_only():
    scores = Scores()
    assert scores.add(ALICE, score.LIMIT, 0.0)
    assert not scores.add(ALICE, score.LIMIT, 1.0)


def test_memory_is_bounded_and_the_worst_are_remembered():
    scores = Scores()
    scores.add(ALICE, 90, 0.0)
    for i in range(score.MAX_PEERS + 1):
        scores.add(i.to_bytes(32, "big"), 1, 0.0)
    assert scores.points(ALICE, 0.0) == 90
    assert len(scores._points) <= score.MAX_PEERS
    for i in range(score.MAX_PEERS + 10):
        scores.add(i.to_bytes(32, "big"), score.LIMIT, float(i))
    assert len(scores._banned_until) <= score.MAX_PEERS
