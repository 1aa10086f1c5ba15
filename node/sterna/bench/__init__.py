"""Speed and memory, ours beside others', measured in one run: only ratios within a run mean something."""
