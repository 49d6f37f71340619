// A peer that shares no code with ours: js-libp2p below, and on top what infernet.mjs makes of the specification.
//
//   node --import ./promise.mjs peer.mjs dial MULTIADDR             dial, identify, ping, say hello
//   node --import ./promise.mjs peer.mjs find MULTIADDR MODEL       ask who serves a model
//   node --import ./promise.mjs peer.mjs ask MULTIADDR JSON         order a job, and take its answer to the end
//   node --import ./promise.mjs peer.mjs peer-ids HEX...            the PeerIds of x-only public keys
//
// One line of JSON on standard output says what it saw, and the test compares. What breaks a rule of the
// specification ends it with a complaint.
import { randomBytes } from 'node:crypto'
import { noise } from '@chainsafe/libp2p-noise'
import { yamux } from '@chainsafe/libp2p-yamux'
import { generateKeyPair, publicKeyFromRaw } from '@libp2p/crypto/keys'
import { identify } from '@libp2p/identify'
import { peerIdFromPublicKey } from '@libp2p/peer-id'
import { ping } from '@libp2p/ping'
import { tcp } from '@libp2p/tcp'
import { multiaddr } from '@multiformats/multiaddr'
import { createLibp2p } from 'libp2p'
import {
  Attempt,
  CHAT,
  EMBEDDING,
  FIND_PROTOCOL,
  Frames,
  HELLO_PROTOCOL,
  JOB_PROTOCOL,
  TYPE,
  cancelFrame,
  find,
  hello,
  hex,
  openFound,
  openHeartbeat,
  openingFrames,
  orderFields,
  promptPlaintext,
  seal,
  sealContext,
  signRecord
} from './infernet.mjs'

const EVEN_Y = 2
const DEADLINE_MS = 20_000
const GREEDY = [0, 1000, 0, 0, 0, 0, 1000, 1]

/** A secp256k1 key with even Y: the kind of identity that also is a Nostr key. */
async function identity() {
  for (;;) {
    const key = await generateKeyPair('secp256k1')
    if (key.publicKey.raw[0] === EVEN_Y) return key
  }
}

/** Every message of a stream, to its end. */
async function* messagesOf(stream) {
  const frames = new Frames()
  for await (const piece of stream) yield* frames.feed(Buffer.from(piece.subarray()))
  if (!frames.isEmpty) throw new Error('the stream ended within a frame')
}

/** Say one thing on a stream of its own, and return all that is answered. */
async function exchange(connection, protocol, data) {
  const stream = await connection.newStream(protocol)
  stream.send(data)
  await stream.close()
  const answers = []
  for await (const message of messagesOf(stream)) answers.push(message)
  return answers
}

async function sayHello(connection) {
  const startedAtMs = Date.now()
  const observedAddress = connection.remoteAddr.toString()
  const answers = await exchange(connection, HELLO_PROTOCOL, hello({ startedAtMs, observedAddress }))
  const [type, version, features, agent, clockMs, nodeStartedAtMs, observed, recordsHeld, signed] = answers[0]
  return {
    answers: answers.length,
    type,
    version,
    features,
    agent,
    clockErrorMs: clockMs - Date.now(),
    startedAtMs: nodeStartedAtMs,
    observedAddress: observed,
    recordsHeld,
    heartbeat: signed && openHeartbeat(signed)
  }
}

async function findProviders(connection, model) {
  const query = randomBytes(6).readUIntBE(0, 6)
  const answers = await exchange(connection, FIND_PROTOCOL, find({ query, model }))
  if (answers.length !== 1) throw new Error(`${answers.length} answers to one question`)
  return openFound(answers[0], query)
}

async function order(connection, key, heartbeat, question) {
  const offer = heartbeat.models.find(({ name }) => name === question.model)
  const asker = key.publicKey.raw.subarray(1)
  const ids = { job: randomBytes(16), attempt: 1, asker, provider: heartbeat.node, lease: null }
  const responseKey = new Uint8Array(randomBytes(32))
  const sealed = await seal(promptPlaintext(responseKey, question), heartbeat.sealingKey, sealContext(ids))
  const isEmbedding = question.inputs !== undefined
  const fields = orderFields({
    ...ids,
    kind: isEmbedding ? EMBEDDING : CHAT,
    model: { name: question.model, fingerprint: offer?.fingerprint ?? null, promptTokensMax: question.promptTokensMax ?? 2048 },
    sampling: GREEDY,
    outputTokensMax: isEmbedding ? 0 : question.maxTokens,
    sealed,
    createdAtMs: Date.now(),
    lifeMs: 60_000
  })
  const signed = signRecord(fields, 'infernet/job-open/1', key.raw)
  return { attempt: new Attempt(signed, responseKey), frames: openingFrames(signed, sealed) }
}

async function ask(connection, key, question) {
  const { heartbeat } = await sayHello(connection)
  const { attempt, frames } = await order(connection, key, heartbeat, question)
  const stream = await connection.newStream(JOB_PROTOCOL)
  for (const data of frames) stream.send(data)
  const types = []
  for await (const message of messagesOf(stream)) {
    types.push(message[0])
    attempt.take(message)
    if (question.cancelAfterChunks === attempt.chunks && !attempt.isCancelled && message[0] === TYPE.CHUNK) {
      attempt.isCancelled = true
      stream.send(cancelFrame(attempt.id))
    }
    if (attempt.isOver) await stream.close()
  }
  if (!attempt.isOver) throw new Error('the stream ended, and the job did not')
  return {
    types,
    text: attempt.text,
    vectors: [...attempt.vectors].map(([index, vector]) => [index, hex(vector)]),
    chunks: attempt.chunks,
    outputTokens: attempt.outputTokens,
    promptTokens: attempt.acceptance?.promptTokens ?? null,
    progress: attempt.progress,
    receipt: attempt.receipt,
    rejection: attempt.rejection
  }
}

/** A libp2p node that is connected, for as long as something is done with it. */
async function connected(address, use) {
  const key = await identity()
  const node = await createLibp2p({
    privateKey: key,
    transports: [tcp()],
    connectionEncrypters: [noise()],
    streamMuxers: [yamux()],
    services: { identify: identify({ runOnConnectionOpen: false }), ping: ping() }
  })
  try {
    const signal = AbortSignal.timeout(DEADLINE_MS)
    return await use(await node.dial(multiaddr(address), { signal }), { node, key, signal })
  } finally {
    await node.stop()
  }
}

async function dial(address) {
  return await connected(address, async (connection, { node, signal }) => {
    const identified = await node.services.identify.identify(connection, { signal })
    return {
      encryption: connection.encryption,
      multiplexer: connection.multiplexer,
      peerId: connection.remotePeer.toString(),
      agent: identified.agentVersion,
      protocols: identified.protocols,
      pingMs: await node.services.ping.ping(connection.remotePeer, { signal }),
      hello: await sayHello(connection)
    }
  })
}

function peerIds(keys) {
  return keys.map((key) => {
    const point = Buffer.concat([Buffer.of(EVEN_Y), Buffer.from(key, 'hex')])
    return peerIdFromPublicKey(publicKeyFromRaw(point)).toString()
  })
}

const COMMANDS = {
  dial,
  find: (address, model) => connected(address, (connection) => findProviders(connection, model)),
  ask: (address, json) => connected(address, (connection, { key }) => ask(connection, key, JSON.parse(json))),
  'peer-ids': (...keys) => peerIds(keys)
}

const [command, ...rest] = process.argv.slice(2)
const result = await COMMANDS[command](...rest)
console.log(
  JSON.stringify(result, function shown(key, value) {
    return this[key] instanceof Uint8Array ? hex(this[key]) : value
  })
)
