// Handlers that are set while others run: the new one is the next that is called, and none is called twice.

import test from 'ava'
import { connect, deferred, outcome, pair, send, serve, settled, take, until } from './fixtures/peer.mjs'

test('a handler that sets another one leaves it the bytes that it has not consumed', async (t) => {
  const seen = []
  const { port, stop } = serve((connection) => {
    seen.push(connection.reader.readString(1))
    connection.setOnRequest(({ reader, writer }) => {
      seen.push(reader.readString(reader.length))
      writer.writeString('ok')
      writer.flush()
    })
  })
  t.teardown(stop)
  const peer = await connect(port)
  await send(peer, 'abc')
  t.is(String(await take(peer, 2)), 'ok')
  await send(peer, 'def')
  t.is(String(await take(peer, 2)), 'ok')
  t.deepEqual(seen, ['a', 'bc', 'def'])
})

test('a handler may hand its bytes on through several others that consume nothing', async (t) => {
  const seen = []
  const last = ({ reader }) => void seen.push(reader.readString(reader.length))
  const { port, stop } = serve((connection) => {
    connection.setOnRequest((again) => again.setOnRequest((third) => third.setOnRequest(last)))
  })
  t.teardown(stop)
  const peer = await connect(port)
  await send(peer, 'bytes')
  await until(() => seen.length === 1)
  t.deepEqual(seen, ['bytes'])
})

for (const kind of ['synchronous', 'asynchronous']) {
  test(`a ${kind} handler that sets itself and consumes nothing does not spin`, async (t) => {
    let calls = 0
    const look = (connection) => {
      calls++
      if (calls < 1000) connection.setOnRequest(look)
      return kind === 'synchronous' ? undefined : settled()
    }
    const { port, stop } = serve(look)
    t.teardown(stop)
    const peer = await connect(port)
    await send(peer, 'a')
    await until(() => calls >= 1)
    await settled()
    await settled()
    t.is(calls, 1)
    await send(peer, 'b')
    await until(() => calls >= 2)
    await settled()
    t.is(calls, 2)
  })
}

for (const kind of ['synchronous', 'asynchronous']) {
  test(`${kind} handlers that set another one each time and consume nothing do not spin`, async (t) => {
    let calls = 0
    const seen = []
    const look = (connection) => {
      calls++
      const { reader } = connection
      if (reader.length >= 4) seen.push(reader.readString(4))
      // A spin would never let the test fail.
      else if (calls < 1000) connection.setOnRequest((again) => look(again))
      return kind === 'synchronous' ? undefined : Promise.resolve()
    }
    const { port, stop } = serve(look)
    t.teardown(stop)
    const peer = await connect(port)
    const counts = []
    for (const byte of 'abc') {
      calls = 0
      await send(peer, byte)
      await until(() => calls >= 17)
      await settled()
      counts.push(calls)
    }
    t.deepEqual(counts, [17, 17, 17])
    await send(peer, 'defgh')
    await until(() => seen.length === 2)
    t.deepEqual(seen, ['abcd', 'efgh'])
  })
}

test('while a request is pending, the handler set from outside waits for it and gets what is left', async (t) => {
  const { connection, peer } = await pair(t)
  const [entered, leave] = [deferred(), deferred()]
  const seen = []
  connection.setOnRequest(async ({ reader }) => {
    seen.push(reader.readString(1))
    entered.resolve()
    await leave.promise
    seen.push('end')
  })
  await send(peer, 'xyz')
  await entered.promise
  connection.setOnRequest(({ reader }) => void seen.push(reader.readString(reader.length)))
  await settled()
  t.deepEqual(seen, ['x'])
  leave.resolve()
  await until(() => seen.length === 3)
  t.deepEqual(seen, ['x', 'end', 'yz'])
})

test('setOnRequest from outside calls the same handler again for bytes that it has left', async (t) => {
  let enough = false
  const seen = []
  const handler = ({ reader }) => void (enough ? seen.push(reader.readString(reader.length)) : seen.push(''))
  const { connection, peer } = await pair(t)
  connection.setOnRequest(handler)
  await send(peer, 'later')
  await until(() => seen.length === 1)
  enough = true
  connection.setOnRequest(handler)
  await until(() => seen.length === 2)
  t.deepEqual(seen, ['', 'later'])
})

test('setOnRequest in onConnect, which waits, concerns the bytes that came meanwhile', async (t) => {
  const seen = []
  const waiting = deferred()
  const { port, stop } = serve(() => t.fail(), {
    async onConnect(connection) {
      connection.setOnRequest(({ reader }) => void seen.push(reader.readString(reader.length)))
      await waiting.promise
    },
  })
  t.teardown(stop)
  const peer = await connect(port)
  await send(peer, 'early')
  await settled()
  t.deepEqual(seen, [])
  waiting.resolve()
  await until(() => seen.length === 1)
  t.deepEqual(seen, ['early'])
})

test('setOnConnect after onConnect has been called changes nothing: it is called once', async (t) => {
  const calls = []
  const { port, stop } = serve(
    (connection) => {
      connection.setOnConnect(() => void calls.push('second'))
      calls.push(connection.reader.readString(connection.reader.length))
    },
    {
      onConnect(connection) {
        calls.push('first')
        connection.setOnConnect(() => void calls.push('second'))
      },
    },
  )
  t.teardown(stop)
  const peer = await connect(port)
  await send(peer, 'a')
  await until(() => calls.length === 2)
  await send(peer, 'b')
  await until(() => calls.length === 3)
  peer.end()
  await outcome(peer)
  t.deepEqual(calls, ['first', 'a', 'b'])
})

test('onDisconnect can be replaced by a handler that outlives its connection', async (t) => {
  const calls = []
  const { port, stop } = serve(
    async (connection) => {
      await until(() => !connection.isActive() && connection.loop.connections === 0)
      connection.setOnDisconnect(() => void calls.push('new'))
    },
    { onDisconnect: () => void calls.push('old') },
  )
  t.teardown(stop)
  const peer = await connect(port)
  await send(peer, 'x')
  peer.resetAndDestroy()
  await until(() => calls.length === 1)
  await settled()
  t.deepEqual(calls, ['new'])
})

test('onDisconnect that sets another one is not followed by that', async (t) => {
  const calls = []
  const { connection, peer } = await pair(t)
  connection.setOnDisconnect(() => {
    calls.push('first')
    connection.setOnDisconnect(() => void calls.push('second'))
  })
  peer.end()
  await connection.closed
  connection.setOnDisconnect(() => void calls.push('third'))
  await settled()
  t.deepEqual(calls, ['first'])
})

test('a close callback that is added after the end by the peer is called once all the same', async (t) => {
  for (const end of ['end', 'resetAndDestroy']) {
    const { connection, peer } = await pair(t)
    peer[end]()
    await connection.closed
    const calls = []
    connection.addCloseCallback((closed) => void calls.push(closed === connection))
    t.deepEqual(calls, [], 'not before addCloseCallback() has returned')
    await new Promise((resolve) => process.nextTick(resolve))
    t.deepEqual(calls, [true])
    await settled()
    t.is(calls.length, 1)
    peer.destroy()
  }
})

test('close callbacks that are added in onDisconnect and in close callbacks are called, each once', async (t) => {
  const calls = []
  const { connection, peer } = await pair(t)
  connection.addCloseCallback(() => void calls.push('first'))
  connection.setOnDisconnect(() => {
    calls.push('disconnect')
    connection.addCloseCallback(() => {
      calls.push('in onDisconnect')
      connection.addCloseCallback(() => void calls.push('in a callback'))
    })
  })
  peer.end()
  await connection.closed
  await settled()
  t.deepEqual(calls.toSorted(), ['disconnect', 'first', 'in a callback', 'in onDisconnect'])
  t.is(calls[0], 'disconnect')
})

test('what a late close callback throws goes to onError', async (t) => {
  const errors = []
  const { connection, peer } = await pair(t, { onError: (error) => void errors.push(error.message) })
  peer.end()
  await connection.closed
  connection.addCloseCallback(() => {
    throw new Error('late')
  })
  await new Promise((resolve) => process.nextTick(resolve))
  t.deepEqual(errors, ['late'])
})

test('after our own end a close callback is refused with CONN_CLOSED, and those added before are called', async (t) => {
  for (const end of ['close', 'reset']) {
    const { connection } = await pair(t)
    let calls = 0
    connection.addCloseCallback(() => void calls++)
    connection[end]()
    t.throws(() => connection.addCloseCallback(() => t.fail()), { code: 'ERR_NETPOLL_CONN_CLOSED' })
    await connection.closed
    t.throws(() => connection.addCloseCallback(() => t.fail()), { code: 'ERR_NETPOLL_CONN_CLOSED' })
    t.is(calls, 1)
  }
})
