// Reads specs/vectors and specs/conversations with the JavaScript side: do the pages and the vectors agree for
// somebody who has nothing else?
//
//   node vectors.mjs FOLDER        the folder that holds vectors/ and conversations/
//
// Prints what was checked, and every vector that came out otherwise than it says. Vectors with integers that a
// JavaScript number cannot hold are counted as left out.
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { decode, encode } from '@msgpack/msgpack'
import { schnorr } from '@noble/curves/secp256k1.js'
import {
  Attempt,
  Broken,
  Frames,
  answerKey,
  cost,
  foldChunk,
  frame,
  hex,
  openChunk,
  openHeartbeat,
  openRecord,
  openSeal,
  promptPlaintext,
  readPrompt,
  seal,
  sealChunk,
  sealContext,
  sha256,
  signRecord,
  taggedHash,
  unhex
} from './infernet.mjs'

const RECORDS = {
  Heartbeat: ['infernet/heartbeat/1', 1, 19],
  JobOpenRecord: ['infernet/job-open/1', 3, 22],
  JobAcceptRecord: ['infernet/job-accept/1', 3, 14],
  ReceiptRecord: ['infernet/receipt/1', 3, 20],
  ReservationRecord: ['infernet/reservation/1', 2, 9],
  ReportRecord: ['infernet/report/1', 1, 8]
}
// Of all enumerations that vectors hold, but for refusal codes, which are shown as they are.
const HIGHEST_KNOWN_VALUE = 5
const NO_RANDOMNESS = new Uint8Array(32)

function equal(actual, expected, what) {
  if (actual !== expected) throw new Error(`${what}: ${actual} instead of ${expected}`)
}

/** A value as the vectors show it. */
function shown(value) {
  if (value instanceof Uint8Array) return hex(value)
  return Array.isArray(value) ? value.map(shown) : value
}

/** The fields of a struct as they stand on the wire: names are for people. */
function unnamed(value) {
  if (Array.isArray(value)) return value.map(unnamed)
  return value !== null && typeof value === 'object' ? Object.values(value).map(unnamed) : value
}

/**
 * What was decoded against the fields that a vector shows: what is more at the end is ignored, what is missing there
 * is nothing, and an enumeration's value that nobody knows is read as 0.
 */
function agrees(actual, expected) {
  if (Array.isArray(expected)) {
    return Array.isArray(actual) && expected.every((item, index) => agrees(actual[index] ?? null, item))
  }
  return actual === expected || (expected === 0 && actual > HIGHEST_KNOWN_VALUE && actual <= 255)
}

function equalFields(decoded, fields) {
  const [actual, expected] = [shown(decoded), unnamed(fields)]
  if (!agrees(actual, expected)) throw new Error(`${JSON.stringify(actual)} instead of ${JSON.stringify(expected)}`)
}

function isHeld(value) {
  if (typeof value === 'number') return Number.isSafeInteger(value)
  return value === null || typeof value !== 'object' || Object.values(value).every(isHeld)
}

const bytesOf = ({ context }) => ({
  job: unhex(context.job),
  attempt: context.attempt,
  asker: unhex(context.asker),
  provider: unhex(context.provider),
  lease: context.lease === null ? null : unhex(context.lease)
})
const chunkOf = ({ number, output_tokens, owed_uusd, sealed }) => {
  return { number, outputTokens: output_tokens, owed: owed_uusd, sealed: unhex(sealed) }
}

// Each throws when the vector is refused, or differs from what it says of itself.
const CHECKS = {
  'tagged-hashes': (vector) => equal(hex(taggedHash(vector.tag, unhex(vector.body))), vector.hash, 'hash'),

  bip340: (vector) => {
    const verified = schnorr.verify(unhex(vector.signature), unhex(vector.message), unhex(vector.public_key))
    if (!verified) throw new Broken('not a signature')
  },

  identity: (vector) => {
    if (vector.secret === undefined) throw new Broken('texts are read by others')
    equal(hex(schnorr.getPublicKey(unhex(vector.secret))), vector.node_id, 'node id')
  },

  records: (vector) => {
    const [tag, signer, arity] = RECORDS[vector.record]
    const fields = openRecord([unhex(vector.body), unhex(vector.signature)], tag, signer, arity)
    equal(fields.length, Object.keys(vector.fields).length, 'number of fields')
    equalFields(fields, vector.fields)
    equal(hex(encode(fields)), vector.body, 'encoding')
  },

  frames: (vector) => {
    const [message, ...more] = new Frames().feed(unhex(vector.frame))
    equal(more.length, 0, 'frames')
    equal(message[0], vector.ignored ? message[0] : vector.type, 'type')
    if (vector.ignored || vector.type === undefined) return
    equalFields(message.slice(1), vector.fields)
  },

  sealing: async (vector) => {
    const info = sealContext(bytesOf(vector))
    equal(hex(info), vector.info, 'info')
    const plaintext = await openSeal(unhex(vector.sealed), unhex(vector.sealing_secret), info)
    const { responseKey, request } = readPrompt(plaintext)
    if (!vector.valid) return
    equal(hex(plaintext), vector.plaintext, 'plaintext')
    equal(hex(responseKey), vector.prompt.response_key, 'response key')
    const readable = { ...request, continuation_ids: hex(request.continuation_ids) }
    equal(JSON.stringify(readable), JSON.stringify(vector.prompt.request), 'request')
    equal(hex(promptPlaintext(responseKey, request)), vector.plaintext, 'plaintext made here')
    const sealed = await seal(plaintext, unhex(vector.sealing_key), info, unhex(vector.ephemeral_secret))
    equal(hex(sealed), vector.sealed, 'sealed here')
    equal(hex(sha256(sealed)), vector.sealed_hash, 'hash of the seal')
  },

  chunks: (vector) => {
    const key = answerKey(unhex(vector.response_key), unhex(vector.order_hash))
    const body = openChunk(key, chunkOf(vector))
    if (!vector.valid) return
    equal(hex(key), vector.key, 'key')
    equal(JSON.stringify(shown(Object.values(body))), JSON.stringify(Object.values(vector.body)), 'body')
    equal(hex(sealChunk(key, chunkOf(vector), Object.values(body))), vector.sealed, 'sealed here')
  },

  'running-hash': (vector) => {
    const hashes = [unhex(vector.order_hash)]
    for (const chunk of vector.chunks) hashes.push(foldChunk(hashes.at(-1), chunkOf(chunk)))
    equal(hashes.map(hex).join(), vector.hashes.join(), 'chain')
  },

  cost: (vector) => {
    const { price_in_uusd: priceIn, price_out_uusd: priceOut, price_job_uusd: priceJob } = vector
    const sum = cost({ priceIn, priceOut, priceJob }, vector.prompt_tokens, vector.output_tokens)
    equal(sum, BigInt(vector.cost_uusd), 'cost')
  },

  'job-conversation': async (vector) => {
    const said = (sender) => vector.steps.filter((step) => step.from === sender).map((step) => unhex(step.frame))
    const [order, ...rest] = said('asker')
    const [[, signed, start]] = new Frames().feed(order)
    equal(hex(taggedHash('infernet/job-open/1', signed[0])), vector.order_hash, 'order hash')
    const again = signRecord(decode(signed[0]), 'infernet/job-open/1', unhex(vector.asker_secret), NO_RANDOMNESS)
    equal(again.map(hex).join(), signed.map(hex).join(), 'order signed here')
    const parts = rest.flatMap((data) => new Frames().feed(data)).filter(([type]) => type === 66)
    const sealed = Buffer.concat([start, ...parts.map((part) => part[4])])
    equal(hex(sealed), vector.sealed, 'seal in parts')
    const attempt = new Attempt(signed, unhex(vector.response_key))
    const frames = new Frames()
    for (const data of said('provider')) for (const message of frames.feed(data)) attempt.take(message)
    equal(hex(attempt.runningHash), vector.running_hash, 'running hash')
    if (vector.valid) equal(attempt.text, vector.text, 'text')
  }
}

// ---------------------------------------------------------------- conversations

/** Every frame of a conversation says what it claims to say, in the one way to say it, and its records are signed. */
function checkConversation(conversation) {
  for (const { body, signature } of conversation.known) openHeartbeat([body, signature].map(unhex))
  for (const step of conversation.steps) {
    if (step.event !== 'frame') continue
    const [message] = new Frames().feed(unhex(step.frame))
    equalFields(message.slice(1), step.fields)
    equal(hex(frame(message)), step.frame, `${step.message}, made here`)
    const heartbeats = { Hello: [message[8]], Found: message[2], Records: message[1] }[step.message] ?? []
    // A peer may say anything; a node says only what verifies.
    for (const signed of step.from === 'node' ? heartbeats : []) if (signed !== null) openHeartbeat(signed)
  }
}

// ---------------------------------------------------------------- running them

/** Why a vector came out otherwise than it says; undefined when it did not. */
async function verdict(check, vector) {
  try {
    await check(vector)
  } catch (error) {
    return vector.valid ? error.message : undefined
  }
  return vector.valid ? undefined : 'was not refused'
}

const [folder] = process.argv.slice(2)
const read = (...path) => JSON.parse(readFileSync(join(folder, ...path), 'utf8'))
const result = { checked: {}, leftOut: 0, wrong: [] }

async function run(name, vectors, check) {
  let count = 0
  for (const vector of vectors) {
    if (!isHeld(vector)) {
      result.leftOut += 1
      continue
    }
    const reason = await verdict(check, vector)
    if (reason !== undefined) result.wrong.push(`${name}: ${vector.comment}: ${reason}`)
    count += 1
  }
  result.checked[name] = count
}

for (const [name, check] of Object.entries(CHECKS)) {
  const { vectors } = read('vectors', `${name}.json`)
  // Which fields of a foreign message are too long or too large is not repeated in this language.
  await run(name, name === 'frames' ? vectors.filter(({ valid }) => valid) : vectors, check)
}
for (const file of readdirSync(join(folder, 'conversations'))) {
  const name = `conversations/${file.replace('.json', '')}`
  await run(name, read('conversations', file).conversations.map((each) => ({ ...each, valid: true })), checkConversation)
}
console.log(JSON.stringify(result))
