"""Circuit relay v2: being reached through somebody else, and letting others be reached through us (specs/08).

A circuit is a stream to a relay, spliced there with a stream to the other end. Both ends then make the same handshake
over it as over TCP, so the relay carries bytes that it can neither read nor alter. `wire` has the messages, `hop` is
the relay's side, `stop` the reached node's, `dialing` the other node's, and `service` is what the host talks to.
"""
