// npm run bench:zerocopy [-- --rounds N --seconds S]: what sending without a copy costs, and what it saves.
//
// A server sends messages of one size as fast as it may, and a client reads and drops them: over the loopback
// interface, and between two network namespaces that are joined by a pair of veth devices. The figure that counts is
// the server's CPU time, system calls included.
import { execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import net from 'node:net'
import { setTimeout } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'

const KINDS = ['off', 'auto', 'always']
const SIZES = [16, 64, 256, 1024].map((kib) => kib * 1024)

const self = fileURLToPath(import.meta.url)
const roles = { serve, drain }
const [role, ...args] = process.argv.slice(2)
await (roles[role] ?? compare)(...args)

async function compare() {
  const { values } = parseArgs({ options: { rounds: { type: 'string' }, seconds: { type: 'string' } } })
  const [rounds, seconds] = [Number(values.rounds ?? 5), Number(values.seconds ?? 1)]
  console.log(`| | message | zeroCopy | MiB/s | CPU µs/MiB | calls without a copy | copied all the same |`)
  console.log('|---|---|---|---|---|---|---|')
  for (const way of [loopback(), ...namespaces()]) {
    for (const size of SIZES) await compareKinds(way, size, rounds, seconds)
  }
}

/** The kinds take turns, so that a machine that changes its speed changes it for all. */
async function compareKinds(way, size, rounds, seconds) {
  const outcomes = Object.fromEntries(KINDS.map((kind) => [kind, []]))
  for (let round = 0; round < rounds; round++) {
    for (const kind of KINDS) outcomes[kind].push(await measure(way, size, kind, seconds))
  }
  for (const kind of KINDS) {
    const figures = ['rate', 'cpu', 'sent', 'copied'].map((figure) =>
      median(outcomes[kind], figure).toFixed(0),
    )
    const cells = [way.name, `${size / 1024} KiB`, kind, ...figures]
    console.log(`| ${cells.join(' | ')} |`)
  }
}

async function measure(way, size, kind, seconds) {
  const server = start(way.server, 0, ['serve', way.address, size, kind, seconds])
  const port = await line(server)
  const client = start(way.client, 1, ['drain', way.address, port])
  try {
    return JSON.parse(await line(server))
  } finally {
    for (const child of [server, client]) child.kill()
    await Promise.all(
      [server, client].map((child) => child.exitCode ?? child.signalCode ?? once(child, 'exit')),
    )
  }
}

function start(prefix, core, parameters) {
  const command = [
    ...prefix,
    'taskset',
    '-c',
    String(core),
    process.execPath,
    self,
    ...parameters.map(String),
  ]
  return spawn(command[0], command.slice(1), { stdio: ['ignore', 'pipe', 'inherit'] })
}

async function line(child) {
  const [text] = await once(child.stdout, 'data')
  return text.toString().trim()
}

function median(outcomes, figure) {
  const sorted = outcomes.map((outcome) => outcome[figure]).toSorted((a, b) => a - b)
  return sorted[sorted.length >> 1]
}

// ---- ways

function loopback() {
  return { name: 'loopback', address: '127.0.0.1', server: [], client: [] }
}

/** Nothing where this process may not make namespaces. */
function namespaces() {
  const [a, b] = ['a', 'b'].map((end) => `netpoll-${process.pid}-${end}`)
  process.on('exit', () => [a, b].forEach((name) => ip(`netns del ${name}`, true)))
  for (const signal of ['SIGINT', 'SIGTERM']) process.once(signal, () => process.exit(1))
  try {
    for (const name of [a, b]) ip(`netns add ${name}`)
    ip(`link add veth0 netns ${a} type veth peer name veth0 netns ${b}`)
    for (const [name, address] of [
      [a, '10.99.0.1/24'],
      [b, '10.99.0.2/24'],
    ]) {
      ip(`-n ${name} address add ${address} dev veth0`)
      ip(`-n ${name} link set veth0 up`)
    }
  } catch (error) {
    console.error(`No network namespaces here: ${error.message.split('\n', 1)}`)
    return []
  }
  return [{ name: 'veth', address: '10.99.0.1', server: inside(a), client: inside(b) }]
}

function inside(name) {
  return ['ip', 'netns', 'exec', name]
}

function ip(words, tolerant = false) {
  try {
    execFileSync('ip', words.split(' '), { stdio: ['ignore', 'ignore', 'pipe'] })
  } catch (error) {
    if (!tolerant) throw error
  }
}

// ---- the two ends

async function serve(address, size, kind, seconds) {
  const { configure, createEventLoop, createListener, stats } = await import('../index.js')
  configure({ zeroCopy: kind })
  const bytes = Buffer.alloc(Number(size), 'x')
  const onConnect = (connection) => {
    void send(connection, bytes)
    void observe(connection, Number(seconds), stats)
  }
  const listener = createListener('tcp', `${address}:0`)
  createEventLoop(undefined, { onConnect, onError() {} }).serve(listener)
  console.log(listener.address().port)
}

async function send(connection, bytes) {
  while (connection.writable) {
    connection.writer.writeBinary(bytes)
    if (!connection.writer.flush()) await connection.flushed().catch(() => 0)
  }
}

async function observe(connection, seconds, stats) {
  await setTimeout(300)
  const before = { ...process.cpuUsage(), at: performance.now(), bytes: connection.bytesWritten }
  await setTimeout(seconds * 1000)
  const { user, system } = process.cpuUsage(before)
  const mebibytes = (connection.bytesWritten - before.bytes) / 2 ** 20
  const { sent, copied } = stats().zeroCopy
  const rate = mebibytes / ((performance.now() - before.at) / 1000)
  console.log(JSON.stringify({ rate, cpu: (user + system) / mebibytes, sent, copied }))
}

function drain(host, port) {
  net
    .connect({ host, port, onread: { buffer: Buffer.alloc(1 << 20), callback: () => true } })
    .on('error', () => 0)
}
