"""A real swarm of four processes on this machine, watched, pulled from and measured."""
