// Semantics 4: a handler that fails ends its own connection, and nothing else unless nobody is told.

import { AsyncLocalStorage } from 'node:async_hooks'
import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import test from 'ava'
import { batchOfFive, inOneBatch } from './fixtures/batch.mjs'
import {
  connect,
  deferred,
  leaksNothing,
  outcome,
  send,
  serve,
  settled,
  take,
  until,
} from './fixtures/peer.mjs'

const run = promisify(execFile)
const fixture = new URL('fixtures/uncaught.mjs', import.meta.url).pathname

const batchFixture = new URL('fixtures/uncaught_batch.mjs', import.meta.url).pathname

const FAILURES = {
  throws: (error) => {
    throw error
  },
  rejects: async (error) => {
    throw error
  },
  'rejects later': async (error) => {
    await settled()
    throw error
  },
}

for (const [kind, fail] of Object.entries(FAILURES)) {
  test(`a handler that ${kind} closes its connection and no other, and onError is told once`, async (t) => {
    const error = new Error('on purpose')
    const told = []
    const { port, loop, stop } = serve(
      (connection) => {
        const text = connection.reader.readString(connection.reader.length)
        if (text === '!') return fail(error)
        connection.writer.writeString(text)
        connection.writer.flush()
      },
      { onError: (...both) => void told.push(both) },
    )
    t.teardown(stop)
    const good = await connect(port)
    const bad = await connect(port)
    await send(good, 'before')
    t.is(String(await take(good, 6)), 'before')
    await send(bad, '!')
    t.is((await outcome(bad)).bytes.length, 0)
    await until(() => loop.connections === 1)
    await send(good, 'after')
    t.is(String(await take(good, 5)), 'after')
    t.is(told.length, 1)
    t.is(told[0][0], error)
    t.false(told[0][1].isActive())
    good.destroy()
    bad.destroy()
  })

  test(`what a handler had flushed before it ${kind} still goes out`, async (t) => {
    const { port, stop } = serve(
      ({ reader, writer }) => {
        reader.skip(reader.length)
        writer.writeString('flushed')
        writer.flush()
        writer.writeString('unflushed')
        return fail(new Error('on purpose'))
      },
      { onError: () => undefined },
    )
    t.teardown(stop)
    const socket = await connect(port)
    await send(socket, 'x')
    t.is(String((await outcome(socket)).bytes), 'flushed')
    socket.destroy()
  })

  test(`non-Errors reach onError as they are when a handler ${kind}`, async (t) => {
    const told = []
    const { port, stop } = serve(({ reader }) => fail(values[reader.readByte()]), {
      onError: (error) => void told.push(error),
    })
    t.teardown(stop)
    const values = ['text', 0, null, undefined, { plain: true }]
    for (let i = 0; i < values.length; i++) {
      const socket = await connect(port)
      socket.end(Buffer.of(i))
      await until(() => told.length === i + 1)
    }
    t.deepEqual(told, values)
  })
}

const HOOKS = ['onPrepare', 'onConnect']
for (const hook of HOOKS) {
  for (const [kind, fail] of Object.entries(FAILURES)) {
    if (hook === 'onPrepare' && kind !== 'throws') continue
    test(`${hook} that ${kind} is told to onError once, and no request follows`, async (t) => {
      const told = []
      const closed = []
      const { port, stop } = serve(() => t.fail('a request'), {
        onPrepare: (connection) => connection.addCloseCallback(() => closed.push('closed')),
        onError: (error) => void told.push(error),
        [hook](connection) {
          if (hook === 'onPrepare') connection.addCloseCallback(() => closed.push('closed'))
          return fail(hook)
        },
      })
      t.teardown(stop)
      const socket = await connect(port)
      socket.write('x')
      await outcome(socket)
      await until(() => closed.length === 1)
      await settled()
      t.deepEqual(told, [hook])
      socket.destroy()
    })
  }
}

test('onDisconnect and close callbacks that throw are told to onError, and the others still run', async (t) => {
  const calls = []
  const { port, stop } = serve(() => undefined, {
    onPrepare(connection) {
      for (const name of ['first', 'second', 'third']) {
        connection.addCloseCallback(() => {
          calls.push(name)
          throw new Error(name)
        })
      }
    },
    onDisconnect() {
      calls.push('disconnect')
      throw new Error('disconnect')
    },
    onError: (error) => void calls.push(`error ${error.message}`),
  })
  t.teardown(stop)
  const socket = await connect(port)
  socket.end()
  await until(() => calls.length === 8)
  const order = ['disconnect', 'third', 'second', 'first']
  t.deepEqual(
    calls,
    order.flatMap((name) => [name, `error ${name}`]),
  )
})

test.serial('a throw in handler 2 of a batch of 5: the other four notice nothing', async (t) => {
  const told = []
  const { order, received } = await inOneBatch(() => {
    told.length = 0
    return batchOfFive(
      ({ writer }, nth) => {
        if (nth === 2) throw new Error('second')
        writer.writeByte(1)
        writer.flush()
      },
      { onError: (error) => void told.push(error.message) },
    )
  })
  t.is(order.length, 5)
  t.deepEqual(told, ['second'])
  t.deepEqual(
    order.map((socket) => received[socket]),
    [1, 0, 1, 1, 1],
  )
})

test.serial(
  'without onError it is thrown after the batch, and the other four notice nothing either',
  async (t) => {
    const { stdout } = await run(process.execPath, [batchFixture])
    const { events, answered } = JSON.parse(stdout)
    t.deepEqual(events, ['handled', 'handled', 'handled', 'handled', 'handled', 'uncaught second'])
    t.is(answered, 4)
  },
)

test.serial('a context entered in one handler does not reach the next connection of the batch', async (t) => {
  const storage = new AsyncLocalStorage()
  let seen
  await inOneBatch(() => {
    seen = []
    return batchOfFive(({ writer, id }) => {
      seen.push(storage.getStore())
      storage.enterWith(id)
      writer.writeByte(1)
      writer.flush()
    })
  })
  t.deepEqual(seen, [undefined, undefined, undefined, undefined, undefined])
})

test('a context holds across the awaits of a handler, also of the library', async (t) => {
  const storage = new AsyncLocalStorage()
  const seen = []
  const { port, stop } = serve(async (connection) => {
    const { reader, writer } = connection
    const who = reader.readByte()
    storage.enterWith(who)
    await reader.waitRead(1)
    const afterWait = storage.getStore()
    writer.writeByte(reader.readByte())
    writer.flush()
    await connection.flushed()
    seen.push([who, afterWait, storage.getStore()])
  })
  t.teardown(stop)
  const sockets = await Promise.all(Array.from({ length: 5 }, () => connect(port)))
  for (const [i, socket] of sockets.entries()) await send(socket, Buffer.of(i))
  await settled()
  for (const socket of sockets.toReversed()) await send(socket, 'x')
  await until(() => seen.length === 5)
  t.deepEqual(
    seen.toSorted(([a], [b]) => a - b),
    [0, 1, 2, 3, 4].map((i) => [i, i, i]),
  )
  for (const socket of sockets) socket.destroy()
})

const REPORTED = {
  throw: 'uncaughtException: on purpose',
  reject: 'unhandledRejection: on purpose',
  'throw no Error': 'uncaughtException: just text',
  'reject later': 'unhandledRejection: on purpose',
  'onError throws': 'uncaughtException: told of first',
  'onDisconnect throws': 'uncaughtException: on purpose',
  'onPrepare throws': 'uncaughtException: on purpose',
  'onConnect rejects': 'unhandledRejection: on purpose',
  'a close callback throws': 'uncaughtException: on purpose',
  'an end code while the connection is active': 'uncaughtException: ERR_NETPOLL_EOF',
  'another error after the end': 'unhandledRejection: on purpose',
}

for (const [name, line] of Object.entries(REPORTED)) {
  test(`without somebody to tell, the process is told (${name})`, async (t) => {
    const { stdout } = await run(process.execPath, [fixture, name, 'listen'])
    t.is(stdout, `${line}\ndone\n`)
  })
}

for (const name of ['throw', 'reject', 'onError throws']) {
  test(`and ends, if it does not listen (${name})`, async (t) => {
    const { code, stderr } = await t.throwsAsync(run(process.execPath, [fixture, name]))
    t.is(code, 1)
    t.regex(stderr, /on purpose|told of first/)
  })
}

for (const name of [
  'EOF of a wait',
  'RST during a wait',
  'RST during flushed()',
  'EPIPE of a user',
  'read timeout',
  'write timeout',
  'idle timeout',
  'input limit',
  'output limit',
  'own close() during a wait',
  'writing after own close()',
]) {
  test(`a handler that fails with the end of its connection ends no process (${name})`, async (t) => {
    const { stdout } = await run(process.execPath, [fixture, name])
    t.is(stdout, 'done\n')
  })
}

test('with onError the end of a connection is told there too', async (t) => {
  const told = deferred()
  const { port, stop } = serve(({ reader }) => reader.waitRead(100), { onError: told.resolve })
  t.teardown(stop)
  const socket = await connect(port)
  await send(socket, 'x')
  await settled()
  socket.resetAndDestroy()
  t.is((await told.promise).code, 'ECONNRESET')
})

test.serial('peers that reset in the midst of a request leave nothing behind', async (t) => {
  const { port, loop, stop } = serve(async ({ reader }) => {
    await reader.waitRead(100_000)
    t.fail('it was never sent')
  })
  t.teardown(stop)
  await leaksNothing(async () => {
    const sockets = await Promise.all(Array.from({ length: 50 }, () => connect(port)))
    await Promise.all(sockets.map((socket, i) => send(socket, Buffer.alloc(1 + i * 1000))))
    await until(() => loop.connections === 50)
    await settled()
    for (const socket of sockets) socket.resetAndDestroy()
    await until(() => loop.connections === 0)
  })
  t.pass()
})

test.serial('peers that reset in the midst of a flush leave nothing behind', async (t) => {
  const flushing = new Set()
  const { port, loop, stop } = serve(async (connection) => {
    const { reader, writer } = connection
    for (const bytes = reader.next(reader.length); ; writer.writeBinary(bytes)) {
      if (writer.flush()) continue
      flushing.add(connection)
      await connection.flushed()
    }
  })
  t.teardown(stop)
  await leaksNothing(async () => {
    flushing.clear()
    const sockets = await Promise.all(Array.from({ length: 10 }, () => connect(port)))
    await Promise.all(sockets.map((socket) => send(socket, Buffer.alloc(50_000))))
    await until(() => flushing.size === 10)
    for (const socket of sockets) socket.resetAndDestroy()
    await until(() => loop.connections === 0)
  })
  t.pass()
})

test.serial('peers that reset right after the connect leave nothing behind', async (t) => {
  let closed = 0
  const { port, loop, stop } = serve(({ reader }) => reader.skip(reader.length), {
    onDisconnect: () => void closed++,
  })
  t.teardown(stop)
  await leaksNothing(async () => {
    for (let i = 0; i < 100; i++) {
      const socket = await connect(port)
      if (i % 2) socket.write('x')
      socket.resetAndDestroy()
    }
    await settled()
    await until(() => loop.connections === 0)
  })
  t.true(closed > 0)
})
