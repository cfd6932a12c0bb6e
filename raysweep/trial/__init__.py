"""One trial: walk its chain of stages, skip what the store holds, evaluate, commit."""
