// Circuit relay v2 as js-libp2p speaks it, in each of its three parts.
//
//   node --import ./promise.mjs relay.mjs reached RELAY      hold a place at a relay and echo what comes
//   node --import ./promise.mjs relay.mjs dial CIRCUIT TEXT  reach a node through a relay and have it echo a text
//   node --import ./promise.mjs relay.mjs relay              be a relay for others
//
// The first line of standard output is JSON; `reached` and `relay` then go on until their standard input ends.
import { noise } from '@chainsafe/libp2p-noise'
import { yamux } from '@chainsafe/libp2p-yamux'
import { circuitRelayServer, circuitRelayTransport } from '@libp2p/circuit-relay-v2'
import { generateKeyPair } from '@libp2p/crypto/keys'
import { identify } from '@libp2p/identify'
import { ping } from '@libp2p/ping'
import { tcp } from '@libp2p/tcp'
import { multiaddr } from '@multiformats/multiaddr'
import { createLibp2p } from 'libp2p'

const ECHO = '/test/echo/1'
const EVEN_Y = 2
const DEADLINE_MS = 15_000

/** A secp256k1 key with even Y, as every node of ours has one. */
async function identity() {
  for (;;) {
    const key = await generateKeyPair('secp256k1')
    if (key.publicKey.raw[0] === EVEN_Y) return key
  }
}

async function start(listen, services = {}) {
  return await createLibp2p({
    privateKey: await identity(),
    addresses: { listen },
    transports: [tcp(), circuitRelayTransport()],
    connectionEncrypters: [noise()],
    streamMuxers: [yamux()],
    connectionGater: { denyDialMultiaddr: () => false },
    services: { identify: identify(), ping: ping(), ...services }
  })
}

const say = (words) => console.log(JSON.stringify(words))

async function untilInputEnds() {
  process.stdin.resume()
  await new Promise((resolve) => process.stdin.once('end', resolve))
}

async function addressOf(node, accepts) {
  const deadline = Date.now() + DEADLINE_MS
  while (Date.now() < deadline) {
    const address = node.getMultiaddrs().map(String).find(accepts)
    if (address !== undefined) return address
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
  throw new Error(`no address: ${node.getMultiaddrs()}`)
}

async function reached(relay) {
  const node = await start([`${relay}/p2p-circuit`])
  await node.handle(
    ECHO,
    async (stream) => {
      for await (const piece of stream) stream.send(piece)
      await stream.close()
    },
    { runOnLimitedConnection: true }
  )
  say({ peerId: node.peerId.toString(), address: await addressOf(node, (text) => text.includes('/p2p-circuit')) })
  await untilInputEnds()
  await node.stop()
}

async function dial(circuit, text) {
  const node = await start([])
  try {
    const signal = AbortSignal.timeout(DEADLINE_MS)
    const connection = await node.dial(multiaddr(circuit), { signal })
    const stream = await connection.newStream(ECHO, { signal, runOnLimitedConnection: true })
    stream.send(new TextEncoder().encode(text))
    await stream.close()
    const pieces = []
    for await (const piece of stream) pieces.push(Buffer.from(piece.subarray()))
    say({
      peerId: connection.remotePeer.toString(),
      address: connection.remoteAddr.toString(),
      seconds: connection.limits?.seconds,
      bytes: String(connection.limits?.bytes),
      echo: Buffer.concat(pieces).toString(),
      pingMs: await node.services.ping.ping(connection.remotePeer, { signal, runOnLimitedConnection: true })
    })
  } finally {
    await node.stop()
  }
}

async function relay() {
  const node = await start(['/ip4/127.0.0.1/tcp/0'], { relay: circuitRelayServer() })
  say({ peerId: node.peerId.toString(), address: await addressOf(node, (text) => text.includes('/tcp/')) })
  await untilInputEnds()
  await node.stop()
}

const [command, ...rest] = process.argv.slice(2)
await { reached, dial, relay }[command](...rest)
