"""The node: one trio process that runs the protocol over libp2p and over the coordinator's link."""

__version__ = "0.1.0"
