// Output that the kernel sends from where it lies: what is the same, and what waits longer. The peers are on this
// machine, so the kernel copies what it delivers; it really sends from our memory what a peer has no room for.

import { spawn, spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { Socket } from 'node:net'
import { setImmediate } from 'node:timers/promises'
import test from 'ava'
import { configure, stats } from '../index.js'
import { connect, leaksNothing, outcome, pair, serve, settled, take, until } from './fixtures/peer.mjs'
import { end, prelude, run } from './fixtures/program.mjs'

configure({ zeroCopy: 'always' })

const index = new URL('../index.js', import.meta.url).pathname
const fixtures = new URL('fixtures/peer.mjs', import.meta.url).pathname

const MIB = 1 << 20

/** Bytes of which no two stretches are alike. */
function pattern(length, seed = 0) {
  const words = new Uint32Array(length / 4)
  for (let place = 0; place < words.length; place++) words[place] = Math.imul(place + seed, 2_654_435_761)
  return Buffer.from(words.buffer)
}

/** Turns of the event loop and of the polls in which something could happen that must not. */
async function idle() {
  for (let turn = 0; turn < 5; turn++) {
    await settled()
    await setImmediate()
  }
}

test.serial(
  'a large Buffer arrives, and is counted as sent without a copy and as copied all the same',
  async (t) => {
    const { connection, writer, peer } = await pair(t)
    const before = stats().zeroCopy
    const bytes = pattern(8 * MIB)
    writer.writeBinary(bytes)
    writer.flush()
    t.true((await take(peer, bytes.length)).equals(bytes))
    await connection.flushed()
    const { sent, copied, fallbacks } = stats().zeroCopy
    t.true(sent > before.sent)
    t.is(copied - before.copied, sent - before.sent, 'on the same machine it always is')
    t.is(fallbacks, 0)
    t.deepEqual(
      stats().polls.reduce((sum, poll) => sum + poll.lent, 0),
      sent,
    )
    await until(() => stats().pinnedSends === 0)
  },
)

test.serial(
  'flushed() waits until the kernel needs the Buffer no more, and so do its pin and bytesWritten',
  async (t) => {
    const { connection, writer, peer } = await pair(t)
    const bytes = pattern(MIB)
    writer.writeBinary(bytes)
    writer.flush()
    let isFlushed = false
    const flushed = connection.flushed().then(() => (isFlushed = true))
    await idle()
    t.deepEqual([isFlushed, stats().pinnedSends, connection.bytesWritten < bytes.length], [false, 1, true])
    t.true((await take(peer, bytes.length)).equals(bytes))
    await flushed
    t.is(connection.bytesWritten, bytes.length)
    await until(() => stats().pinnedSends === 0)
  },
)

test.serial('a Buffer that is changed after flushed() arrives as it was', async (t) => {
  const { connection, writer, peer } = await pair(t)
  const bytes = Buffer.alloc(MIB)
  const expected = createHash('sha1')
  const received = createHash('sha1')
  let length = 0
  peer.on('data', (chunk) => {
    length += chunk.length
    received.update(chunk)
  })
  for (let round = 0; round < 20; round++) {
    pattern(MIB, round).copy(bytes)
    expected.update(bytes)
    writer.writeBinary(bytes)
    writer.flush()
    await connection.flushed()
    bytes.fill(0xa5)
  }
  await until(() => length === 20 * MIB)
  t.is(received.digest('hex'), expected.digest('hex'))
})

test.serial('blocks that others fill meanwhile do not change what a slow peer reads', async (t) => {
  const { connection, writer, peer } = await pair(t, { maxPendingBytes: 256 * MIB })
  const bytes = pattern(16 * MIB)
  // Copied into blocks: 12 KiB at a time is not sent by reference.
  for (let at = 0; at < bytes.length; at += 12 << 10) writer.writeBinary(bytes.subarray(at, at + (12 << 10)))
  writer.flush()
  await idle()
  const other = await pair(t)
  const noise = Buffer.alloc(12 << 10, 0xa5)
  for (let count = 0; count < 500; count++) other.writer.writeBinary(noise)
  other.writer.flush()
  t.is(
    (await take(other.peer, 500 * noise.length)).findIndex((byte) => byte !== 0xa5),
    -1,
  )
  t.true((await take(peer, bytes.length)).equals(bytes))
  await connection.flushed()
})

test.serial('a handler that moves what it reads to its writer echoes large messages', async (t) => {
  const before = stats().zeroCopy.sent
  const { port, stop } = serve(({ reader, writer }) => {
    writer.append(reader)
    writer.flush()
  })
  t.teardown(stop)
  const peer = await connect(port)
  t.teardown(() => void peer.destroy())
  const bytes = pattern(16 * MIB)
  peer.write(bytes)
  t.true((await take(peer, bytes.length)).equals(bytes))
  t.true(stats().zeroCopy.sent > before)
})

test.serial('close() sends everything, and the connection has ended when the peer has it', async (t) => {
  const { connection, writer, peer } = await pair(t)
  const bytes = pattern(MIB)
  writer.writeBinary(bytes)
  writer.flush()
  connection.close()
  let isClosed = false
  void connection.closed.then(() => (isClosed = true))
  await idle()
  t.false(isClosed)
  const { bytes: read, code } = await outcome(peer)
  t.true(read.equals(bytes))
  t.is(code, '')
  await connection.closed
})

/** A connection whose peer has read nothing of 8 MiB, part of which the kernel sends from our memory. */
async function stalled(body) {
  let accept
  const accepted = new Promise((resolve) => (accept = resolve))
  const { port, stop } = serve(undefined, { onConnect: (connection) => void accept(connection) })
  const peer = await connect(port)
  const connection = await accepted
  const bytes = pattern(8 * MIB)
  connection.writer.writeBinary(bytes)
  connection.writer.flush()
  await idle()
  await body(connection, peer, bytes)
  await connection.closed
  await until(() => stats().pinnedSends === 0)
  peer.destroy()
  await stop()
}

test.serial(
  'a peer that resets while the kernel sends is told as such, and everything comes back',
  async (t) => {
    await leaksNothing(() =>
      stalled(async (connection, peer) => {
        t.is(stats().pinnedSends, 1)
        peer.resetAndDestroy()
        await t.throwsAsync(connection.flushed(), { code: 'ECONNRESET' })
      }),
    )
  },
)

test.serial('reset() drops what the kernel sends, and everything comes back', async (t) => {
  await leaksNothing(() =>
    stalled(async (connection, peer, bytes) => {
      connection.reset()
      await connection.closed
      bytes.fill(0xa5)
      const { bytes: read } = await outcome(peer)
      t.true(read.length < bytes.length && read.equals(pattern(8 * MIB).subarray(0, read.length)))
    }),
  )
})

test.serial('the write timeout is about what the kernel sends too', async (t) => {
  const { connection, writer } = await pair(t, { writeTimeout: 50 })
  writer.writeBinary(pattern(MIB))
  writer.flush()
  await t.throwsAsync(connection.flushed(), { code: 'ERR_NETPOLL_WRITE_TIMEOUT' })
})

test.serial('detach() waits until the kernel needs our memory no more', async (t) => {
  const { connection, writer, peer } = await pair(t)
  const bytes = pattern(MIB)
  writer.writeBinary(bytes)
  writer.flush()
  let isDetached = false
  const detached = connection.detach().then((socket) => {
    isDetached = true
    return socket
  })
  await idle()
  t.false(isDetached)
  t.true((await take(peer, bytes.length)).equals(bytes))
  const { fd } = await detached
  t.is(stats().pinnedSends, 0)
  const socket = new Socket({ fd })
  socket.end('bye')
  t.is((await take(peer, 3)).toString(), 'bye')
  socket.destroy()
})

const SEND = `
  import { configure, stats } from '${index}'
  const bytes = Buffer.alloc(8 << 20)
  for (let place = 0; place < bytes.length; place++) bytes[place] = (place * 2654435761) >>> 24
  const copy = Buffer.from(bytes)
  const start = async (zeroCopy, options) => {
    configure({ zeroCopy })
    let accept
    const accepted = new Promise((resolve) => (accept = resolve))
    const server = serve(undefined, { onConnect: (connection) => void accept(connection), maxPendingBytes: 1 << 30, ...options })
    const peer = await connect(server.port)
    return { ...server, peer, connection: await accepted }
  }
`

/** What a program prints as JSON. */
async function told(t, source, options) {
  const { code, stdout, stderr } = await run(SEND + source, options)
  t.is(code, 0, stderr)
  return JSON.parse(stdout)
}

const TRANSFER = `
  const { connection, peer, stop } = await start(process.env.KIND)
  let same = true
  for (let round = 0; round < 8; round++) {
    for (let at = 0; at < bytes.length; at += 128 << 10) {
      connection.writer.writeBinary(bytes.subarray(at, at + (128 << 10)))
      connection.writer.flush()
      if (at % (1 << 20) === 0) await new Promise(setImmediate)
    }
    same &&= (await take(peer, bytes.length)).equals(copy)
  }
  await connection.flushed()
  await until(() => stats().pinnedSends === 0)
  console.log(JSON.stringify({ same, ...stats().zeroCopy, pins: stats().pinnedSends }))
  peer.destroy()
  await stop()
`

test("with 'auto' a connection stops when the kernel had to copy", async (t) => {
  const { same, sent, copied } = await told(t, TRANSFER, { env: { ...process.env, KIND: 'auto' } })
  t.true(same && copied > 0)
  // Those that were under way when the first report came.
  t.true(sent < 64, String(sent))
})

test("with 'off' nothing is sent without a copy", async (t) => {
  const { same, ...counts } = await told(t, TRANSFER, { env: { ...process.env, KIND: 'off' } })
  t.deepEqual([same, counts], [true, { sent: 0, copied: 0, fallbacks: 0, pins: 0 }])
})

for (const kind of ['auto', 'always']) {
  test(`with '${kind}' and no room in the kernel for control data, everything arrives by copies`, async (t) => {
    const shell = `ip link set lo up && echo 0 > /proc/sys/net/core/optmem_max && exec "$0" "$@"`
    const wrapped = await within(['unshare', '-n', 'sh', '-c', shell], kind)
    if (wrapped === undefined) return t.pass('skipped: this process may not have a network of its own')
    const { same, fallbacks, pins } = wrapped
    t.deepEqual([same, fallbacks > 0, pins], [true, true, 0])
  })

  test(`with '${kind}' and a user who may lock little memory, everything arrives by copies`, async (t) => {
    const unprivileged = [
      'setpriv',
      '--reuid',
      '65534',
      '--clear-groups',
      '--bounding-set=-all',
      '--inh-caps=-all',
    ]
    const wrapped = await within(['prlimit', '--memlock=65536', ...unprivileged], kind)
    if (wrapped === undefined)
      return t.pass('skipped: this process may not become another user, or that one may not run it')
    const { same, fallbacks, pins } = wrapped
    t.deepEqual([same, fallbacks > 0, pins], [true, true, 0])
  })
}

/** The outcome of TRANSFER in a program that is started so; undefined where that is not possible. */
async function within(prefix, kind) {
  const [command, ...args] = [...prefix, process.execPath]
  const trial = spawnSync(command, [...args, '--eval', `require('${index}')`])
  if (trial.status !== 0) return undefined
  const env = { ...process.env, KIND: kind }
  const child = spawn(command, [...args, '--input-type=module', '--eval', prelude + SEND + TRANSFER], { env })
  const { code, stdout, stderr } = await end(child)
  if (code !== 0) throw new Error(stderr)
  return JSON.parse(stdout)
}

for (const [name, how] of [
  ['process.exit()', 'process.exit(7)'],
  ['an uncaught throw', 'process.nextTick(() => { throw new Error("now") })'],
]) {
  test(`${name} while the kernel sends ends the process at once, and the peer reads nothing wrong`, async (t) => {
    const { code, stdout, stderr } = await run(
      `${SEND}
      const { connection, port } = await start('always')
      connection.writer.writeBinary(bytes)
      connection.writer.flush()
      await new Promise(setImmediate)
      process.on('exit', () => bytes.fill(0xa5))
      console.log('sent')
      ${how}`,
    )
    t.is(stdout, 'sent\n', stderr)
    t.is(code, how.includes('exit') ? 7 : 1)
  })
}

test('a worker that is terminated while the kernel sends ends, and its peer reads nothing wrong', async (t) => {
  const { same, length } = await told(
    t,
    `import { Worker } from 'node:worker_threads'
    import { outcome } from '${fixtures}'
    const worker = new Worker(
      \`const { configure, createListener, createEventLoop } = require('${index}')
      const { parentPort, workerData } = require('node:worker_threads')
      configure({ zeroCopy: 'always' })
      const listener = createListener('tcp', '127.0.0.1:0')
      const onConnect = ({ writer }) => {
        writer.writeBinary(workerData)
        writer.flush()
        setImmediate(() => parentPort.postMessage('sent'))
      }
      createEventLoop(undefined, { onConnect }).serve(listener)
      parentPort.postMessage(listener.address().port)\`,
      { eval: true, execArgv: [], workerData: bytes },
    )
    const [port] = await once(worker, 'message')
    const peer = await connect(port)
    await once(worker, 'message')
    await worker.terminate()
    // What the worker had is used by others.
    const reused = Array.from({ length: 16 }, () => Buffer.alloc(bytes.length, 0xa5))
    const { bytes: read } = await outcome(peer)
    const same = read.equals(copy.subarray(0, read.length)) && reused.length === 16
    console.log(JSON.stringify({ same, length: read.length }))`,
  )
  t.true(same && length < 8 * MIB)
})
