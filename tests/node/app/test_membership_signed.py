"""What `sterna invite`, `revoke`, `leave`, `id rotate` and `swarm reform` sign while the node is stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sterna.app import membership
from sterna.app.observe import LAST_SWARM
from sterna.app.reform import reform
from sterna.app.status import write_status
from sterna.errors import ConfigError
from sterna.store import Store, WaitingActs, open_store
from sterna_protocol.swarm.charter import Charter, sign_charter
from sterna_protocol.swarm.invitation import decode_invitation
from sterna_protocol.swarm.roll import Roll
from sterna_protocol.swarm.ticket import Ticket, decode_ticket, encode_ticket
from sterna_protocol.wire import signing
from sterna_protocol.wire.ids import peer_name
from sterna_protocol.wire.messages import Certificate, decode_frame
from tests.support.charters import key, small_charter


def founded(home: Path, *others: signing.SigningKey, **changes: Any) -> Charter:
    """A swarm that the home's key founded, together with ``others``."""
    with open_store(home) as store:
        own = signing.SigningKey.from_seed(store.key())
        keys = tuple(sorted((own, *others), key=lambda founder: founder.peer))
        terms = {"admission": "invite", "founders": tuple(founder.peer for founder in keys)}
        charter = small_charter(**(terms | changes))
        known(store, charter, keys)
    return charter


def known(store: Store, charter: Charter, keys: tuple[signing.SigningKey, ...]) -> None:
    swarm = store.add_swarm(sign_charter(charter, keys).encode())
    store.put_setting(LAST_SWARM, swarm.hex())


def ran(home: Path, charter: Charter) -> None:
    """The node of this home has run once, so that it knows an address of its own."""
    address = f"/ip4/192.0.2.7/tcp/4001/p2p/{peer_name(key(1).peer)}"
    ticket = encode_ticket(Ticket(charter.swarm_id, (address,)))
    write_status(home, {"pid": 0, "swarm": charter.swarm_id.hex(), "ticket": ticket})


def test_an_invite_is_a_ticket_that_lets_in_as_many_as_it_says(tmp_path: Path) -> None:
    charter = founded(tmp_path / "home")
    ran(tmp_path / "home", charter)
    made = membership.invite(tmp_path / "home", uses=2, rounds=7, may_invite=1)
    ticket = decode_ticket(made["ticket"])
    assert made["last_round"] == 7
    invitation = decode_invitation(ticket.invite, charter.swarm_id)
    roll = Roll.founding(charter)
    for joiner in (key(5), key(6)):
        roll = roll.changed([invitation.admit(joiner, charter.swarm_id)], 7, (), signing.verify)
    assert roll.listed[key(6).peer].may_invite == 1


def test_two_invites_are_two(tmp_path: Path) -> None:
    ran(tmp_path / "home", founded(tmp_path / "home"))
    tickets = {
        membership.invite(tmp_path / "home", uses=1, rounds=1, may_invite=0)["ticket"] for _ in range(2)
    }
    assert len(tickets) == 2


@pytest.mark.parametrize(
    ("terms", "why"),
    [
        ({"uses": 4}, "may invite 3 more, not 4"),
        ({"may_invite": 4}, "over the charter's 3"),
        ({"rounds": 2**32}, "last_round"),
    ],
)
def test_an_invite_that_the_swarm_would_refuse_is_refused_here(
    tmp_path: Path, terms: dict[str, int], why: str
) -> None:
    ran(tmp_path / "home", founded(tmp_path / "home", invite_quota=3))
    with pytest.raises(ConfigError, match=why):
        membership.invite(tmp_path / "home", **({"uses": 1, "rounds": 1, "may_invite": 0} | terms))


def test_a_ticket_needs_an_address(tmp_path: Path) -> None:
    founded(tmp_path / "home")
    with pytest.raises(ConfigError, match="has not run yet"):
        membership.invite(tmp_path / "home", uses=1, rounds=1, may_invite=0)


def test_who_leaves_signs_it_and_its_node_finds_it(tmp_path: Path) -> None:
    charter = founded(tmp_path / "home", key(2))
    membership.leave(tmp_path / "home")
    [act] = WaitingActs(tmp_path / "home", charter.swarm_id).all()
    after = Roll.founding(charter).changed([act], 1, (), signing.verify)
    assert after.founders == (key(2).peer,)
    assert after.has_done(act)
    WaitingActs(tmp_path / "home", charter.swarm_id).drop(act)
    assert WaitingActs(tmp_path / "home", charter.swarm_id).all() == []


@pytest.mark.parametrize("name", ["nobody", peer_name(key(9).peer), peer_name(key(2).peer)])
def test_who_cannot_be_revoked_is_not(tmp_path: Path, name: str) -> None:
    charter = founded(tmp_path / "home", key(2))
    with pytest.raises(ConfigError):
        membership.revoke(tmp_path / "home", name)
    assert WaitingActs(tmp_path / "home", charter.swarm_id).all() == []


def test_a_peer_to_revoke_is_found_by_as_much_of_its_id_as_peers_shows(tmp_path: Path) -> None:
    founded(tmp_path / "home", key(2))
    name = peer_name(key(2).peer)
    with pytest.raises(ConfigError, match=f"{name} is a founder, and nobody revokes one"):
        membership.revoke(tmp_path / "home", name[:12])


def test_a_rotation_is_signed_for_every_swarm_and_always_to_the_same_key(tmp_path: Path) -> None:
    charters = [founded(tmp_path / "home", name=name) for name in ("one", "two")]
    first, second = (membership.rotate(tmp_path / "home") for _ in range(2))
    assert first == second
    for charter in charters:
        [act] = WaitingActs(tmp_path / "home", charter.swarm_id).all()
        after = Roll.founding(charter).changed([act], 1, (), signing.verify)
        assert [peer_name(founder) for founder in after.founders] == [first["new"]]


def test_founders_reform_together(tmp_path: Path) -> None:
    with open_store(tmp_path / "one") as store:
        one = signing.SigningKey.from_seed(store.key())
    with open_store(tmp_path / "two") as store:
        two = signing.SigningKey.from_seed(store.key())
    keys = tuple(sorted((one, two), key=lambda founder: founder.peer))
    charter = small_charter(admission="invite", founders=tuple(founder.peer for founder in keys))
    for home in ("one", "two"):
        with open_store(tmp_path / home) as store:
            known(store, charter, keys)
    name = peer_name(two.peer)
    proposed = reform(tmp_path / "one", None, (name[:20],))
    assert (proposed["missing"], proposed["done"], proposed["round"]) == (1, False, 1)
    done = reform(tmp_path / "two", proposed["reform"], ())
    assert (done["missing"], done["committee"]) == (0, [name])
    with open_store(tmp_path / "two") as store:
        certificate = decode_frame(store.head(charter.swarm_id) or b"")
    assert isinstance(certificate, Certificate)
    assert certificate.decision.committee == (two.peer,)
    # The first takes what the second completed, once.
    assert reform(tmp_path / "one", done["reform"], ())["done"]
    with pytest.raises(ConfigError, match="its chain is longer"):
        reform(tmp_path / "one", done["reform"], ())


def test_a_founder_signs_one_reform_of_a_round(tmp_path: Path) -> None:
    founded(tmp_path / "home", key(2))
    reform(tmp_path / "home", None, (peer_name(key(2).peer),))
    assert reform(tmp_path / "home", None, (peer_name(key(2).peer),))["missing"] == 1
    with pytest.raises(ConfigError, match="a second one would split the swarm"):
        reform(tmp_path / "home", None, ())


def test_nobody_else_reforms(tmp_path: Path) -> None:
    with open_store(tmp_path / "home") as store:
        store.key()
        known(store, small_charter(admission="invite", founders=(key(2).peer,)), (key(2),))
    with pytest.raises(ConfigError, match="only a founder"):
        reform(tmp_path / "home", None, ())
