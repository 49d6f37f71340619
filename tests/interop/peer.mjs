// A peer that shares no code with ours: js-libp2p below, and on top what specs/01 and specs/02 say, written again.
//
//   node --import ./promise.mjs peer.mjs dial MULTIADDR     dial, identify, ping, say hello
//   node --import ./promise.mjs peer.mjs peer-ids HEX...    the PeerIds of x-only public keys
//
// It judges nothing: one line of JSON on standard output says what it saw, and the test compares.
import { createHash } from 'node:crypto'
import { noise } from '@chainsafe/libp2p-noise'
import { yamux } from '@chainsafe/libp2p-yamux'
import { generateKeyPair, publicKeyFromRaw } from '@libp2p/crypto/keys'
import { identify } from '@libp2p/identify'
import { peerIdFromPublicKey } from '@libp2p/peer-id'
import { ping } from '@libp2p/ping'
import { tcp } from '@libp2p/tcp'
import { decode, encode } from '@msgpack/msgpack'
import { multiaddr } from '@multiformats/multiaddr'
import { schnorr } from '@noble/curves/secp256k1.js'
import { createLibp2p } from 'libp2p'

const HELLO_PROTOCOL = '/infernet/hello/1'
const HELLO = 2
const EVEN_Y = 2
const DEADLINE_MS = 10_000

const hex = (bytes) => Buffer.from(bytes).toString('hex')

/** A secp256k1 key with even Y: the kind of identity that also is a Nostr key. */
async function identity() {
  for (;;) {
    const key = await generateKeyPair('secp256k1')
    if (key.publicKey.raw[0] === EVEN_Y) return key
  }
}

function frame(message) {
  const body = encode(message)
  const length = Buffer.alloc(4)
  length.writeUInt32BE(body.length)
  return Buffer.concat([length, body])
}

function unframe(data) {
  const messages = []
  let rest = data
  while (rest.length > 0) {
    const end = 4 + rest.readUInt32BE(0)
    messages.push(decode(rest.subarray(4, end)))
    rest = rest.subarray(end)
  }
  return messages
}

function taggedHash(tag, data) {
  const digest = createHash('sha256').update(tag).digest()
  return createHash('sha256').update(digest).update(digest).update(data).digest()
}

function describeHeartbeat([body, signature]) {
  const fields = decode(body)
  const [version, node, sequence, issuedAtMs, expiresAtMs, role, , name] = fields
  return {
    fields: fields.length,
    version,
    node: hex(node),
    sequence,
    issuedAtMs,
    expiresAtMs,
    role,
    name,
    verifies: schnorr.verify(signature, taggedHash('infernet/heartbeat/1', body), node)
  }
}

async function sayHello(connection) {
  const stream = await connection.newStream(HELLO_PROTOCOL)
  const startedAtMs = Date.now()
  stream.send(frame([HELLO, 1, [], 'js-libp2p', startedAtMs, startedAtMs, null, 0, null]))
  await stream.close()
  const pieces = []
  for await (const piece of stream) pieces.push(Buffer.from(piece.subarray()))
  const answers = unframe(Buffer.concat(pieces))
  const [type, version, features, agent, clockMs, , observedAddress, recordsHeld, heartbeat] = answers[0]
  return {
    answers: answers.length,
    type,
    version,
    features,
    agent,
    clockErrorMs: clockMs - Date.now(),
    observedAddress,
    recordsHeld,
    heartbeat: heartbeat && describeHeartbeat(heartbeat)
  }
}

async function dial(address) {
  const node = await createLibp2p({
    privateKey: await identity(),
    transports: [tcp()],
    connectionEncrypters: [noise()],
    streamMuxers: [yamux()],
    services: { identify: identify({ runOnConnectionOpen: false }), ping: ping() }
  })
  try {
    const signal = AbortSignal.timeout(DEADLINE_MS)
    const connection = await node.dial(multiaddr(address), { signal })
    const identified = await node.services.identify.identify(connection, { signal })
    return {
      ourAddress: connection.remoteAddr.toString(),
      encryption: connection.encryption,
      multiplexer: connection.multiplexer,
      peerId: connection.remotePeer.toString(),
      agent: identified.agentVersion,
      protocols: identified.protocols,
      pingMs: await node.services.ping.ping(connection.remotePeer, { signal }),
      hello: await sayHello(connection)
    }
  } finally {
    await node.stop()
  }
}

function peerIds(keys) {
  return keys.map((key) => {
    const point = Buffer.concat([Buffer.of(EVEN_Y), Buffer.from(key, 'hex')])
    return peerIdFromPublicKey(publicKeyFromRaw(point)).toString()
  })
}

const [command, ...rest] = process.argv.slice(2)
const result = command === 'dial' ? await dial(rest[0]) : peerIds(rest)
console.log(JSON.stringify(result))
