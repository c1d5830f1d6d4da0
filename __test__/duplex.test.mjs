// connection.toDuplex(): a stream that behaves as a net.Socket does.

import { AsyncLocalStorage } from 'node:async_hooks'
import { createHash, randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { Duplex, Readable } from 'node:stream'
import { finished, pipeline } from 'node:stream/promises'
import test from 'ava'
import { dialConnection } from '../index.js'
import {
  connect,
  deferred,
  dialed,
  leaksNothing,
  netServer,
  outcome,
  pair,
  send,
  serve,
  settled,
  take,
  until,
} from './fixtures/peer.mjs'
import { run } from './fixtures/program.mjs'

const KIB = 1 << 10
const MIB = 1 << 20
const STATE = { code: 'ERR_NETPOLL_INVALID_STATE' }

/** pair(), with the Duplex of its connection. */
async function duplexPair(t, options) {
  const all = await pair(t, options)
  return { ...all, duplex: all.connection.toDuplex() }
}

/** The error of a stream, and what its 'close' is told. */
function ending(stream) {
  let error
  stream.on('error', (given) => (error = given))
  return new Promise((resolve) => stream.on('close', (hadError) => resolve({ error, hadError })))
}

function hashOf(bytes) {
  return createHash('sha256').update(bytes).digest('hex')
}

/** `size` bytes in chunks, and the hash of them all. */
function source(size) {
  const block = randomBytes(MIB)
  const hash = createHash('sha256')
  function* chunks() {
    for (let left = size, step = 1; left > 0; step = ((step * 7) % 300_007) + 1) {
      const chunk = block.subarray(0, Math.min(step, left))
      left -= chunk.length
      hash.update(chunk)
      yield chunk
    }
  }
  return { stream: Readable.from(chunks(), { objectMode: false }), digest: () => hash.digest('hex') }
}

/** Of all that comes. An iteration would destroy the stream at its end, whatever is still to be written. */
async function digestOf(stream) {
  const hash = createHash('sha256')
  let size = 0
  stream.on('data', (chunk) => {
    hash.update(chunk)
    size += chunk.length
  })
  await finished(stream, { writable: false })
  return { size, hash: hash.digest('hex') }
}

// ---- what it gives and takes

test('what is unread comes first, and onRequest is called no more', async (t) => {
  let requests = 0
  const accepted = deferred()
  const { port, stop } = serve((connection) => {
    requests++
    t.is(connection.reader.readString(6), 'HELLO ')
    accepted.resolve(connection.toDuplex())
  })
  t.teardown(stop)
  const peer = await connect(port)
  peer.write('HELLO and the rest')
  const duplex = await accepted.promise
  t.is(String(await take(duplex, 12)), 'and the rest')
  peer.write(', later')
  t.is(String(await take(duplex, 7)), ', later')
  t.is(requests, 1)
})

test('it is a Duplex, the same at each call, and looks like a net.Socket', async (t) => {
  const { duplex, connection, peer } = await duplexPair(t)
  t.true(duplex instanceof Duplex)
  t.is(connection.toDuplex(), duplex)
  const { remoteAddress, remotePort, remoteFamily, localAddress, localPort, localFamily } = duplex
  t.deepEqual([remoteAddress, remotePort, remoteFamily], [peer.localAddress, peer.localPort, 'IPv4'])
  t.deepEqual([localAddress, localPort, localFamily], [peer.remoteAddress, peer.remotePort, 'IPv4'])
  t.deepEqual(duplex.address(), { address: localAddress, port: localPort, family: 'IPv4' })
  const { connecting, pending, readyState, encrypted, timeout, destroyed, _handle } = duplex
  t.deepEqual(
    { connecting, pending, readyState, encrypted, timeout, destroyed, _handle },
    {
      connecting: false,
      pending: false,
      readyState: 'open',
      encrypted: undefined,
      timeout: undefined,
      destroyed: false,
      _handle: undefined,
    },
  )
  t.is(
    duplex.setNoDelay().setNoDelay(false).setKeepAlive(true, 1500.5).setKeepAlive().ref().unref().ref(),
    duplex,
  )
  await send(peer, 'four')
  t.is(String(await take(duplex, 4)), 'four')
  await new Promise((resolve) => duplex.write('answer', resolve))
  t.is(String(await take(peer, 6)), 'answer')
  t.deepEqual([duplex.bytesRead, duplex.bytesWritten], [4, 6])
  duplex.end()
  t.is(duplex.readyState, 'readOnly')
  peer.end()
  duplex.resume()
  await once(duplex, 'close')
  t.is(duplex.readyState, 'closed')
  t.is(
    duplex.setNoDelay().setKeepAlive(true).setTimeout(5).ref().unref(),
    duplex,
    'nothing throws after the end',
  )
})

test('chunks are copies: they stay what they are when their blocks are used again', async (t) => {
  const { duplex, peer } = await duplexPair(t)
  const kept = []
  duplex.on('data', (chunk) => kept.push(chunk))
  const sent = []
  for (let i = 0; i < 200; i++) {
    const bytes = Buffer.alloc(1 + ((i * 991) % 40_000), i)
    sent.push(bytes)
    await send(peer, bytes)
  }
  peer.end()
  await once(duplex, 'end')
  t.true(Buffer.concat(kept).equals(Buffer.concat(sent)))
})

test('views of the handler that calls toDuplex() end with it', async (t) => {
  const seen = deferred()
  const { port, stop } = serve((connection) => {
    const copy = Buffer.from(connection.reader.peek(5))
    seen.resolve([copy, connection.toDuplex()])
  })
  t.teardown(stop)
  const peer = await connect(port)
  peer.write('peeks')
  const [copy, duplex] = await seen.promise
  t.is(String(copy), 'peeks')
  t.is(String(await take(duplex, 5)), 'peeks')
})

for (const options of [{}, { writeHighWaterMark: 5000, maxPendingBytes: 8000, readHighWaterMark: 3000 }]) {
  const limits = Object.keys(options).length === 0 ? 'its defaults' : 'small limits'
  test(`64 MiB go through it both ways at once, byte for byte, with ${limits}`, async (t) => {
    const size = limits === 'small limits' ? 8 * MIB : 64 * MIB
    const accepted = deferred()
    const server = serve(undefined, {
      onConnect: (connection) => void accepted.resolve(connection.toDuplex()),
      allowHalfOpen: true,
      ...options,
    })
    t.teardown(server.stop)
    const client = await dialConnection('tcp', `127.0.0.1:${server.port}`, {
      allowHalfOpen: true,
      ...options,
    })
    const [here, there] = [client.toDuplex(), await accepted.promise]
    const [up, down] = [source(size), source(size)]
    const [, , atServer, atClient] = await Promise.all([
      pipeline(up.stream, here),
      pipeline(down.stream, there),
      digestOf(there),
      digestOf(here),
    ])
    t.deepEqual(atServer, { size, hash: up.digest() })
    t.deepEqual(atClient, { size, hash: down.digest() })
    await until(() => server.loop.connections === 0)
    t.deepEqual([here.bytesWritten, here.bytesRead], [size, size])
  })
}

test('an echo by pipe() gives a client that ends before it reads all of it back', async (t) => {
  const { port, stop } = serve(undefined, {
    onConnect: (connection) => {
      const duplex = connection.toDuplex()
      duplex.pipe(duplex)
    },
    allowHalfOpen: true,
  })
  t.teardown(stop)
  const sent = randomBytes(8 * MIB)
  const peer = await connect(port)
  peer.end(sent)
  const { bytes, code } = await outcome(peer)
  t.is(code, '')
  t.is(hashOf(bytes), hashOf(sent))
})

test('strings arrive in their encoding, short and long', async (t) => {
  const { duplex, peer } = await duplexPair(t)
  const received = outcome(peer)
  const long = 'ä€𝄞'.repeat(20_000)
  const parts = [
    ['ä€𝄞', 'utf8'],
    ['äöü', 'latin1'],
    ['ab€', 'ascii'],
    ['c0ffee', 'hex'],
    ['+/==', 'base64'],
    ['ä€', 'utf16le'],
    [long, 'utf8'],
    [long, 'utf16le'],
    ['', 'utf8'],
  ]
  for (const [text, encoding] of parts) duplex.write(text, encoding)
  duplex.end('the end')
  const expected = Buffer.concat([...parts.map((part) => Buffer.from(...part)), Buffer.from('the end')])
  t.true((await received).bytes.equals(expected))
})

test('what was written while corked is sent at once', async (t) => {
  const { duplex, connection, peer } = await duplexPair(t)
  let flushes = 0
  const { flush } = connection.writer
  connection.writer.flush = function () {
    flushes++
    return flush.call(this)
  }
  duplex.cork()
  for (let i = 0; i < 100; i++) duplex.write(`${i % 10}`)
  t.is(flushes, 0)
  duplex.uncork()
  t.is(flushes, 1)
  t.is(String(await take(peer, 100)), '0123456789'.repeat(10))
})

test('a chunk that is filled again after its callback is sent as it was', async (t) => {
  const { duplex, peer } = await duplexPair(t)
  const received = outcome(peer)
  const expected = []
  const chunk = Buffer.alloc(64 * KIB)
  for (let i = 0; i < 100; i++) {
    const size = i % 2 === 0 ? chunk.length : 1000
    chunk.fill(i)
    expected.push(Buffer.alloc(size, i))
    await new Promise((resolve) => duplex.write(chunk.subarray(0, size), resolve))
  }
  duplex.end()
  t.true((await received).bytes.equals(Buffer.concat(expected)))
})

test('one write may be longer than maxPendingBytes', async (t) => {
  const { duplex, peer } = await duplexPair(t, { writeHighWaterMark: 10 * KIB, maxPendingBytes: 100 * KIB })
  const received = outcome(peer)
  const sent = randomBytes(10 * MIB)
  duplex.end(sent)
  t.is(hashOf((await received).bytes), hashOf(sent))
})

test('its listeners run in the asynchronous context of its connection', async (t) => {
  const storage = new AsyncLocalStorage()
  const server = await netServer(t)
  const duplex = await storage.run('of the dial', async () => {
    const connection = await dialConnection('tcp', server.address)
    return connection.toDuplex()
  })
  t.teardown(() => duplex.destroy())
  const seen = new Promise((resolve) => duplex.on('data', () => resolve(storage.getStore())))
  await until(() => server.accepted.length === 1)
  await settled()
  server.accepted[0].write('x')
  t.is(await seen, 'of the dial')
})

// ---- backpressure

test('a reader that stalls stalls the peer: what waits is bounded, and comes when it goes on', async (t) => {
  const { duplex, connection, peer } = await duplexPair(t, { readHighWaterMark: 64 * KIB })
  const size = 64 * MIB
  const block = randomBytes(MIB)
  let sent = 0
  const pump = () => {
    for (let more = true; more && sent < size; sent += MIB) more = peer.write(block)
    if (sent === size) peer.end()
  }
  peer.on('drain', pump)
  pump()
  let before = -1
  let same = 0
  await until(() => {
    same = connection.bytesRead === before ? same + 1 : 0
    before = connection.bytesRead
    return same === 50 && before > 0
  })
  t.true(duplex.readableLength + connection.reader.length <= 64 * KIB + 256 * KIB)
  t.true(connection.bytesRead < MIB, `${connection.bytesRead} of ${sent} were read`)
  const { size: received, hash } = await digestOf(duplex)
  const expected = createHash('sha256')
  for (let i = 0; i < size / MIB; i++) expected.update(block)
  t.deepEqual([received, hash], [size, expected.digest('hex')])
})

test('a peer that does not read: write() is false, what waits is bounded, and drain comes when it reads', async (t) => {
  const { duplex, connection, peer } = await duplexPair(t, { writeHighWaterMark: 64 * KIB })
  const chunk = randomBytes(16 * KIB)
  let written = 0
  const pump = () => {
    for (let more = true; more && written < 2048; written++) more = duplex.write(chunk)
    if (written === 2048) duplex.end()
  }
  duplex.on('drain', pump)
  pump()
  let before = -1
  let same = 0
  await until(() => {
    same = connection.bytesWritten === before ? same + 1 : 0
    before = connection.bytesWritten
    return same === 50
  })
  t.true(written < 2048)
  t.true(written * chunk.length - connection.bytesWritten <= 256 * KIB)
  const { bytes } = await outcome(peer)
  t.is(bytes.length, 2048 * chunk.length)
  for (let at = 0; at < bytes.length; at += chunk.length)
    if (!bytes.subarray(at, at + chunk.length).equals(chunk)) t.fail(`other bytes at ${at}`)
})

test('it reads on while its own output is blocked', async (t) => {
  const { duplex, peer } = await duplexPair(t, { writeHighWaterMark: 1000 })
  const sent = 32 * MIB
  duplex.write(Buffer.alloc(sent))
  await settled()
  peer.write('still heard')
  t.is(String(await take(duplex, 11)), 'still heard')
  t.is((await take(peer, sent)).length, sent)
})

// ---- the ends

test('the FIN of the peer is end, and without allowHalfOpen our own follows what was written', async (t) => {
  const { duplex, peer } = await duplexPair(t)
  const received = outcome(peer)
  const chunks = []
  duplex.on('data', (chunk) => chunks.push(chunk))
  const answer = randomBytes(4 * MIB)
  duplex.once('end', () => duplex.write(answer))
  peer.end('question')
  await once(duplex, 'close')
  t.is(String(Buffer.concat(chunks)), 'question')
  t.is(hashOf((await received).bytes), hashOf(answer))
})

test('bytes that the stream holds when the peer ends are not cut off by it', async (t) => {
  const { duplex, peer } = await duplexPair(t, { writeHighWaterMark: 1000 })
  const answer = randomBytes(4 * MIB)
  duplex.write(answer)
  peer.end()
  duplex.resume()
  await settled()
  t.is(hashOf((await outcome(peer)).bytes), hashOf(answer))
})

test('with allowHalfOpen it can write after end, for as long as it likes', async (t) => {
  const { duplex, peer } = await duplexPair(t, { allowHalfOpen: true })
  duplex.resume()
  peer.end()
  await once(duplex, 'end')
  await settled()
  t.true(duplex.writable)
  duplex.end('late')
  t.is(String((await outcome(peer)).bytes), 'late')
  await until(() => duplex.closed)
})

test('the end comes also when nobody reads, and nothing is there', async (t) => {
  const { duplex, peer, server } = await duplexPair(t)
  peer.end()
  t.deepEqual(await once(duplex, 'close'), [false])
  await until(() => server.loop.connections === 0)
})

test('end() sends a FIN behind all that is pending, finish comes when the kernel has it, and reading goes on', async (t) => {
  const { duplex, connection, peer } = await duplexPair(t)
  const sent = randomBytes(8 * MIB)
  const done = once(duplex, 'finish').then(() => connection.bytesWritten)
  duplex.end(sent)
  const ended = once(peer, 'end')
  t.true((await take(peer, sent.length)).equals(sent))
  peer.read(0)
  await ended
  t.is(await done, sent.length)
  peer.end('answer')
  t.is(String(await take(duplex, 6)), 'answer')
  duplex.resume()
  await until(() => duplex.closed)
})

for (const [what, prepare] of Object.entries({
  'that is read': (duplex) => duplex.resume(),
  'that nobody reads': () => undefined,
  'that writes': (duplex) => duplex.write(Buffer.alloc(16 * MIB)),
})) {
  test(`the RST of the peer of a Duplex ${what} is error ECONNRESET, then close; the callbacks run`, async (t) => {
    const order = []
    const { duplex, connection, peer } = await duplexPair(t, {
      onDisconnect: () => void order.push('onDisconnect'),
    })
    connection.addCloseCallback(() => order.push('close callback'))
    prepare(duplex)
    await settled()
    const end = ending(duplex)
    peer.resetAndDestroy()
    const { error, hadError } = await end
    t.is(error.code, 'ECONNRESET')
    t.true(hadError)
    await connection.closed
    t.deepEqual(order, ['onDisconnect', 'close callback'])
  })
}

test('bytes that came before a RST are given first', async (t) => {
  const { duplex, connection, peer } = await duplexPair(t)
  await send(peer, 'last words')
  await until(() => connection.bytesRead === 10)
  const end = ending(duplex)
  const first = once(duplex, 'data')
  peer.resetAndDestroy()
  t.is(String((await first)[0]), 'last words')
  t.is((await end).error.code, 'ECONNRESET')
})

test('a Duplex that is full when the peer resets gives all that came, then the error', async (t) => {
  for (const size of [100_000, 300_000]) {
    const { duplex, connection, peer } = await duplexPair(t)
    const sent = randomBytes(size)
    await send(peer, sent)
    await until(() => connection.bytesRead === size)
    peer.resetAndDestroy()
    await connection.closed
    await settled()
    t.false(duplex.destroyed)
    const end = ending(duplex)
    t.true((await take(duplex, size)).equals(sent))
    duplex.resume()
    t.is((await end).error.code, 'ECONNRESET')
  }
})

test('a Duplex ends when its connection was ended beside it', async (t) => {
  const { duplex, connection, peer } = await duplexPair(t, { allowHalfOpen: true })
  const end = ending(duplex)
  connection.end()
  await take(peer, 1)
  peer.end()
  t.deepEqual(await end, { error: undefined, hadError: false })
})

test('a Duplex is made of a connection that has ended, too: its bytes, then its end', async (t) => {
  const { connection, peer } = await pair(t)
  peer.end('all of it')
  await until(() => connection.reader.ended)
  t.is((await digestOf(connection.toDuplex())).size, 9)
  const reset = await pair(t)
  await send(reset.peer, 'some')
  await until(() => reset.connection.reader.length === 4)
  reset.peer.resetAndDestroy()
  await reset.connection.closed
  const duplex = reset.connection.toDuplex()
  t.is(String(await take(duplex, 4)), 'some')
  t.is((await ending(duplex)).error.code, 'ECONNRESET')
})

test('a write after the peer is gone fails with the cause', async (t) => {
  const { duplex, peer } = await duplexPair(t, { allowHalfOpen: true })
  const end = ending(duplex)
  duplex.resume()
  peer.end()
  await once(duplex, 'end')
  peer.destroy()
  const pump = () => {
    if (!duplex.destroyed) duplex.write('x', () => setImmediate(pump))
  }
  pump()
  const { error } = await end
  t.regex(error.code, /^(?:EPIPE|ECONNRESET|ERR_NETPOLL_EOF)$/)
})

test('destroy() behind a write still sends what the kernel takes', async (t) => {
  const { duplex, peer } = await duplexPair(t)
  const received = outcome(peer)
  duplex.write('last words')
  duplex.destroy()
  t.deepEqual(await received, { bytes: Buffer.from('last words'), code: '' })
})

test('destroy() while a peer does not read waits for nothing, and fails the writes', async (t) => {
  const { duplex, connection, peer, server } = await duplexPair(t)
  const results = []
  for (let i = 0; i < 3; i++) duplex.write(Buffer.alloc(16 * MIB, 7), (error) => results.push(error?.code))
  await settled()
  t.true(connection.bytesWritten > 0)
  const end = ending(duplex)
  duplex.destroy()
  t.deepEqual(await end, { error: undefined, hadError: false })
  await until(() => server.loop.connections === 0)
  await until(() => results.length === 3)
  t.true(results.every(Boolean), String(results))
  const { bytes, code } = await outcome(peer)
  t.is(code, '', 'it is no RST')
  t.is(bytes.length, connection.bytesWritten)
})

test('destroy(error) is that error, then close', async (t) => {
  const { duplex, peer } = await duplexPair(t)
  const end = ending(duplex)
  duplex.destroy(new Error('enough'))
  const { error, hadError } = await end
  t.is(error.message, 'enough')
  t.true(hadError)
  t.is((await outcome(peer)).code, '')
})

test('destroySoon() ends, and destroys when all was taken', async (t) => {
  const { duplex, peer } = await duplexPair(t, { allowHalfOpen: true })
  const sent = randomBytes(8 * MIB)
  const received = outcome(peer)
  duplex.write(sent)
  duplex.destroySoon()
  await once(duplex, 'close')
  t.true((await received).bytes.equals(sent))
})

test('resetAndDestroy() is a RST for the peer', async (t) => {
  const { duplex, peer } = await duplexPair(t)
  const received = outcome(peer)
  const end = ending(duplex)
  duplex.resetAndDestroy()
  t.is((await received).code, 'ECONNRESET')
  t.deepEqual(await end, { error: undefined, hadError: false })
})

test('close() of the connection sends what was flushed, and is no error of the Duplex', async (t) => {
  const { duplex, connection, peer } = await duplexPair(t)
  const received = outcome(peer)
  const end = ending(duplex)
  duplex.write('sent')
  connection.close()
  t.deepEqual(await end, { error: undefined, hadError: false })
  t.is(String((await received).bytes), 'sent')
  t.throws(() => connection.toDuplex(), { code: 'ERR_NETPOLL_CONN_CLOSED' })
})

test('finished() and iteration see the ends that they see of a net.Socket', async (t) => {
  const whole = await duplexPair(t)
  whole.peer.end('abc')
  whole.duplex.resume()
  await t.notThrowsAsync(finished(whole.duplex))
  const cut = await duplexPair(t)
  const end = finished(cut.duplex)
  cut.duplex.destroy()
  await t.throwsAsync(end, { code: 'ERR_STREAM_PREMATURE_CLOSE' })
})

test('a handler may wait for the end of its Duplex', async (t) => {
  const order = []
  const { port, loop, stop } = serve(undefined, {
    onConnect: async (connection) => {
      const duplex = connection.toDuplex()
      duplex.resume()
      await finished(duplex)
      order.push('handler')
    },
    onDisconnect: () => void order.push('onDisconnect'),
  })
  t.teardown(stop)
  const peer = await connect(port)
  peer.end()
  await until(() => order.length === 2 && loop.connections === 0)
  t.deepEqual(order, ['handler', 'onDisconnect'])
})

test('shutdown() lets a Duplex send what it was given, and closes one that is idle', async (t) => {
  const { duplex, connection, peer, server } = await duplexPair(t, { writeHighWaterMark: 1000 })
  const idle = await connect(server.port)
  const sent = randomBytes(16 * MIB)
  duplex.write(sent)
  await settled()
  const stopped = server.loop.shutdown()
  t.is((await outcome(idle)).code, '')
  t.true((await outcome(peer)).bytes.equals(sent))
  await stopped
  await connection.closed
  await until(() => duplex.closed)
})

test('shutdown() cuts a Duplex whose peer does not read when its time is over', async (t) => {
  const { duplex, server } = await duplexPair(t, { writeHighWaterMark: 1000 })
  duplex.write(Buffer.alloc(16 * MIB))
  const end = ending(duplex)
  await t.throwsAsync(server.loop.shutdown({ timeout: 50 }), { code: 'ERR_NETPOLL_SHUTDOWN_TIMEOUT' })
  t.is((await end).error, undefined)
})

// ---- timeouts

test('setTimeout() emits timeout when nothing has happened, once until something does, and closes nothing', async (t) => {
  const { duplex, peer } = await duplexPair(t)
  let count = 0
  let first = 0
  t.is(
    duplex.setTimeout(20, () => first++),
    duplex,
  )
  duplex.on('timeout', () => count++)
  t.is(duplex.timeout, 20)
  await until(() => count === 1)
  await new Promise((resolve) => setTimeout(resolve, 60))
  t.is(count, 1)
  duplex.resume()
  peer.write('x')
  await until(() => count === 2)
  duplex.write('y')
  await until(() => count === 3)
  t.is(first, 1)
  t.false(duplex.destroyed)
})

test('timeout comes after its time and no later, also when something was sent just before', async (t) => {
  const { duplex, reader, peer } = await duplexPair(t)
  const armed = []
  const { armTimer } = reader
  reader.armTimer = (ms) => {
    armed.push(ms)
    armTimer.call(reader, ms)
  }
  duplex.write('x')
  await take(peer, 1)
  duplex.setTimeout(100)
  await once(duplex, 'timeout')
  t.is(armed[0], 100)
  t.true(
    armed.slice(1).every((ms) => ms < 50),
    String(armed),
  )
})

test('timeout does not come while bytes come or go', async (t) => {
  const { duplex, peer } = await duplexPair(t)
  const start = performance.now()
  let last = start
  let quiet = 0
  duplex.setTimeout(2000, () => (quiet = performance.now() - last))
  duplex.on('data', () => (last = performance.now()))
  while (performance.now() - start < 2500) {
    await send(peer, 'x')
    await new Promise((resolve) => setTimeout(resolve, 5))
  }
  t.true(quiet === 0 || quiet > 1900, `${quiet}`)
})

test('timeout does not come while the kernel takes what is pending', async (t) => {
  const { duplex, connection, peer } = await duplexPair(t, { writeHighWaterMark: 64 * MIB })
  let [last, sent, quiet] = [performance.now(), 0, 0]
  duplex.setTimeout(1000, () => (quiet = performance.now() - last))
  let isTaken = false
  duplex.write(Buffer.alloc(48 * MIB), () => (isTaken = true))
  while (!isTaken) {
    await take(peer, 300 * KIB)
    if (connection.bytesWritten !== sent) [last, sent] = [performance.now(), connection.bytesWritten]
    await new Promise((resolve) => setTimeout(resolve, 10))
  }
  t.true(quiet === 0 || quiet > 900, `${quiet}`)
})

test('setTimeout(0) ends it, also a callback; an earlier or later one replaces it', async (t) => {
  const { duplex } = await duplexPair(t)
  const never = () => t.fail()
  duplex.setTimeout(30, never)
  duplex.setTimeout(0, never)
  t.is(duplex.listenerCount('timeout'), 0)
  const start = performance.now()
  duplex.setTimeout(1_000_000)
  duplex.setTimeout(40)
  await once(duplex, 'timeout')
  t.true(performance.now() - start >= 39)
  t.throws(() => duplex.setTimeout(-1), { code: 'ERR_OUT_OF_RANGE' })
  t.throws(() => duplex.setTimeout(NaN), { code: 'ERR_OUT_OF_RANGE' })
  t.throws(() => duplex.setTimeout('1'), { code: 'ERR_INVALID_ARG_TYPE' })
  t.throws(() => duplex.setTimeout(1, 'no'), { code: 'ERR_INVALID_ARG_TYPE' })
  t.notThrows(() =>
    duplex
      .setTimeout(2 ** 40)
      .setTimeout(1.5)
      .setTimeout(0),
  )
})

test('a readTimeout concerns a Duplex no more, an idleTimeout is its error', async (t) => {
  const left = deferred()
  const { port, stop } = serve(
    (connection) => {
      // They are left unread at first, so that the timer runs.
      left.resolve(connection)
    },
    { readTimeout: 30, readHighWaterMark: 1000 },
  )
  t.teardown(stop)
  const peer = await connect(port)
  peer.write(Buffer.alloc(100 * KIB))
  const duplex = (await left.promise).toDuplex()
  duplex.on('error', (error) => t.fail(error.code))
  await new Promise((resolve) => setTimeout(resolve, 120))
  t.is((await take(duplex, 100 * KIB)).length, 100 * KIB)

  const idle = await duplexPair(t)
  const end = ending(idle.duplex)
  idle.connection.setIdleTimeout(30)
  t.is((await end).error.code, 'ERR_NETPOLL_IDLE_TIMEOUT')
})

test('a writeTimeout is its error', async (t) => {
  const { duplex } = await duplexPair(t, { writeTimeout: 50 })
  const end = ending(duplex)
  duplex.write(Buffer.alloc(32 * MIB))
  t.is((await end).error.code, 'ERR_NETPOLL_WRITE_TIMEOUT')
})

// ---- what else

test('the connection of a Duplex has no waits, no iteration, no onRequest, and cannot be detached', async (t) => {
  const { connection, reader } = await duplexPair(t)
  await t.throwsAsync(reader.waitRead(1), STATE)
  await t.throwsAsync(reader.waitUntil('\n'), STATE)
  await t.throwsAsync(connection[Symbol.asyncIterator]().next(), STATE)
  t.throws(() => connection.setOnRequest(() => {}), STATE)
  await t.throwsAsync(connection.detach(), STATE)
})

test('waits for what is here already reject too, once there is a Duplex', async (t) => {
  const { connection, reader, peer } = await pair(t)
  peer.write(Buffer.alloc(MIB, '\n'))
  await reader.waitRead(MIB)
  connection.toDuplex()
  t.true(reader.length > 1)
  await t.throwsAsync(reader.waitRead(1), STATE)
  await t.throwsAsync(reader.waitUntil('\n'), STATE)
})

test('a connection whose Reader waits, or that is iterated, has no Duplex', async (t) => {
  const { connection, reader, peer } = await pair(t)
  const abort = new AbortController()
  const wait = reader.waitRead(1, { signal: abort.signal })
  t.throws(() => connection.toDuplex(), STATE)
  abort.abort(new Error('enough'))
  await t.throwsAsync(wait, { message: 'enough' })
  const iterator = connection[Symbol.asyncIterator]()
  const first = iterator.next()
  t.throws(() => connection.toDuplex(), STATE)
  peer.write('x')
  await first
  t.throws(() => connection.toDuplex(), STATE)
  await iterator.return()
  t.notThrows(() => connection.toDuplex())
})

test('connect() of a client that connects what it is given says that it is connected', async (t) => {
  const { connection } = await dialed(t)
  const duplex = connection.toDuplex()
  const ready = once(duplex, 'ready')
  await new Promise((resolve) => t.is(duplex.connect(5432, 'localhost', resolve), duplex))
  await ready
})

test('pause() of the connection holds its Duplex, too', async (t) => {
  const { duplex, connection, peer } = await duplexPair(t)
  connection.pause()
  await settled()
  await send(peer, 'x')
  await settled()
  t.is(duplex.readableLength, 0)
  connection.resume()
  t.is(String(await take(duplex, 1)), 'x')
})

test('what a listener throws is uncaught, and other connections go on', async (t) => {
  const { code, stdout } = await run(`
    const seen = new Set()
    process.on('uncaughtException', (error, origin) => seen.add(error.message + ': ' + origin))
    const fail = (what) => { throw new Error(what) }
    const server = serve(undefined, {
      onConnect: (connection) => {
        const duplex = connection.toDuplex()
        duplex.setTimeout(20, () => fail('timeout'))
        duplex.on('close', () => fail('close'))
        duplex.on('data', (chunk) => {
          if (String(chunk) === 'good') duplex.write(Buffer.alloc(100_000), () => fail('callback'))
          else fail('data')
        })
      },
    })
    const bad = await connect(server.port)
    bad.write('bad')
    const good = await connect(server.port)
    good.write('good')
    await take(good, 100_000)
    await until(() => seen.size === 3)
    good.destroy()
    await until(() => seen.size === 4)
    await server.stop()
    console.log([...seen].sort().join('\\n'))
  `)
  t.is(code, 0)
  const expected = ['callback', 'close', 'data', 'timeout'].map((what) => `${what}: uncaughtException\n`)
  t.is(stdout, expected.join(''))
})

const CALLBACKS = {
  'a write in parts': `duplex.write(Buffer.alloc(${2 * MIB + 1000}), fail); socket.resume()`,
  'a write in parts that fails': `duplex.write(Buffer.alloc(${32 * MIB}), fail); socket.resetAndDestroy()`,
}

for (const [what, act] of Object.entries(CALLBACKS)) {
  test(`what the callback of ${what} throws is uncaught, and no rejection`, async (t) => {
    const { code, stdout } = await run(`
      const origins = []
      process.on('uncaughtException', (error, origin) => origins.push(error.message + ': ' + origin))
      const fail = () => { throw new Error('callback') }
      let duplex
      const server = serve(undefined, { onConnect: (connection) => void (duplex = connection.toDuplex()) })
      const socket = await connect(server.port)
      await until(() => duplex !== undefined)
      duplex.on('error', () => undefined)
      ${act}
      await until(() => origins.length === 1)
      socket.destroy()
      await server.stop()
      console.log(origins.join())
    `)
    t.deepEqual([code, stdout], [0, 'callback: uncaughtException\n'])
  })
}

test('unref() of a Duplex lets its process go, ref() keeps it', async (t) => {
  const server = serve(undefined, { onConnect: (connection) => void connection.toDuplex() })
  t.teardown(server.stop)
  const dial = `const duplex = (await dialConnection('tcp', '127.0.0.1:${server.port}')).toDuplex(); duplex.unref();`
  const gone = await run(`${dial} duplex.setTimeout(100_000)`)
  t.is(gone.code, 0)
  const kept = await run(
    `${dial} duplex.ref(); setTimeout(() => { console.log('here'); duplex.destroy() }, 20).unref()`,
  )
  t.deepEqual([kept.code, kept.stdout], [0, 'here\n'])
})

test.serial('neither descriptors nor blocks are left behind, however it ends', async (t) => {
  const server = serve(undefined, {
    onConnect: (connection) => {
      const duplex = connection.toDuplex()
      duplex.on('error', () => undefined)
      duplex.once('data', (chunk) => {
        if (String(chunk) === 'stall') duplex.pause()
        else duplex.end(Buffer.alloc(300_000))
      })
    },
  })
  t.teardown(server.stop)
  await leaksNothing(async () => {
    const client = (await dialConnection('tcp', `127.0.0.1:${server.port}`)).toDuplex()
    client.write('go')
    t.is((await digestOf(client)).size, 300_000)
    const cut = (await dialConnection('tcp', `127.0.0.1:${server.port}`)).toDuplex()
    cut.write('stall')
    cut.write(Buffer.alloc(20 * MIB))
    cut.on('error', () => undefined)
    await settled()
    cut.destroy()
    const reset = (await dialConnection('tcp', `127.0.0.1:${server.port}`)).toDuplex()
    reset.write('stall')
    await settled()
    reset.resetAndDestroy()
    await until(() => client.closed && cut.closed && reset.closed)
    await until(() => server.loop.connections === 0)
  })
})
