"""Every number of the protocol, in two blocks.

Specification constants are part of the wire contract: two nodes that differ in one of them do not
interoperate. Implementation constants are this program's own choices within what the specification allows;
each says why it has its value.
"""

from __future__ import annotations

from typing import Final

# ---------------------------------------------------------------- specification constants (specs/00, 01)

PROTOCOL_VERSION: Final = 1
P2P_PORT: Final = 46337

HELLO_PROTOCOL: Final = "/infernet/hello/1"
GOSSIP_PROTOCOL: Final = "/infernet/gossip/1"
FIND_PROTOCOL: Final = "/infernet/find/1"
REACH_PROTOCOL: Final = "/infernet/reach/1"
JOB_PROTOCOL: Final = "/infernet/job/1"
PROTOCOLS: Final = (HELLO_PROTOCOL, GOSSIP_PROTOCOL, FIND_PROTOCOL, REACH_PROTOCOL, JOB_PROTOCOL)

FRAME_HEADER_BYTES: Final = 4
CONTROL_FRAME_BYTES_MAX: Final = 64 * 1024
JOB_FRAME_BYTES_MAX: Final = 256 * 1024
ARRAY_ITEMS_MAX: Final = 64
BYTES_MAX: Final = 64 * 1024
DEPTH_MAX: Final = 6
VALUES_MAX: Final = 1024
INTEGER_MAX: Final = 2**63 - 1

RECORD_BYTES_MAX: Final = 16 * 1024
NAME_CHARACTERS_MAX: Final = 48
MODEL_NAME_CHARACTERS_MAX: Final = 128
TEXT_CHARACTERS_MAX: Final = 256
ADDRESS_CHARACTERS_MAX: Final = 256
HEARTBEAT_MODELS_MAX: Final = 32
HEARTBEAT_ALIASES_MAX: Final = 32
MODEL_ALIASES_MAX: Final = 4
QUANTISATION_CHARACTERS_MAX: Final = 16
STATED_TOKENS_PER_S_MAX: Final = 57_344
EXTENSION_BYTES_MAX: Final = 1024
HEARTBEAT_GPUS_MAX: Final = 16
HEARTBEAT_ADDRESSES_MAX: Final = 8
HEARTBEAT_LIFETIME_MS_MAX: Final = 30 * 60 * 1000
LOAD_STEPS: Final = 8
BETTER_PEERS_MAX: Final = 4
FIND_RESULTS_MAX: Final = 16
INTEREST_MODELS_MAX: Final = 32
SHUFFLE_RECORDS_MAX: Final = 8
REPORT_PROVIDERS_MAX: Final = 16
REPORT_REASONS_MAX: Final = 16
REPORTS_MAX: Final = 4
REPORT_LIFETIME_MS_MAX: Final = 24 * 60 * 60 * 1000
RESERVATION_LIFETIME_MS_MAX: Final = 10_000

CLOCK_SKEW_MS_MAX: Final = 60_000
JOB_OPEN_AGE_MS_MAX: Final = 60_000
JOB_LIFETIME_MS_MAX: Final = 60 * 60 * 1000
SEALED_INLINE_BYTES_MAX: Final = 48 * 1024
SEALED_PART_BYTES_MAX: Final = 48 * 1024
# An ephemeral X25519 key and a Poly1305 tag around a plaintext that is padded to a power of two.
SEAL_OVERHEAD_BYTES: Final = 32 + 16
SEALED_BYTES_MAX: Final = 1024 * 1024 + SEAL_OVERHEAD_BYTES
SEALED_PADDING_BYTES_MIN: Final = 1024
SEALED_ARRAY_ITEMS_MAX: Final = 1024
SEALED_VALUES_MAX: Final = 4 * 1024
CHUNK_PADDING_BYTES: Final = 64
OUTPUT_TOKENS_MAX: Final = 32 * 1024
TOKEN_ID_BYTES: Final = 4
EMBEDDING_INPUTS_MAX: Final = 64
STOP_STRINGS_MAX: Final = 8
STOP_CHARACTERS_MAX: Final = 64

BASIS_POINTS: Final = 10_000
LEASE_CAP_UUSD_MAX: Final = 10**12
LEASE_SERVE_S_MAX: Final = 7 * 24 * 60 * 60
LEASE_SKEW_MS: Final = 5_000
WINDOW_TOKENS_MIN: Final = 8
WINDOW_UUSD_MIN: Final = 1_000
WINDOW_PAID_SHARE: Final = 16
# A stop string of 64 characters of four bytes each, a token for each byte: no text that is held back has more.
TEXTLESS_TOKENS_MAX: Final = 256
HEADS_MAX: Final = 4
# In one frame of a link, and in one acknowledgement.
CLAIMS_MAX: Final = 32

# ---------------------------------------------------------------- implementation constants

# The coordinator calls a node live for 60 s (specs/07), so two heartbeats fit.
HEARTBEAT_INTERVAL_S: Final = 30.0
# Peers hear of a node on change and at least this often; the record lives three times as long.
GOSSIP_REFRESH_S: Final = 600.0
# The pace of comparing with one neighbour: what the tree lost is found within half a minute, for comparisons that find
# nothing come ever more seldom, up to six of these apart.
GOSSIP_INTERVAL_S: Final = 5.0
# Records of one key are pushed once in this long, and what changes faster goes out when it is over: a key that signs a
# thousand a second costs the network no more than one that behaves.
RECORD_INTERVAL_S: Final = 5.0
DIRECTORY_RECORDS_MAX: Final = 4096

# A stranger who opens a stream must say something useful within this long.
CONTROL_DEADLINE_S: Final = 10.0
CONTROL_STREAMS_PER_PEER_MAX: Final = 8
JOB_STREAMS_PER_PEER_MAX: Final = 32
BAD_FRAMES_MAX: Final = 3

# An asker that knows no provider asks its peers and waits this long for one to turn up.
SEARCH_DEADLINE_S: Final = 5.0
# Dial, handshake and hello with a chosen provider.
REACH_DEADLINE_S: Final = 10.0
# An aggregator that is not connected to the provider that an order is for reaches it within this long, or says so.
FORWARD_REACH_DEADLINE_S: Final = 3.0
# How many providers one job tries before it gives up; each costs at most an accept deadline.
ATTEMPTS_MAX: Final = 4
# Find is asked of this many connected peers at once, and of as many others this much later, while nobody knows anybody:
# answers of the far side of the world are there by then.
FIND_PEERS: Final = 4
FIND_MORE_S: Final = 0.5
# How many orders one job sends in all. Refusals for want of a slot, and failures before a piece of text that was won
# since, are not counted above.
ORDERS_MAX: Final = 16
# After so many refusals for want of a slot a job stops looking for a free one and queues.
BUSY_REFUSALS_MAX: Final = 3
# A provider that says so in its features acknowledges an order at once. One that is overloaded does so in some tenths
# of a second, one that is gone never: so a silent one costs less than the two seconds that a person forgives.
ACK_DEADLINE_S: Final = 1.5
# From then on it says something at least this often ...
SIGN_INTERVAL_S: Final = 1.0
# ... and the asker gives up on one that missed five of them.
SILENCE_DEADLINE_S: Final = 5.0
# The asker waits this long for an acceptance or a refusal, once the order was acknowledged, and for each next word of
# its place in a queue.
ACCEPT_DEADLINE_S: Final = 5.0
# ... after the prompt has crossed a line of at least this speed.
PROMPT_BYTES_PER_S_MIN: Final = 64 * 1024
# From the acceptance to the first chunk, and anew with each Progress that has grown: prefill of a long prompt on a CPU
# takes minutes.
FIRST_CHUNK_DEADLINE_S: Final = 30.0
# Between any two chunks afterwards.
NEXT_CHUNK_DEADLINE_S: Final = 20.0
# The longest answer in the smallest chunks, with room. Tokens say little about bytes: one may spell half a line, and
# nobody checks that an empty one spells nothing.
ANSWER_BYTES_MAX: Final = 16 * 1024 * 1024
# The provider waits this long for the rest of a prompt that arrives in parts.
PARTS_DEADLINE_S: Final = 20.0
# Orders that wait for a slot, as a multiple of the slots: whoever comes later would wait longer than people do.
QUEUE_PER_SLOT: Final = 4
# Whoever waits hears where it stands this often, and soon after its place has changed.
QUEUED_INTERVAL_S: Final = 2.0
QUEUED_CHANGE_S: Final = 0.25
# Sealed prompts held for orders that wait or arrive in parts: 256 of the usual greatest size.
ORDERS_BYTES_MAX: Final = 64 * 1024 * 1024
# Told to askers while this node is too busy to think: long enough to catch up.
OVERLOADED_RETRY_MS: Final = 2_000
# No estimate is good for longer than this.
RETRY_AFTER_MS_MAX: Final = 10 * 60 * 1000
# A cancel should have freed its slot by then; later is noted. When to end the engine is its supervisor's decision.
CANCEL_DEADLINE_S: Final = 1.0
# How long a provider remembers (job, attempt) to refuse a second run: longer than a JobOpen may be old.
JOB_MEMORY_S: Final = 180.0
# Remembered at once; when full, new askers wait. At one order per 10 ms this is more than the memory's whole length.
JOB_MEMORIES_MAX: Final = 65536

# A paid job whose payer does not sign for what waits ends after this long; its asker is a round trip away.
UNPAID_DEADLINE_S: Final = 10.0
# An asker waits this long for a lease before it goes on without that provider.
LEASE_DEADLINE_S: Final = 10.0

# The first token leaves at once; later ones gather until one of these.
CHUNK_TOKENS_MAX: Final = 16
CHUNK_DELAY_S: Final = 0.020

# After a Cancel the asker waits this long for the receipt before it resets the stream.
CANCEL_GRACE_S: Final = 2.0
