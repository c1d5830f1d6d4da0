// What netpoll_unix_test.go of cloudwego/netpoll asserts of an event loop and its hooks, under the names that it has
// there. docs/parity.md says which of its tests are held by others of ours.

import test from 'ava'
import { setImmediate } from 'node:timers/promises'
import { dial } from './fixtures/dialed.mjs'
import { deferred, serve, settled, until } from './fixtures/peer.mjs'

const consume = ({ reader }) => reader.skip(reader.length)

async function ask({ reader, writer }, question, size) {
  writer.writeString(question)
  writer.flush()
  await reader.waitRead(size)
  const answer = reader.readString(size)
  reader.release()
  return answer
}

/** The code with which a wait of a Reader fails, or ''. */
const failure = (wait) =>
  wait.then(
    () => '',
    (error) => error.code,
  )

test('TestOnConnect: onConnect may answer 1,024 pings by itself, and no request comes meanwhile', async (t) => {
  let requests = 0
  const ended = deferred()
  const { port, stop } = serve(() => void requests++, {
    async onConnect({ reader, writer }) {
      for (let pings = 0; ; pings++) {
        const code = await failure(reader.waitRead(4))
        if (code !== '') return void ended.resolve([pings, code])
        t.is(reader.readString(4), 'ping')
        reader.release()
        writer.writeString('pong')
        writer.flush()
      }
    },
  })
  t.teardown(stop)
  const client = await dial(t, port)
  for (let i = 0; i < 1024; i++) t.is(await ask(client, 'ping', 4), 'pong')
  client.close()
  t.deepEqual(await ended.promise, [1024, 'ERR_NETPOLL_EOF'])
  t.is(requests, 0)
})

test('TestOnConnectWrite: the server speaks first, from onConnect', async (t) => {
  const { port, stop } = serve(consume, {
    onConnect({ writer }) {
      writer.writeString('hello')
      writer.flush()
    },
  })
  t.teardown(stop)
  const { reader } = await dial(t, port)
  await reader.waitRead(5)
  t.is(reader.readString(5), 'hello')
})

test('TestOnDisconnect: 100 requests that wait learn of the end, and then every hook is called once', async (t) => {
  const connections = 100
  const count = { asked: 0, told: 0, disconnected: 0, closed: 0 }
  const { port, loop, stop } = serve(
    async (connection, context) => {
      const { reader } = connection
      t.is(reader.readString(4), 'ping')
      count.asked++
      // In netpoll onDisconnect runs meanwhile, and cancels the context. Here it is the wait that tells.
      t.is(await failure(reader.waitRead(1)), 'ERR_NETPOLL_EOF')
      t.false(connection.isActive())
      t.false(context.disconnected)
      count.told++
    },
    {
      onConnect(connection) {
        connection.addCloseCallback(() => count.closed++)
        return { disconnected: false }
      },
      onDisconnect(connection, context) {
        t.false(context.disconnected)
        context.disconnected = true
        count.disconnected++
      },
    },
  )
  t.teardown(stop)
  for (let i = 0; i < connections; i++) {
    const client = await dial(t, port)
    client.writer.writeString('ping')
    client.writer.flush()
    client.close()
  }
  await until(() => count.closed >= connections)
  await settled()
  t.deepEqual(count, {
    asked: connections,
    told: connections,
    disconnected: connections,
    closed: connections,
  })
  t.is(loop.connections, 0)
})

test('TestOnDisconnectWhenOnConnect: a peer that ends during onConnect is told of after it, with its context', async (t) => {
  const connections = 10
  const calls = []
  const accepted = []
  const go = deferred()
  const { port, stop } = serve(consume, {
    onPrepare(connection) {
      accepted.push(connection)
      return { steps: ['prepare'] }
    },
    async onConnect(connection, { steps }) {
      await go.promise
      return { steps: [...steps, 'connect'] }
    },
    onDisconnect: (connection, { steps }) => void calls.push([...steps, 'disconnect']),
  })
  t.teardown(stop)
  for (let i = 0; i < connections; i++) (await dial(t, port)).close()
  await until(() => accepted.length === connections && accepted.every((one) => !one.isActive()))
  t.is(calls.length, 0)
  go.resolve()
  await until(() => calls.length >= connections)
  await settled()
  t.deepEqual(
    calls,
    accepted.map(() => ['prepare', 'connect', 'disconnect']),
  )
})

test('TestGracefulExit: a loop whose connections do nothing stops', async (t) => {
  const { port, loop, served } = serve(consume)
  const client = await dial(t, port)
  await until(() => loop.connections === 1)
  await loop.shutdown()
  await served
  t.is(await failure(client.reader.waitRead(1)), 'ERR_NETPOLL_EOF')
})

test('TestGracefulExit: a loop whose handlers hang rejects past the timeout, and has cut them', async (t) => {
  const connections = 10
  const go = deferred()
  let requests = 0
  const { port, loop, served } = serve(async ({ reader }) => {
    requests++
    reader.skip(reader.length)
    await go.promise
  })
  const clients = []
  for (let i = 0; i < connections; i++) {
    const client = await dial(t, port)
    client.writer.writeBinary(Buffer.alloc(16))
    client.writer.flush()
    clients.push(client)
  }
  await until(() => requests === connections)
  await t.throwsAsync(loop.shutdown({ timeout: 100 }), { code: 'ERR_NETPOLL_SHUTDOWN_TIMEOUT' })
  // Other than netpoll, which leaves them open, and answers nil when it is asked again.
  await Promise.all(clients.map((client) => client.closed))
  t.is(loop.connections, 0)
  await t.throwsAsync(loop.shutdown(), { code: 'ERR_NETPOLL_SHUTDOWN_TIMEOUT' })
  await served
  go.resolve()
})

test('TestGracefulExit: connections that are idle, or have half a message, do not hold a loop up', async (t) => {
  const connections = 10
  const size = 16
  let whole = 0
  const { port, loop, served } = serve(({ reader }) => {
    if (reader.length < size) return
    reader.skip(size)
    whole++
  })
  const clients = []
  for (let i = 0; i < connections; i++) {
    const client = await dial(t, port)
    if (i % 2 === 0) {
      client.writer.writeBinary(Buffer.alloc(i % 4 === 0 ? size : size / 2))
      client.writer.flush()
    }
    clients.push(client)
  }
  await until(() => loop.connections === connections && whole === 3)
  await t.notThrowsAsync(loop.shutdown({ timeout: 60_000 }))
  await served
  await Promise.all(clients.map((client) => client.closed))
})

for (const [name, hooks] of Object.entries({
  TestCloseCallbackWhenOnRequest: (add) => [
    (connection) => {
      consume(connection)
      add(connection)
    },
    {},
  ],
  TestCloseCallbackWhenOnConnect: (add) => [undefined, { onConnect: (connection) => add(connection) }],
})) {
  test(`${name}: a close callback that is added in a handler is called when the peer closes`, async (t) => {
    let added = 0
    let closed = 0
    const { port, stop } = serve(
      ...hooks((connection) => {
        added++
        connection.addCloseCallback(() => closed++)
      }),
    )
    t.teardown(stop)
    const client = await dial(t, port)
    if (name.endsWith('OnRequest')) {
      client.writer.writeString('hello')
      client.writer.flush()
    }
    await until(() => added === 1)
    t.is(closed, 0)
    client.close()
    await until(() => closed === 1)
    await settled()
    t.is(closed, 1)
  })
}

test('TestCloseConnWhenOnConnect: a client of a server that closes in onConnect reads the end', async (t) => {
  const connections = 10
  let connects = 0
  const { port, loop, stop } = serve(undefined, {
    onConnect(connection) {
      connects++
      connection.close()
    },
  })
  t.teardown(stop)
  await Promise.all(
    Array.from({ length: connections }, async () => {
      const client = await dial(t, port)
      t.is(await failure(client.reader.waitRead(1)), 'ERR_NETPOLL_EOF')
      client.close()
      await client.closed
    }),
  )
  t.is(connects, connections)
  await until(() => loop.connections === 0)
})

test('TestServerReadAndClose: what a client writes after the server has closed is dropped, and flush() says so', async (t) => {
  const { port, stop } = serve((connection) => {
    t.is(connection.reader.readString(5), 'hello')
    connection.close()
  })
  t.teardown(stop)
  const client = await dial(t, port)
  client.writer.writeString('hello')
  client.writer.flush()
  await until(() => !client.isActive())
  await client.closed
  // netpoll fails the write; here nothing throws that a peer can bring about.
  t.is(client.writer.writeString('hello'), 5)
  t.false(client.writer.flush())
  await t.throwsAsync(client.flushed(), { code: 'ERR_NETPOLL_EOF' })
  client.close()
  t.throws(() => client.writer.writeString('hello'), { code: 'ERR_NETPOLL_CONN_CLOSED' })
})

test('TestServerPanicAndClose: a handler that throws closes its connection, and the client sees it', async (t) => {
  const errors = []
  const { port, loop, stop } = serve(
    ({ reader }) => {
      throw new Error(reader.readString(5))
    },
    { onError: (error) => void errors.push(error.message) },
  )
  t.teardown(stop)
  const client = await dial(t, port)
  client.writer.writeString('hello')
  client.writer.flush()
  await until(() => !client.isActive())
  await client.closed
  await until(() => loop.connections === 0)
  t.deepEqual(errors, ['hello'])
})

test('TestClientWriteAndClose: every byte of 10 clients that write and close at once is received', async (t) => {
  const connections = 10
  const size = 5000
  let received = 0
  const { port, stop } = serve(({ reader }) => {
    received += reader.next(reader.length).length
  })
  t.teardown(stop)
  await Promise.all(
    Array.from({ length: connections }, async () => {
      const client = await dial(t, port)
      client.writer.writeBinary(Buffer.alloc(size))
      client.writer.flush()
      client.close()
    }),
  )
  await until(() => received >= connections * size)
  await setImmediate()
  await settled()
  t.is(received, connections * size)
})
