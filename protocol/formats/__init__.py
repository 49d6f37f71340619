"""Pure build-and-parse pairs for formats that both the node and the coordinator handle."""
