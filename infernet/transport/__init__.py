"""How bytes travel between nodes: one contract, libp2p for the world, memory for tests."""
