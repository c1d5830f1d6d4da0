// Peers that do not read: memory stays bounded, and what is sent in the end is what was written.

import { spawn } from 'node:child_process'
import { createHash, randomBytes } from 'node:crypto'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import test from 'ava'
import { stats } from '../index.js'
import { connect, deferred, pair, serve, settled, until } from './fixtures/peer.mjs'

const KIB = 1024
const MIB = 1024 * KIB

test.before(settled)

test.serial(
  'a handler that stops at flush() === false has little pending, however long the peer sleeps',
  async (t) => {
    const limits = { writeHighWaterMark: 256 * KIB }
    const { connection, writer, peer } = await pair(t, limits)
    const before = stats().bytesOut
    let written = 0
    const chunk = randomBytes(8 * KIB)
    const pending = () => written - connection.bytesWritten
    // At first the kernel's own buffers take what was refused; then nothing moves any more.
    await until(async () => {
      while (writer.flush() && pending() <= 256 * KIB) written += writer.writeBinary(chunk)
      await settled()
      return pending() > 0
    })
    t.true(pending() <= 256 * KIB + chunk.length, `${pending()} bytes`)
    t.true(stats().bytesOut - before <= 2 * MIB, `${stats().bytesOut - before} bytes of blocks`)
    peer.resume()
    writer.flush()
    await connection.flushed()
    t.is(connection.bytesWritten, written)
  },
)

test.serial(
  'a handler that awaits flushed() writes 64 MiB through little memory to a peer that reads slowly',
  async (t) => {
    const { connection, writer, peer } = await pair(t)
    const before = stats().bytesOut
    let most = 0
    const hash = createHash('sha256')
    const got = createHash('sha256')
    let received = 0
    peer.on('data', (bytes) => {
      got.update(bytes)
      received += bytes.length
      peer.pause()
      setImmediate(() => peer.resume())
    })
    for (let chunk = 0; chunk < 1024; chunk++) {
      const bytes = randomBytes(64 * KIB)
      hash.update(bytes)
      writer.writeBinary(bytes)
      if (!writer.flush()) await connection.flushed()
      most = Math.max(most, stats().bytesOut - before)
    }
    await connection.flushed()
    await until(() => received === 64 * MIB, 'all has arrived')
    t.is(got.digest('hex'), hash.digest('hex'))
    t.true(most <= 8 * MIB, `${most} bytes of blocks`)
  },
)

test.serial(
  'a handler that ignores flush() fails with OUTPUT_LIMIT, and its memory comes back',
  async (t) => {
    const failed = deferred()
    const server = serve(
      ({ reader, writer }) => {
        reader.skip(reader.length)
        const chunk = Buffer.alloc(8 * KIB, 1)
        for (;;) {
          writer.writeBinary(chunk)
          writer.flush()
        }
      },
      { maxPendingBytes: 4 * MIB, onError: failed.resolve },
    )
    const before = stats().bytesOut
    const peer = await connect(server.port)
    peer.write('go')
    t.is((await failed.promise).code, 'ERR_NETPOLL_OUTPUT_LIMIT')
    await until(() => server.loop.connections === 0)
    await settled()
    t.true(stats().bytesOut - before <= MIB, 'the blocks are back')
    peer.destroy()
    await server.stop()
  },
)

test.serial('64 KiB echoed by writeBinary(next(n)) to a stalled peer arrive as they were sent', async (t) => {
  const COUNT = 400
  let connection
  const server = serve((stalled) => {
    connection = stalled
    const { reader, writer } = connection
    while (reader.length >= 64 * KIB) {
      writer.writeBinary(reader.next(64 * KIB))
      writer.flush()
    }
  })
  const peer = await connect(server.port)
  const sent = createHash('sha256')
  for (let count = 0; count < COUNT; count++) {
    const bytes = randomBytes(64 * KIB)
    sent.update(bytes)
    peer.write(bytes)
  }
  // The peer reads nothing until the server has nowhere to send to.
  let last = -1
  await until(async () => {
    await settled()
    const now = connection?.bytesWritten
    const stalls = now > 0 && now === last
    last = now
    return stalls
  }, 'nothing is sent any more')
  const got = createHash('sha256')
  let received = 0
  peer.on('data', (bytes) => {
    received += bytes.length
    got.update(bytes)
  })
  await until(() => received === COUNT * 64 * KIB, 'all has come back')
  t.is(got.digest('hex'), sent.digest('hex'))
  peer.destroy()
  await server.stop()
})

test.serial(
  'a firehose whose bytes nobody takes stops at the mark, and goes on where it stopped',
  async (t) => {
    const { connection, reader, peer } = await pair(t, { readHighWaterMark: 128 * KIB })
    const bytes = randomBytes(32 * MIB)
    peer.write(bytes)
    await until(() => reader.length >= 128 * KIB)
    await settled()
    t.true(reader.length <= 128 * KIB + 8 * MIB, `${reader.length} bytes`)
    const hash = createHash('sha256')
    for (let left = bytes.length; left > 0;) {
      await reader.waitRead(1)
      left -= reader.length
      hash.update(reader.next(reader.length))
      reader.release()
    }
    t.is(hash.digest('hex'), createHash('sha256').update(bytes).digest('hex'))
    t.is(connection.bytesRead, bytes.length)
  },
)

const fixture = fileURLToPath(new URL('fixtures/never_read.mjs', import.meta.url))
const CLIENTS = 4

for (const size of [8 * KIB, 64 * KIB]) {
  for (const style of ['awaits', 'stops', 'ignores']) {
    test.serial(
      `a process that writes ${size} bytes at a time without end, and ${style}, stays small`,
      async (t) => {
        const child = spawn(process.execPath, [fixture, style, size], { stdio: ['pipe', 'pipe', 'inherit'] })
        t.teardown(() => void child.kill())
        const lines = createInterface(child.stdout)[Symbol.asyncIterator]()
        const port = Number((await lines.next()).value)
        const report = async () => {
          child.stdin.write('\n')
          return JSON.parse((await lines.next()).value)
        }

        // They ask for more, and take nothing.
        const crowd = await Promise.all(Array.from({ length: CLIENTS }, () => connect(port)))
        t.teardown(() => crowd.forEach((socket) => socket.destroy()))
        let state = await report()
        let quiet = 0
        await until(async () => {
          for (const socket of crowd) if (socket.writable) socket.write('more')
          const { written } = state
          state = await report()
          quiet = written > 0 && state.written === written ? quiet + 1 : 0
          return quiet === 50
        }, 'nothing is written any more')

        const failing = style === 'ignores'
        t.deepEqual(state.failures, failing ? Array(CLIENTS).fill('ERR_NETPOLL_OUTPUT_LIMIT') : [])
        t.is(state.connections, failing ? 0 : CLIENTS)
        const pending = failing ? 4 * MIB : 256 * KIB + size
        t.true(state.peaks.blocks <= CLIENTS * pending + 2 * MIB, `${state.peaks.blocks} bytes of blocks`)
        t.true(state.peaks.rss <= 48 * MIB, `${state.peaks.rss} more bytes of memory`)
      },
    )
  }
}
