"""`sterna swarm reform`: founders name a new committee by hand. The node of the home must be stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sterna.app.homes import open_home
from sterna.app.membership import Member, open_member
from sterna.app.names import find_peer
from sterna.errors import ConfigError
from sterna.store import Store
from sterna_protocol.errors import MalformedMessage, RemoteProtocolError, Untimely
from sterna_protocol.round.reform import (
    decode_reform,
    encode_reform,
    join_signatures,
    missing_signatures,
    propose_reform,
    require_current,
    sign_reform,
)
from sterna_protocol.wire.ids import peer_name
from sterna_protocol.wire.messages import Certificate, Kind


def reform(home: Path | None, text: str | None, committee: tuple[str, ...]) -> dict[str, Any]:
    """Propose a reform, or sign the one in ``text``; signed by a quorum of founders, it closes the round.

    Keys: reform (the text for the others), round, committee (names), missing (signatures), done.

    Raises:
        ConfigError: the node is no founder's, the reform does not fit its chain, or a name is not one.
        StorageError: the home's node runs.
    """
    with open_home(home) as store:
        member = open_member(home)
        if text is None:
            certificate = _proposed(store, member, committee)
        else:
            certificate = _taken(store, member, text)
        missing = missing_signatures(member.chain, member.charter, certificate)
        if missing == 0:
            store.put_certificate(member.swarm, certificate.round_, certificate.frame())
        return {
            "reform": encode_reform(certificate),
            "round": certificate.round_,
            "committee": [peer_name(peer) for peer in certificate.decision.committee],
            "missing": missing,
            "done": missing == 0,
        }


def _proposed(store: Store, member: Member, committee: tuple[str, ...]) -> Certificate:
    if member.key.peer not in member.roll.founders:
        raise ConfigError("only a founder reforms a swarm; a founder's reform is taken with its text")
    peers = [find_peer(name, member.roll.listed) for name in committee]
    try:
        decision = propose_reform(member.chain, peers or list(member.roll.founders))
    except (MalformedMessage, Untimely) as refused:
        raise ConfigError(f"{refused}; `sterna peers` lists who may sit") from refused
    return _signed(store, member, sign_reform(member.charter, member.key, decision))


def _taken(store: Store, member: Member, text: str) -> Certificate:
    try:
        certificate = decode_reform(text)
        require_current(member.chain, certificate.decision)
        missing_signatures(member.chain, member.charter, certificate)
    except (RemoteProtocolError, Untimely) as refused:
        raise ConfigError(str(refused)) from refused
    if member.key.peer not in member.roll.founders:
        return certificate
    own = sign_reform(member.charter, member.key, certificate.decision)
    return join_signatures(member.charter, certificate, _signed(store, member, own))


def _signed(store: Store, member: Member, certificate: Certificate) -> Certificate:
    """``certificate``, on the disk before anybody sees it: a founder signs one reform of a round."""
    frame = bytes((Kind.REFORM,)) + certificate.encode()
    kept = [
        own for own in store.own_frames(member.swarm, certificate.round_) if own[:1] == bytes((Kind.REFORM,))
    ]
    if kept and kept[0] != frame:
        names = ", ".join(peer_name(peer) for peer in Certificate.decode(kept[0][1:]).decision.committee)
        raise ConfigError(
            f"this founder already signed another reform of round {certificate.round_}, with the committee "
            f"{names}: a second one would split the swarm"
        )
    store.put_own(member.swarm, certificate.round_, 0, Kind.REFORM, frame)
    return certificate
