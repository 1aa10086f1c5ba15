"""The protocol broken on purpose, one rule at a time: something must notice, or the checks prove nothing.

Each mutation changes a copy of the package; a few simulated swarms run on it, and the tests of the rounds if
none of them notices. Run by hand: python -m tests.node.simulate.mutations [FIRST [COUNT]].
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[3]
PACKAGE = ROOT / "protocol" / "sterna_protocol"
SECONDS = 600
"""Longest time of one child: a swarm that never ends is one that noticed nothing."""


@dataclass(frozen=True, slots=True)
class Mutation:
    name: str
    file: str
    old: str
    new: str


MUTATIONS = (
    Mutation(
        "no lock",
        "round/consensus.py",
        "self.locked = Lock(self.attempt, choice)",
        "pass",
    ),
    Mutation("quorum off by one", "swarm/committee.py", "2 * members // 3 + 1", "2 * members // 3"),
    Mutation("blocking off by one", "swarm/committee.py", "members) + 1", "members)"),
    Mutation(
        "a void certificate needs no quorum",
        "round/certificate.py",
        "if len(certificate.signatures) < needed:",
        "if len(certificate.signatures) < needed and not certificate.decision.is_void:",
    ),
    Mutation(
        "a void decision may change the adapter",
        "round/certificate.py",
        "if decision.is_void and previous_adapter is not None and decision.adapter != previous_adapter:",
        "if False:",
    ),
    Mutation(
        "sent before it is stored",
        "round/open_round.py",
        "self._out += stored",
        "self._out += [*(Broadcast(held.frame) for _ in stored), *stored]",
    ),
    Mutation(
        "slate in order of arrival",
        "round/pool.py",
        "key=lambda name: (-counts[name], name),",
        "key=lambda name: 0,",
    ),
    Mutation(
        "no quorum of attestations for a delta",
        "round/slate.py",
        "elif any(len(pool.supporters(entry.announcement)) < quorum for entry in decision.entries):",
        "elif False:",
    ),
    Mutation(
        "the chain's link is not looked at",
        "round/certificate.py",
        "if decision.previous != previous:",
        "if False:",
    ),
    Mutation(
        "own messages are forgotten in a crash",
        "node.py",
        "recover(key.peer, self._chain.round_, own_frames)",
        "recover(key.peer, self._chain.round_, ())",
    ),
    Mutation(
        "the lock is forgotten in a crash",
        "round/open_round.py",
        "self._consensus.restore(attempt, at, locked, proposed=proposed)",
        "self._consensus.restore(attempt, at, None, proposed=proposed)",
    ),
    Mutation(
        "committee without sortition",
        "swarm/committee.py",
        'key=lambda member: sha256(b"sterna/sortition/1", certificate.id, member)',
        'key=lambda member: sha256(b"sterna/sortition/1", member)',
    ),
    Mutation(
        "attesters have no seat",
        "swarm/committee.py",
        "took_part = {entry.author for entry in decision.entries} | set(decision.attesters)",
        "took_part = {entry.author for entry in decision.entries}",
    ),
    Mutation(
        "signatures of a certificate are not checked",
        "round/certificate.py",
        "        verify(entry.member, entry.signature, signed)",
        "        pass",
    ),
    Mutation(
        "signatures of messages are not checked", "round/checks.py", "    verify_held(held, verify)", ""
    ),
    Mutation(
        "anybody's merge is believed",
        "round/deliberation.py",
        "Verdict.YES if merge == decision.adapter else Verdict.NO",
        "Verdict.YES",
    ),
    Mutation("evidence is not checked", "round/checks.py", "    evidence.verify(verify)", "    pass"),
    Mutation(
        "nothing is sent again",
        "round/open_round.py",
        "self._out += [Broadcast(held.frame) for held in self._own if self._is_resent(held)]",
        "pass",
    ),
    Mutation(
        "nobody is excluded",
        "round/slate.py",
        "new = sorted(set(pool.proofs()) - set(excluded))",
        "new: list[bytes] = []",
    ),
    Mutation(
        "nobody is waited for",
        "round/neighbours.py",
        "return peer == self._me or peer in self.connected or peer in self._heard or peer in self._leaving",
        "return False",
    ),
    Mutation(
        "whoever was heard once is there for ever",
        "round/neighbours.py",
        "            self._heard.pop(peer, None)\n",
        "",
    ),
    Mutation(
        "a quick round makes the next ones impossibly quick",
        "round/pace.py",
        "min(max(middle + SPREAD * spread, least / 1000), most / 1000)",
        "min(middle, most / 1000)",
    ),
    Mutation(
        "a proof is dropped with the votes it is about",
        "round/pool.py",
        "if evidence is not None and old.author not in self._proofs:",
        "if False:",
    ),
    Mutation(
        "a proof is forgotten with the seat",
        "round/open_round.py",
        "            self.pool.remember(evidence)",
        "            pass",
    ),
    Mutation(
        "anybody proposes",
        "round/checks.py",
        "message.author != setting.proposer(message.attempt)",
        "False",
    ),
    Mutation(
        "strangers take the room of what a quorum attested",
        "round/checks.py",
        " and name not in pool.attested(setting.quorum)",
        "",
    ),
)

TRIALS = """
from sterna.simulate.faults import Faults
from sterna.simulate.trial import Trial, run_trial
bad = Faults(loss=0.3, duplicate=0.1, partition=0.5, crash=0.4, skew=0.05)
calm = Faults(loss=0.1)
trials = [
    Trial(peers=peers, rounds=5, seed=seed, byzantine=share, attack=attack, faults=faults,
          rule="mean", trim=20)
    for seed in range(1, 3)
    for peers, share, attack, faults in (
        (8, 0.25, "forge", calm), (8, 0.25, "lie", calm), (8, 0.25, "late", calm),
        (8, 0.25, "everything", bad),
        (8, 0.25, "equivocate-proposal", calm), (8, 0.25, "equivocate-votes", bad), (7, 0.0, "mixed", bad),
    )
]
for trial in trials:
    report = run_trial(trial)
    if report.violations:
        print(report.violations[0][:90], "|", report.command)
        sys.exit(1)
"""

TESTS = """
import pytest
sys.exit(pytest.main([
    "-q", "-x", "-p", "no:cacheprovider",
    # What breaks rules itself and expects to be noticed proves nothing about another rule.
    "--ignore=tests/protocol/round/test_broken_on_purpose.py",
    "tests/node/simulate/test_simulate.py::test_what_once_broke_holds",
    "tests/protocol/round",
    "tests/node/simulate/test_machine.py",
]))
"""


def main(first: int = 0, count: int = len(MUTATIONS)) -> int:
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        if said := run(PACKAGE.parent, TRIALS):
            sys.stdout.write(f"the protocol as it is does not hold: {said}\n")
            return 1
        for number, mutation in enumerate(MUTATIONS[first : first + count], start=first):
            copy = Path(folder) / str(number)
            shutil.copytree(PACKAGE, copy / "sterna_protocol", ignore=shutil.ignore_patterns("__pycache__"))
            change(copy / "sterna_protocol" / mutation.file, mutation)
            said, by = run(copy, TRIALS), "simulator"
            if not said:
                said, by = run(copy, TESTS), "tests"
            missed += not said
            sys.stdout.write(f"| {mutation.name} | {by if said else 'NOBODY'} | {said or ''} |\n")
            sys.stdout.flush()
    return 1 if missed else 0


def change(path: Path, mutation: Mutation) -> None:
    source = path.read_text()
    if mutation.old not in source:
        raise ValueError(f"{mutation.name}: {mutation.file} has no {mutation.old!r}")
    path.write_text(source.replace(mutation.old, mutation.new, 1))


def run(package: Path, script: str) -> str | None:
    """What a child says that notices something wrong with the protocol in ``package``, None if nothing is."""
    # An editable installation finds its packages before any path does.
    begin = (
        "import sys\n"
        "sys.meta_path = [f for f in sys.meta_path if type(f).__name__ != 'ScikitBuildRedirectingFinder']\n"
        f"sys.path.insert(0, {str(package)!r})\n"
        "import sterna_protocol\n"
        f"assert sterna_protocol.__file__.startswith({str(package)!r})\n"
    )
    try:
        child = subprocess.run(
            [sys.executable, "-c", begin + script],
            cwd=ROOT,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
    except subprocess.TimeoutExpired:
        return None
    if child.returncode == 0:
        return None
    lines = [line for line in (child.stdout + child.stderr).splitlines() if line.strip()]
    failed = [line for line in lines if line.startswith("FAILED")]
    return (failed or lines or ["?"])[-1][:200]


if __name__ == "__main__":
    sys.exit(main(*(int(word) for word in sys.argv[1:])))
