// What becomes of a connection that was dialed: handlers, half-close, and every kind of end. And of dials that end
// before there is one.

import dns from 'node:dns/promises'
import { getEventListeners } from 'node:events'
import { setImmediate } from 'node:timers/promises'
import test from 'ava'
import { Dialer, dialConnection } from '../index.js'
import { deferred, dialed, netServer, outcome, serve, silent, take, until } from './fixtures/peer.mjs'
import { start } from './fixtures/program.mjs'

const DIALS = 100
const reason = new Error('on purpose')

const echo = ({ reader, writer }) => {
  writer.append(reader)
  writer.flush()
}

// ---- handlers

function ask(writer) {
  writer.writeString('echo')
  writer.flush()
}

test('onRequest, onDisconnect and close callbacks run in order, each once, as for a server', async (t) => {
  const events = []
  const server = serve(echo)
  t.teardown(server.stop)
  const connection = await dialConnection('tcp', `127.0.0.1:${server.port}`, {
    onRequest: (client, context) => {
      const { reader } = client
      t.is(context, client.context)
      events.push(reader.readString(reader.length))
      if (events.length === 3) client.close()
      else ask(client.writer)
    },
    onDisconnect: () => void events.push('onDisconnect'),
  })
  connection.context = 'mine'
  connection.addCloseCallback(() => events.push('added first'))
  connection.addCloseCallback(() => events.push('added last'))
  ask(connection.writer)
  await connection.closed
  t.deepEqual(events, ['echo', 'echo', 'echo', 'onDisconnect', 'added last', 'added first'])
})

test('a handler that throws closes its connection and is told to onError', async (t) => {
  const told = deferred()
  const { connection, peer } = await dialed(t, {
    onRequest: () => {
      throw reason
    },
    onError: (...args) => told.resolve(args),
  })
  peer.write('x')
  t.deepEqual(await told.promise, [reason, connection])
  await connection.closed
})

test('setOnRequest right after the dial sees what the peer sent first, and its end', async (t) => {
  const server = await netServer(t, (socket) => socket.end('greeting'))
  const connection = await dialConnection('tcp', server.address)
  const heard = []
  connection.setOnRequest(({ reader }) => void heard.push(reader.readString(reader.length)))
  await connection.closed
  t.is(heard.join(''), 'greeting')
})

test('iteration gives what comes until the end', async (t) => {
  const server = await netServer(t, (socket) => socket.end('a'.repeat(300_000)))
  const connection = await dialConnection('tcp', server.address)
  let length = 0
  for await (const bytes of connection) length += bytes.length
  t.is(length, 300_000)
  await connection.closed
})

test('whoever has dialed comes first, also when the server has finished sending in the meantime', async (t) => {
  // A server of its own process, which goes on while this one is busy.
  const child = start(`
    const server = net.createServer({ allowHalfOpen: true }, (socket) => {
      socket.end()
      socket.on('data', (bytes) => process.stdout.write(bytes))
    })
    server.listen(0, '127.0.0.1', () => console.log(server.address().port))
  `)
  t.teardown(() => void child.kill())
  const told = child.stdout.setEncoding('utf8')[Symbol.asyncIterator]()
  const address = `127.0.0.1:${Number((await told.next()).value)}`
  for (let round = 0; round < 5; round++) {
    const dial = dialConnection('tcp', address)
    busy()
    const connection = await dial
    t.true(connection.writable)
    connection.writer.writeString('request')
    t.true(connection.writer.flush())
    t.is((await told.next()).value, 'request')
    await connection.closed
  }
})

test('limits and timeouts are those of the dial', async (t) => {
  const { connection, reader, peer } = await dialed(t, { readTimeout: 20, maxReadBytes: 100 })
  await t.throwsAsync(reader.waitRead(1), { code: 'ERR_NETPOLL_READ_TIMEOUT' })
  t.throws(() => void reader.waitRead(101), { code: 'ERR_OUT_OF_RANGE' })
  t.true(connection.isActive())
  connection.setReadTimeout(0)
  peer.write('x')
  await reader.waitRead(1)

  const idle = await dialed(t, { idleTimeout: 20 })
  await idle.connection.closed
  t.throws(() => idle.connection.setNoDelay(true), { code: 'ERR_NETPOLL_IDLE_TIMEOUT' })

  const blocked = await dialed(t, { writeTimeout: 50, writeHighWaterMark: 1 })
  blocked.writer.writeBinary(Buffer.alloc(30_000_000))
  t.false(blocked.writer.flush())
  await t.throwsAsync(blocked.connection.flushed(), { code: 'ERR_NETPOLL_WRITE_TIMEOUT' })

  const { writer } = await dialed(t, { maxPendingBytes: 10 })
  t.throws(() => writer.writeString('more than that'), { code: 'ERR_NETPOLL_OUTPUT_LIMIT' })
})

// ---- ends

const ends = {
  'the peer ends it': [(peer) => peer.end(), 'ERR_NETPOLL_EOF'],
  'the peer resets it': [(peer) => peer.resetAndDestroy(), 'ECONNRESET'],
}

for (const [name, [end, code]] of Object.entries(ends)) {
  test(`a client that does nothing at all is closed when ${name}, callbacks included`, async (t) => {
    const { connection, peer } = await dialed(t)
    const events = []
    connection.addCloseCallback(() => events.push('close callback'))
    end(peer)
    await connection.closed
    t.deepEqual(events, ['close callback'])
    t.false(connection.isActive())
    await t.throwsAsync(connection.reader.waitRead(1), { code })
  })
}

test('a close callback that is added after the end runs all the same', async (t) => {
  const { connection, peer } = await dialed(t)
  peer.end()
  await connection.closed
  const told = deferred()
  connection.addCloseCallback(told.resolve)
  t.is(await told.promise, connection)
})

test('bytes that a client has not read keep it open after the FIN, until they are read', async (t) => {
  const { connection, reader, writer, peer } = await dialed(t)
  peer.end('last words')
  await until(() => reader.ended)
  await setImmediate()
  t.true(connection.writable, 'it can still be answered')
  t.is(reader.readString(4), 'last')
  writer.writeString('answer')
  t.true(writer.flush())
  t.is(reader.readString(6), ' words')
  await connection.closed
  t.deepEqual(await outcome(peer), { bytes: Buffer.from('answer'), code: '' })
})

test('bytes that a client has not read stay readable when the peer has reset it', async (t) => {
  const { connection, reader, peer } = await dialed(t)
  peer.write('last words')
  await until(() => reader.length === 10)
  peer.resetAndDestroy()
  await connection.closed
  t.is(reader.readString(10), 'last words')
})

test('a client that half-closes gets its whole answer', async (t) => {
  const answer = 'x'.repeat(1_000_000)
  const server = await netServer(t, (socket) => socket.on('end', () => socket.end(answer)).resume())
  const connection = await dialConnection('tcp', server.address)
  connection.writer.writeString('question')
  connection.writer.flush()
  connection.end()
  let heard = ''
  for await (const bytes of connection) heard += bytes
  t.is(heard, answer)
  await connection.closed
})

test('with allowHalfOpen a client goes on sending after the FIN of the server', async (t) => {
  const { connection, reader, writer, peer } = await dialed(t, { allowHalfOpen: true })
  peer.end()
  await until(() => reader.ended)
  await setImmediate()
  writer.writeString('still here')
  t.true(writer.flush())
  connection.end()
  t.is(String(await take(peer, 10)), 'still here')
  await connection.closed
})

test('dial and close, twice, and what the peer sees of it', async (t) => {
  const server = await netServer(t)
  for (let round = 0; round < 2; round++) {
    const connection = await dialConnection('tcp', server.address)
    connection.close()
    await connection.closed
    connection.close()
    t.throws(() => connection.reader.next(1), { code: 'ERR_NETPOLL_CONN_CLOSED' })
    await until(() => server.accepted.length > round)
    t.deepEqual(await outcome(server.accepted[round]), { bytes: Buffer.alloc(0), code: '' })
  }
})

test('a server that closes at once, in whatever way, leaves an ended connection or fails the dial', async (t) => {
  const ways = [(socket) => socket.end(), (socket) => socket.destroy(), (socket) => socket.resetAndDestroy()]
  let turn = 0
  const server = await netServer(t, (socket) => ways[turn++ % 3](socket))
  const dial = async () => {
    const connection = await dialConnection('tcp', server.address)
    await connection.closed
  }
  const results = await Promise.allSettled(Array.from({ length: DIALS }, dial))
  const codes = new Set(results.map(({ reason: error }) => error?.code))
  t.true(
    [...codes].every((code) => code === undefined || code === 'ECONNRESET'),
    [...codes].join(),
  )
})

// ---- dials that come to nothing

for (const network of ['tcp', 'unix']) {
  test(`${network}: a dial that nobody answers rejects with DIAL_TIMEOUT`, async (t) => {
    const { address } = await silent(t, network)
    const error = { code: 'ERR_NETPOLL_DIAL_TIMEOUT' }
    await t.throwsAsync(dialConnection(network, address, { timeout: 20 }), error)
  })

  test(`${network}: a signal that is aborted rejects with its reason, before and while it is dialed`, async (t) => {
    const { address } = await silent(t, network)
    const dial = (signal) => rejection(dialConnection(network, address, { signal }))
    t.is(await dial(AbortSignal.abort(reason)), reason)
    const [early, late] = [new AbortController(), new AbortController()]
    const first = dial(early.signal)
    early.abort(reason)
    t.is(await first, reason)
    const second = dial(late.signal)
    await setImmediate()
    late.abort(reason)
    t.is(await second, reason)
    t.is((await dial(AbortSignal.timeout(10))).name, 'TimeoutError')
  })
}

test.serial('the timeout and the signal hold while the name is resolved', async (t) => {
  const { lookup } = dns
  const answer = deferred()
  dns.lookup = () => answer.promise
  const server = await netServer(t)
  const address = `some.name:${server.port}`
  try {
    await t.throwsAsync(dialConnection('tcp', address, { timeout: 10 }), { code: 'ERR_NETPOLL_DIAL_TIMEOUT' })
    const controller = new AbortController()
    const dial = dialConnection('tcp', address, { signal: controller.signal, timeout: 60_000 })
    controller.abort(reason)
    t.is(await rejection(dial), reason)
    answer.resolve([{ address: '127.0.0.1', family: 4 }])
    const connection = await dialConnection('tcp', address, { timeout: 60_000 })
    connection.close()
    await connection.closed
  } finally {
    dns.lookup = lookup
  }
  await until(() => server.accepted.length > 0)
  t.is(server.accepted.length, 1, 'nobody was dialed for those that had given up')
})

test.serial('what resolving has used of the timeout is not there for connecting', async (t) => {
  const address = (await silent(t, 'tcp')).address.replace('127.0.0.1', 'some.name')
  const [{ lookup }, { now }] = [dns, performance]
  dns.lookup = () => {
    performance.now = () => now.call(performance) + 1e9 - 1
    return Promise.resolve([{ address: '127.0.0.1', family: 4 }])
  }
  try {
    await t.throwsAsync(dialConnection('tcp', address, { timeout: 1e9 }), {
      code: 'ERR_NETPOLL_DIAL_TIMEOUT',
    })
  } finally {
    dns.lookup = lookup
    performance.now = now
  }
})

test('a dial that is aborted when it has just succeeded leaves nothing behind, and no handler runs', async (t) => {
  const server = await netServer(t, (socket) => socket.write('hello'))
  const counts = { aborted: 0, connected: 0 }
  await Promise.all(
    Array.from({ length: DIALS }, async (_, dial) => {
      const controller = new AbortController()
      const options = {
        signal: controller.signal,
        onRequest: ({ reader }) => reader.skip(reader.length),
        onDisconnect: () => counts.connected++,
      }
      const promise = dialConnection('tcp', server.address, options)
      // Some wait for so many rounds of the event loop, which is about when the poll answers.
      for (let round = dial % 10; round > 0; round--) await setImmediate()
      controller.abort(reason)
      const connection = await promise.catch((error) => t.is(error, reason))
      if (connection === true) counts.aborted++
      else {
        connection.close()
        await connection.closed
      }
    }),
  )
  t.is(counts.aborted + counts.connected, DIALS, JSON.stringify(counts))
  t.true(counts.aborted >= DIALS / 10, JSON.stringify(counts))
  await until(() => server.accepted.every((socket) => socket.resume().readableEnded || socket.destroyed))
})

test('an abort that comes while DIALED waits in the ring closes the connection', async (t) => {
  const server = await netServer(t)
  const controller = new AbortController()
  const onDisconnect = () => t.fail('there was no connection for anybody')
  const dial = dialConnection('tcp', server.address, { signal: controller.signal, onDisconnect })
  busy()
  controller.abort(reason)
  t.is(await rejection(dial), reason)
  await until(() => server.accepted.length === 1)
  t.deepEqual(await outcome(server.accepted[0]), { bytes: Buffer.alloc(0), code: '' })
})

test('an abort after the dial has no effect', async (t) => {
  const controller = new AbortController()
  const { connection } = await dialed(t, { signal: controller.signal })
  controller.abort(reason)
  await setImmediate()
  t.true(connection.isActive())
  t.is(getEventListeners(controller.signal, 'abort').length, 0)
})

test(`${DIALS} dials with a timeout of 1 ms: each connects or is DIAL_TIMEOUT`, async (t) => {
  const server = serve(echo)
  t.teardown(server.stop)
  const dialer = new Dialer({ timeout: 1 })
  const dial = async () => {
    const connection = await dialer.dialConnection('tcp', `127.0.0.1:${server.port}`)
    connection.close()
    await connection.closed
  }
  const results = await Promise.allSettled(Array.from({ length: DIALS }, dial))
  const failed = results.filter(({ status }) => status === 'rejected')
  for (const { reason: error } of failed) t.is(error.code, 'ERR_NETPOLL_DIAL_TIMEOUT')
  t.is(results.length, DIALS)
})

/** Meanwhile the poll works, and JavaScript hears nothing of it. */
function busy() {
  for (const end = Date.now() + 50; Date.now() < end;);
}

function rejection(promise) {
  return promise.then(
    () => 'it has resolved',
    (error) => error,
  )
}
