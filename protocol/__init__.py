"""The rules of Infernet, without input or output.

Nothing in this package awaits, reads a clock, draws randomness or opens a socket: time and randomness are
passed in, and what should happen outside is returned as a list of effects. The same code therefore runs over
libp2p (infernet, trio), over the coordinator's link (coordinator, asyncio) and in the simulator (protocol.sim).
"""
