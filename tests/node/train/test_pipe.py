"""The pipe to a spawned child: frames go both ways, and a death on either side is noticed."""

import asyncio
import os
import signal
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from sterna import pipe as module
from sterna.pipe import ChildDied, start_child

MODULE = "tests.node.train.echo_child"
ROOT = str(Path(__file__).parents[3])

pytestmark = pytest.mark.real


@asynccontextmanager
async def child(*arguments: str, **environment: str):
    started = await start_child(MODULE, *arguments, environment={"PYTHONPATH": ROOT, **environment})
    try:
        yield started
    finally:
        await started.close(kill=True)


@pytest.mark.asyncio
async def test_messages_come_back_as_they_were_sent():
    async with child() as echo:
        for what in (None, 5, "é", b"\0" * 300_000, [1, {"a": -1.5}], True):
            await echo.send({"do": "echo", "what": what})
            assert await echo.receive() == {"got": what}


@pytest.mark.asyncio
async def test_an_adapter_of_a_base_of_two_billion_weights_comes_back():
    adapter = bytes(40 + 4 * 4 * 5_500_000)
    async with child() as echo:
        await echo.send({"do": "echo", "what": adapter})
        assert await echo.receive() == {"got": adapter}


@pytest.mark.asyncio
async def test_arguments_and_environment_arrive():
    async with child("one", "2", EXTRA="more") as echo:
        await echo.send({"do": "parent"})
        assert await echo.receive() == {"parent": os.getpid(), "arguments": ["one", "2"], "extra": "more"}


@pytest.mark.asyncio
async def test_the_child_can_look_for_messages_without_waiting():
    async with child() as echo:
        for message in ({"do": "count"}, {"do": "echo", "what": 1}):
            await echo.send(message)
        first = await echo.receive()
        # The second message may have come before or after the child looked; it is not lost either way
        # unless the child counted it.
        if first == {"waiting": 0}:
            assert await echo.receive() == {"got": 1}
        else:
            assert first == {"waiting": 1}


@pytest.mark.asyncio
async def test_an_exit_is_reported_with_code_and_last_words():
    async with child() as echo:
        await echo.send({"do": "exit"})
        with pytest.raises(ChildDied, match="ended with code 3: Oops: the last line"):
            await echo.receive()


@pytest.mark.asyncio
async def test_a_kill_is_reported_with_its_signal():
    async with child() as echo:
        os.kill(echo.pid, signal.SIGKILL)
        with pytest.raises(ChildDied, match=r"was killed by signal 9 \(Killed\)"):
            await echo.receive()
        with pytest.raises(ChildDied, match="was killed by signal 9"):
            for _ in range(100):
                await echo.send({"do": "echo", "what": b"x" * 100_000})


@pytest.mark.asyncio
async def test_frames_that_are_too_large_or_no_msgpack_are_refused(monkeypatch):
    async with child() as echo:
        await echo.send({"do": "raw", "what": b"\xff\xff\xff\xff"})
        with pytest.raises(ChildDied, match="sent a frame of 4294967295 bytes"):
            await echo.receive()
    for body in (b"\xc1", b"\x05", b"\xd4\x01\x00"):
        async with child() as echo:
            await echo.send({"do": "raw", "what": len(body).to_bytes(4, "big") + body})
            with pytest.raises(ChildDied, match=r"not msgpack|not a map"):
                await echo.receive()
            assert echo._process.returncode == -signal.SIGKILL
    monkeypatch.setattr(module, "MAX_FRAME_BYTES", 100)
    async with child() as echo:
        with pytest.raises(ValueError, match="the limit is 100"):
            await echo.send({"do": "echo", "what": b"x" * 100})


@pytest.mark.asyncio
async def test_a_reader_that_is_cancelled_inside_a_frame_loses_nothing():
    frame = len(body := b"\x81\xa3got\x05").to_bytes(4, "big") + body
    async with child() as echo:
        for cut in range(len(frame)):
            echo._reader = asyncio.StreamReader()
            echo._reader.feed_data(frame[:cut])
            reading = asyncio.create_task(echo.receive())
            for _ in range(5):  # until it waits for the rest
                await asyncio.sleep(0)
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
            echo._reader.feed_data(frame[cut:])
            assert await echo.receive() == {"got": 5}


@pytest.mark.asyncio
async def test_closing_ends_a_child_that_listens_and_one_that_does_not(monkeypatch):
    monkeypatch.setattr(module, "TERMINATE_SECONDS", 0.05)
    async with child() as echo:
        await echo.close()
        assert echo._process.returncode is not None
    async with child() as echo:
        await echo.send({"do": "stuck"})
        assert await echo.receive() == {"stuck": True}
        await echo.close()
        assert echo._process.returncode == -signal.SIGKILL


@pytest.mark.asyncio
async def test_the_child_dies_with_its_parent():
    script = f"""
import asyncio, os
from sterna.pipe import start_child
async def main():
    child = await start_child({MODULE!r}, environment={{"PYTHONPATH": {ROOT!r}}})
    await child.send({{"do": "stuck"}})
    await child.receive()
    print(child.pid, flush=True)
    os.kill(os.getpid(), 9)
asyncio.run(main())
"""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": ROOT}
    )
    out, _ = await process.communicate()
    pid = int(out)
    async with asyncio.timeout(20):
        while Path(f"/proc/{pid}").exists() and "State:\tZ" not in Path(f"/proc/{pid}/status").read_text():
            await asyncio.sleep(0.01)


def test_a_child_started_by_hand_says_so():
    done = subprocess.run([sys.executable, "-m", MODULE], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "is started by Sterna itself, not by hand" in done.stderr
