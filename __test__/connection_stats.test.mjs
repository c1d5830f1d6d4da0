// connection.stats(): what the poll and the kernel have counted.

import { mkdtempSync, rmSync } from 'node:fs'
import net from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test from 'ava'
import { createEventLoop, createListener } from '../index.js'
import { connect, deferred, pair, send, serve, settled, take } from './fixtures/peer.mjs'

test('stats() of a TCP connection tell bytes, round trips in milliseconds, and what is on its way', async (t) => {
  const { connection, reader, writer, peer } = await pair(t)
  await send(peer, 'seven!!')
  await reader.waitRead(7)
  writer.writeString('three')
  writer.flush()
  await take(peer, 5)
  const stats = await connection.stats()
  t.deepEqual([stats.bytesRead, stats.bytesWritten], [7, 5])
  t.true(stats.rtt > 0 && stats.rtt < 10_000, `${stats.rtt} ms`)
  t.true(stats.rttVariance > 0 && stats.rttVariance < 10_000)
  t.is(stats.retransmits, 0)
  t.true(Number.isInteger(stats.congestionWindow) && stats.congestionWindow > 0)
  t.true(Number.isInteger(stats.unacknowledged) && stats.unacknowledged >= 0)
})

test('stats() of a unix connection have its bytes, and undefined for what TCP alone knows', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'netpoll-stats-'))
  t.teardown(() => rmSync(folder, { recursive: true }))
  const path = join(folder, 'socket')
  const answer = deferred()
  const loop = createEventLoop((connection) => connection.stats().then(answer.resolve, answer.reject))
  const served = loop.serve(createListener('unix', path))
  const peer = net.connect(path)
  peer.write('four')
  t.deepEqual(await answer.promise, {
    bytesRead: 4,
    bytesWritten: 0,
    rtt: undefined,
    rttVariance: undefined,
    retransmits: undefined,
    congestionWindow: undefined,
    unacknowledged: undefined,
  })
  peer.destroy()
  await loop.shutdown()
  await served
})

test('many stats() at once are answered in the order of their calls', async (t) => {
  const { connection, peer } = await pair(t)
  const answered = []
  const all = Array.from({ length: 100 }, (_, i) => connection.stats().then(() => answered.push(i)))
  await Promise.all(all)
  t.deepEqual(
    answered,
    all.map((_, i) => i),
  )
  await send(peer, 'x')
  await connection.reader.waitRead(1)
  t.is((await connection.stats()).bytesRead, 1, 'each is asked anew')
})

test('stats() that are pending at our own end reject with CONN_CLOSED, and so do later ones', async (t) => {
  for (const end of ['close', 'reset', 'detach']) {
    const { connection } = await pair(t)
    const pending = [connection.stats(), connection.stats()]
    const detached = connection[end]()
    for (const stats of [...pending, connection.stats()])
      await t.throwsAsync(stats, { code: 'ERR_NETPOLL_CONN_CLOSED' })
    await connection.closed
    await t.throwsAsync(connection.stats(), { code: 'ERR_NETPOLL_CONN_CLOSED' })
    if (end === 'detach') new net.Socket({ fd: (await detached).fd }).destroy()
  }
})

test('after the end by the peer stats() reject with the cause', async (t) => {
  for (const [end, code] of [
    ['end', 'ERR_NETPOLL_EOF'],
    ['resetAndDestroy', 'ECONNRESET'],
  ]) {
    const { connection, peer } = await pair(t)
    peer[end]()
    await connection.closed
    await t.throwsAsync(connection.stats(), { code })
    peer.destroy()
  }
})

test('stats() that cross the end settle, whatever comes first', async (t) => {
  let asked = 0
  let answered = 0
  const server = serve((connection) => {
    for (let i = 0; i < 100; i++) {
      asked++
      const answer = () => void answered++
      void connection.stats().then(answer, answer)
    }
  })
  t.teardown(server.stop)
  for (let i = 0; i < 20; i++) {
    const peer = await connect(server.port)
    peer.write('x')
    if (i % 2 === 0) peer.resetAndDestroy()
    else peer.destroy()
  }
  await settled()
  await server.stop()
  t.is(answered, asked)
})
