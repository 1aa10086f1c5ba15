"""A child without torch for the tests of the pipe: does what each message says."""

import os
import sys

from sterna.pipe import connect_parent

pipe = connect_parent()
while (message := pipe.receive()) is not None:
    match message["do"]:
        case "echo":
            pipe.send({"got": message["what"]})
        case "exit":
            sys.stderr.write("a traceback\nOops: the last line\n")
            sys.stderr.flush()
            os._exit(3)
        case "closed":
            os.close(int(sys.argv[1]))
            os._exit(0)
        case "raw":
            pipe._pipe.sendall(message["what"])
        case "count":
            waiting = 0
            while pipe.receive_nowait() is not None:
                waiting += 1
            pipe.send({"waiting": waiting})
        case "parent":
            pipe.send({"parent": os.getppid(), "arguments": sys.argv[2:], "extra": os.environ.get("EXTRA")})
        case "stuck":
            pipe.send({"stuck": True})
            while True:
                os.read(0, 1) or os.sched_yield()
