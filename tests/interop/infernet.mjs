// What specs/01, specs/02 and specs/05 say, written again in another language: nothing here knows the Python code.
//
// Integers of the wire that a JavaScript number cannot hold are refused, not rounded.
import { createHash } from 'node:crypto'
import { Chacha20Poly1305 } from '@hpke/chacha20poly1305'
import { CipherSuite, HkdfSha256 } from '@hpke/core'
import { DhkemX25519HkdfSha256 } from '@hpke/dhkem-x25519'
import { decode, encode } from '@msgpack/msgpack'
import { chacha20poly1305 } from '@noble/ciphers/chacha.js'
import { x25519 } from '@noble/curves/ed25519.js'
import { schnorr } from '@noble/curves/secp256k1.js'

export const HELLO_PROTOCOL = '/infernet/hello/1'
export const FIND_PROTOCOL = '/infernet/find/1'
export const JOB_PROTOCOL = '/infernet/job/1'

export const TYPE = {
  FAULT: 1,
  HELLO: 2,
  FIND: 32,
  FOUND: 34,
  JOB_OPEN: 64,
  PROGRESS: 65,
  PART: 66,
  QUEUED: 67,
  JOB_ACCEPT: 68,
  JOB_REJECT: 70,
  CHUNK: 72,
  CANCEL: 76,
  RECEIPT: 78
}
export const CHAT = 1
export const EMBEDDING = 3
export const OUTCOMES = ['unknown', 'stop', 'length', 'cancelled', 'failed', 'unpaid']

const SEALED_INLINE_BYTES_MAX = 49_152
const SEALED_PART_BYTES_MAX = 49_152
const SEALED_PADDING_BYTES_MIN = 1024
const CHUNK_PADDING_BYTES = 64
const JOB_FRAME_BYTES_MAX = 262_144

/** The other side broke a rule. */
export class Broken extends Error {}

function require(condition, text) {
  if (!condition) throw new Broken(text)
}

export const hex = (bytes) => Buffer.from(bytes).toString('hex')
export const unhex = (text) => new Uint8Array(Buffer.from(text, 'hex'))
export const sha256 = (...parts) => new Uint8Array(createHash('sha256').update(Buffer.concat(parts)).digest())
const same = (a, b) => Buffer.compare(Buffer.from(a), Buffer.from(b)) === 0
const utf8 = (text) => new TextEncoder().encode(text)

function uint(value, bytes) {
  require(Number.isSafeInteger(value) && value >= 0, `${value} is no number that fits`)
  const data = Buffer.alloc(bytes)
  for (let index = bytes - 1, rest = BigInt(value); index >= 0; index--, rest >>= 8n) data[index] = Number(rest & 255n)
  return new Uint8Array(data)
}

// ---------------------------------------------------------------- frames (01, Frames)

export function frame(message) {
  const body = encode(message)
  return new Uint8Array(Buffer.concat([uint(body.length, 4), body]))
}

/** Frames out of pieces, however these were cut. */
export class Frames {
  #rest = Buffer.alloc(0)

  feed(piece) {
    this.#rest = Buffer.concat([this.#rest, piece])
    const messages = []
    while (this.#rest.length >= 4) {
      const length = this.#rest.readUInt32BE(0)
      require(length <= JOB_FRAME_BYTES_MAX, 'a frame beyond the limit')
      if (this.#rest.length < 4 + length) break
      messages.push(decode(this.#rest.subarray(4, 4 + length)))
      this.#rest = this.#rest.subarray(4 + length)
    }
    for (const message of messages) require(Array.isArray(message) && message.length > 0, 'a frame without a type')
    return messages
  }

  get isEmpty() {
    return this.#rest.length === 0
  }
}

// ---------------------------------------------------------------- records and signatures (02)

export function taggedHash(tag, ...parts) {
  const digest = sha256(utf8(tag))
  return sha256(digest, digest, ...parts)
}

export function signRecord(fields, tag, secret, auxiliary) {
  const body = encode(fields)
  return [body, schnorr.sign(taggedHash(tag, body), secret, auxiliary)]
}

/** The fields of a signed record; `signer` is the index of the field that names who signed it. */
export function openRecord([body, signature], tag, signer, arity) {
  const fields = decode(body)
  require(same(encode(fields), body), 'a record that is not canonical')
  require(fields.length === arity, `a record of ${fields.length} fields`)
  require(fields[0] === 1, 'a record of another version')
  const types = fields.at(-1).map(([type]) => type)
  require(types.every((type, index) => index === 0 || types[index - 1] < type), 'extensions that are out of order')
  require(types.every((type) => type % 2 === 1), 'a mandatory extension that is not known')
  require(schnorr.verify(signature, taggedHash(tag, body), fields[signer]), 'a signature that is none')
  return fields
}

const MODEL_OFFER = ['name', 'fingerprint', 'kinds', 'contextTokens', 'concurrency', 'priceIn', 'priceOut', 'priceJob']

export function openHeartbeat(signed) {
  const fields = openRecord(signed, 'infernet/heartbeat/1', 1, 19)
  const [version, node, sequence, issuedAtMs, expiresAtMs, role, availability, name, agent, addresses] = fields
  const [models, load, freePolicy, sealingKey, sealedBytesMax, features] = fields.slice(11, 17)
  return {
    version,
    node,
    sequence,
    issuedAtMs,
    expiresAtMs,
    role,
    availability,
    name,
    agent,
    addresses,
    models: models.map((model) => Object.fromEntries(MODEL_OFFER.map((key, index) => [key, model[index]]))),
    load,
    freePolicy,
    sealingKey,
    sealedBytesMax,
    features
  }
}

// ---------------------------------------------------------------- hello and find (01)

export function hello({ startedAtMs, observedAddress = null, agent = 'js-libp2p', features = [] }) {
  return frame([TYPE.HELLO, 1, features, agent, Date.now(), startedAtMs, observedAddress, 0, null])
}

export function find({ query, model = null, kind = CHAT, contextTokensMin = 0, limit = 16, fingerprint = null }) {
  return frame([TYPE.FIND, query, model, kind, contextTokensMin, null, null, limit, fingerprint])
}

export function openFound(message, query) {
  const [type, answered, records] = message
  require(type === TYPE.FOUND, `type ${type} is no answer`)
  require(answered === query, 'the answer to another question')
  return records.map(openHeartbeat)
}

// ---------------------------------------------------------------- seals (05, The prompt and its seal)

function padded(encoded, length) {
  const data = new Uint8Array(length)
  data.set(uint(encoded.length, 4))
  data.set(encoded, 4)
  return data
}

function unpadded(plaintext) {
  require(plaintext.length >= 4, 'a plaintext without a length')
  const length = Buffer.from(plaintext).readUInt32BE(0)
  require(length <= plaintext.length - 4, 'a length beyond the plaintext')
  return decode(plaintext.subarray(4, 4 + length))
}

const NOTHING = new Uint8Array()

export function promptPlaintext(responseKey, request) {
  const { messages = [], prompt = '', inputs = [], continuation = '', stop = [] } = request
  const { continuation_ids: continuationIds = NOTHING } = request
  const turns = messages.map(({ role, content }) => [role, content])
  const encoded = encode([responseKey, [turns, prompt, inputs, continuation, stop, continuationIds]])
  let length = SEALED_PADDING_BYTES_MIN
  while (length < 4 + encoded.length) length *= 2
  return padded(encoded, length)
}

export function sealContext({ job, attempt, asker, provider, lease }) {
  const start = utf8('infernet/sealed-prompt/1')
  return new Uint8Array(Buffer.concat([start, job, uint(attempt, 4), asker, provider, lease ?? new Uint8Array(32)]))
}

const suite = new CipherSuite({
  kem: new DhkemX25519HkdfSha256(),
  kdf: new HkdfSha256(),
  aead: new Chacha20Poly1305()
})

const exact = (bytes) => Uint8Array.from(bytes).buffer

/** `ephemeral` is for vectors alone. */
export async function seal(plaintext, sealingKey, info, ephemeral) {
  const recipientPublicKey = await suite.kem.deserializePublicKey(exact(sealingKey))
  let ekm
  if (ephemeral !== undefined) {
    const privateKey = await suite.kem.deserializePrivateKey(exact(ephemeral))
    ekm = { privateKey, publicKey: await suite.kem.deserializePublicKey(exact(x25519.getPublicKey(ephemeral))) }
  }
  const sender = await suite.createSenderContext({ recipientPublicKey, info: exact(info), ekm })
  const ciphertext = await sender.seal(exact(plaintext))
  return new Uint8Array(Buffer.concat([Buffer.from(sender.enc), Buffer.from(ciphertext)]))
}

export async function openSeal(sealed, sealingSecret, info) {
  require(sealed.length > 48, 'a seal without a content')
  const recipientKey = await suite.kem.deserializePrivateKey(exact(sealingSecret))
  const enc = exact(sealed.subarray(0, 32))
  const recipient = await suite.createRecipientContext({ recipientKey, enc, info: exact(info) })
  return new Uint8Array(await recipient.open(exact(sealed.subarray(32))))
}

/** The prompt in a plaintext; what is missing at its end is empty, what is more is ignored. */
export function readPrompt(plaintext) {
  const [responseKey, request] = unpadded(plaintext)
  require(responseKey instanceof Uint8Array && responseKey.length === 32, 'no response key')
  const [messages = [], prompt = '', inputs = [], continuation = '', stop = [], ids = NOTHING] = request
  require(stop.every((text) => text.length > 0), 'an empty stop string')
  const turns = messages.map(([role, content]) => ({ role, content }))
  return { responseKey, request: { messages: turns, prompt, inputs, continuation, stop, continuation_ids: ids } }
}

// ---------------------------------------------------------------- chunks (05, The answer)

export const answerKey = (responseKey, orderHash) => taggedHash('infernet/answer-key/1', responseKey, orderHash)

export function sealChunk(key, { number, outputTokens, owed }, [text, index, vector, tokenIds = NOTHING]) {
  const encoded = encode([text, index, vector, tokenIds])
  const length = Math.ceil((4 + encoded.length) / CHUNK_PADDING_BYTES) * CHUNK_PADDING_BYTES
  const associated = Buffer.concat([uint(outputTokens, 8), uint(owed, 8)])
  return chacha20poly1305(key, uint(number, 12), associated).encrypt(padded(encoded, length))
}

export function openChunk(key, { number, outputTokens, owed, sealed }) {
  const associated = Buffer.concat([uint(outputTokens, 8), uint(owed, 8)])
  const plaintext = chacha20poly1305(key, uint(number, 12), associated).decrypt(sealed)
  const body = unpadded(plaintext)
  require(plaintext.length % CHUNK_PADDING_BYTES === 0, 'a chunk that is not padded')
  const [text = '', index = 0, vector = NOTHING, tokenIds = NOTHING] = body
  require(typeof text === 'string' && Number.isSafeInteger(index) && vector instanceof Uint8Array, 'no chunk body')
  require(tokenIds instanceof Uint8Array && tokenIds.length % 4 === 0, 'no tokens')
  return { text, index, vector, tokenIds }
}

export function foldChunk(hash, { number, outputTokens, owed, sealed }) {
  return sha256(hash, uint(number, 8), uint(outputTokens, 8), uint(owed, 8), sealed)
}

/** specs/05, Counting and cost; in BigInt, because a product may exceed what a number holds. */
export function cost({ priceIn, priceOut, priceJob }, promptTokens, outputTokens) {
  const million = 1_000_000n
  const tokens = BigInt(promptTokens) * BigInt(priceIn) + BigInt(outputTokens) * BigInt(priceOut)
  return BigInt(priceJob) + (tokens + million - 1n) / million
}

// ---------------------------------------------------------------- an order and its attempt (05)

/** The fields of a JobOpenRecord for a free job. */
export function orderFields({ job, asker, provider, kind, model, sampling, outputTokensMax, sealed, createdAtMs, lifeMs }) {
  const { promptTokensMax, extensions = [] } = model
  return [
    ...[1, job, 1, asker, provider, null, null, kind, model.name, model.fingerprint, sampling],
    ...[promptTokensMax, outputTokensMax, 0, 0, 0, 0, sha256(sealed), sealed.length],
    ...[createdAtMs, createdAtMs + lifeMs, extensions]
  ]
}

/** JobOpen, and as many Parts as the seal takes. */
export function openingFrames(order, sealed) {
  const [job, attempt] = decode(order[0]).slice(1, 3)
  const frames = [frame([TYPE.JOB_OPEN, order, sealed.subarray(0, SEALED_INLINE_BYTES_MAX), null])]
  for (let at = SEALED_INLINE_BYTES_MAX, index = 0; at < sealed.length; at += SEALED_PART_BYTES_MAX, index++) {
    frames.push(frame([TYPE.PART, job, attempt, index, sealed.subarray(at, at + SEALED_PART_BYTES_MAX)]))
  }
  return frames
}

export const cancelFrame = ([job, attempt]) => frame([TYPE.CANCEL, job, attempt, 65])

/** The asker's side of one attempt, from the order to its end: every check that specs/05 demands of it. */
export class Attempt {
  constructor(order, responseKey) {
    this.order = decode(order[0])
    this.orderHash = taggedHash('infernet/job-open/1', order[0])
    this.runningHash = this.orderHash
    this.key = answerKey(responseKey, this.orderHash)
    this.text = ''
    this.vectors = new Map()
    this.chunks = 0
    this.outputTokens = 0
    this.owed = 0
    this.progress = []
    this.acceptance = null
    this.receipt = null
    this.rejection = null
    this.isCancelled = false
  }

  get isOver() {
    return this.receipt !== null || this.rejection !== null
  }

  get id() {
    return [this.order[1], this.order[2]]
  }

  take(message) {
    require(!this.isOver, 'something after the end')
    const [type, ...fields] = message
    if (type === TYPE.JOB_ACCEPT) return this.#accept(fields[0])
    if (type === TYPE.RECEIPT) return this.#end(fields[0])
    const known = [TYPE.PROGRESS, TYPE.QUEUED, TYPE.CHUNK, TYPE.JOB_REJECT]
    if (!known.includes(type)) {
      require(type % 2 === 1, `the mandatory type ${type} is not known`)
      return
    }
    const [job, attempt, ...rest] = fields
    require(same(job, this.order[1]) && attempt === this.order[2], 'about another attempt')
    if (type === TYPE.PROGRESS) this.progress.push(rest.slice(0, 2))
    if (type === TYPE.CHUNK) this.#chunk(rest)
    if (type === TYPE.JOB_REJECT) this.#reject(rest)
  }

  #accept(signed) {
    require(this.acceptance === null, 'a second acceptance')
    const fields = openRecord(signed, 'infernet/job-accept/1', 3, 14)
    const [, job, attempt, provider, lease, openHash, fingerprint, promptTokens] = fields
    require(same(job, this.order[1]) && attempt === this.order[2], 'an acceptance of another attempt')
    require(same(provider, this.order[4]) && lease === null, 'an acceptance of somebody else')
    require(same(openHash, this.orderHash), 'an acceptance of another order')
    require(this.order[9] === null || same(fingerprint, this.order[9]), 'an acceptance with other weights')
    require(promptTokens <= this.order[11], 'more prompt tokens than the order allows')
    require(fields[9] === Number(cost(this.#prices, promptTokens, 0)), 'another price for the prompt')
    this.acceptance = { fingerprint, promptTokens, acceptedAtMs: fields[12] }
  }

  get #prices() {
    const [priceIn, priceOut, priceJob] = this.order.slice(13, 16)
    return { priceIn, priceOut, priceJob }
  }

  #chunk([number, outputTokens, owed, sealed]) {
    require(this.acceptance !== null, 'a chunk before the acceptance')
    require(number === this.chunks + 1, 'a chunk that is not the next one')
    require(outputTokens >= this.outputTokens && outputTokens <= this.order[12], 'a count that cannot be')
    require(owed === Number(cost(this.#prices, this.acceptance.promptTokens, outputTokens)), 'another price')
    const chunk = { number, outputTokens, owed, sealed }
    const { text, index, vector } = openChunk(this.key, chunk)
    this.runningHash = foldChunk(this.runningHash, chunk)
    Object.assign(this, { chunks: number, outputTokens, owed })
    if (this.isCancelled) return
    this.text += text
    if (vector.length > 0) {
      require(!this.vectors.has(index), 'a vector that comes twice')
      this.vectors.set(index, vector)
    }
  }

  #reject([code, retryAfterMs, text, better]) {
    require(this.acceptance === null, 'a refusal after the acceptance')
    this.rejection = { code, retryAfterMs, text, better: better.map(openHeartbeat) }
  }

  #end(signed) {
    require(this.acceptance !== null, 'a receipt of what was not accepted')
    const fields = openRecord(signed, 'infernet/receipt/1', 3, 20)
    const expected = [
      ...[1, this.order[1], this.order[2], this.order[4], this.order[3], null, this.orderHash],
      ...[this.acceptance.fingerprint, this.acceptance.promptTokens, this.outputTokens, this.chunks],
      ...[this.runningHash, 0, this.owed, this.acceptance.acceptedAtMs]
    ]
    expected.forEach((value, index) => {
      const stated = fields[index]
      const agrees = value instanceof Uint8Array ? same(value, stated) : value === stated
      require(agrees, `field ${index} of the receipt is not what arrived`)
    })
    const [firstTokenMs, lastTokenMs, outcome, code] = fields.slice(15, 19)
    this.receipt = { firstTokenMs, lastTokenMs, outcome: OUTCOMES[outcome] ?? 'unknown', code }
  }
}
