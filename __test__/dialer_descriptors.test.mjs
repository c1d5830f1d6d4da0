// What is left when dials are over: no descriptor, no block, no byte at the wrong place. One after the other, for
// descriptors are those of the process.

import { setMaxListeners } from 'node:events'
import test from 'ava'
import { createEventLoop, createListener, Dialer, dialConnection, stats } from '../index.js'
import { leaksNothing, serve, until } from './fixtures/peer.mjs'

const echo = ({ reader, writer }) => {
  writer.append(reader)
  writer.flush()
}

async function asks(connection, text) {
  connection.writer.writeString(text)
  connection.writer.flush()
  await connection.reader.waitRead(text.length)
  return connection.reader.readString(text.length)
}

/** How often each outcome came: 'connected', or the code of an error. */
async function counts(dials) {
  const results = await Promise.allSettled(dials)
  const found = {}
  for (const { reason } of results) {
    const outcome = reason === undefined ? 'connected' : (reason.code ?? reason.message)
    found[outcome] = (found[outcome] ?? 0) + 1
  }
  return found
}

async function dialAndClose(network, address, options) {
  const connection = await dialConnection(network, address, options)
  connection.close()
  await connection.closed
}

const endings = {
  'close()': (connection) => connection.close(),
  'reset()': (connection) => connection.reset(),
  'end()': (connection) => connection.end(),
  'the server': (connection) => {
    connection.writer.writeString('close')
    connection.writer.flush()
  },
}

for (const [name, end] of Object.entries(endings)) {
  test.serial(`20 connections that end by ${name} leave nothing`, async (t) => {
    const server = serve((connection) => {
      const text = connection.reader.readString(connection.reader.length)
      if (text === 'close') return connection.close()
      connection.writer.writeString(text)
      connection.writer.flush()
    })
    t.teardown(server.stop)
    await leaksNothing(async () => {
      for (let dial = 0; dial < 20; dial++) {
        const connection = await dialConnection('tcp', `127.0.0.1:${server.port}`)
        t.is(await asks(connection, 'hello'), 'hello')
        end(connection)
        await connection.closed
      }
      await until(() => stats().connections === 0)
    })
  })
}

test.serial('100 dials that nobody answers within 1 ms leave nothing', async (t) => {
  const path = `@netpoll-descriptors-${process.pid}`
  const unix = createListener('unix', path, { backlog: 1 })
  const tcp = createListener('tcp', '127.0.0.1:0', { backlog: 1 })
  const dialer = new Dialer({ timeout: 1 })
  const dials = async (network, address) => {
    const guests = []
    const dial = async () => void guests.push(await dialer.dialConnection(network, address))
    const found = await counts(Array.from({ length: 100 }, dial))
    for (const guest of guests) guest.reset()
    await Promise.all(guests.map((guest) => guest.closed))
    const { connected = 0, ERR_NETPOLL_DIAL_TIMEOUT: late } = found
    t.is(connected + late, 100, JSON.stringify(found))
    t.true(late > 0)
  }
  await leaksNothing(async () => {
    await dials('tcp', `127.0.0.1:${tcp.address().port}`)
    await dials('unix', path)
  })
  tcp.close()
  unix.close()
  t.is(stats().connections, 0)
})

test.serial('100 dials that are refused, and 200 that are aborted, leave nothing', async (t) => {
  const listener = createListener('tcp', '127.0.0.1:0')
  const address = `127.0.0.1:${listener.address().port}`
  listener.close()
  const server = serve(echo)
  t.teardown(server.stop)
  const silent = createListener('tcp', '127.0.0.1:0', { backlog: 1 })
  t.teardown(() => silent.close())
  await leaksNothing(async () => {
    const refused = Array.from({ length: 100 }, () => dialAndClose('tcp', address))
    t.deepEqual(await counts(refused), { ECONNREFUSED: 100 })
    const controller = new AbortController()
    const { signal } = controller
    setMaxListeners(0, signal)
    const aborted = [server.port, silent.address().port].flatMap((port) =>
      Array.from({ length: 100 }, () => dialConnection('tcp', `127.0.0.1:${port}`, { signal })),
    )
    controller.abort(new Error('aborted'))
    t.deepEqual(await counts(aborted), { aborted: 200 })
    await until(() => stats().connections === 0)
  })
})

test.serial(
  '20 x 50 dials to two servers hear their own answers, while descriptors are used again',
  async (t) => {
    const servers = ['one', 'two'].map((name) =>
      serve((connection) => {
        const { reader, writer } = connection
        writer.writeString(`${name} ${reader.readString(reader.length)}`)
        writer.flush()
        connection.close()
      }),
    )
    for (const server of servers) t.teardown(server.stop)
    const dial = async (round, number) => {
      const which = number % 2
      const connection = await dialConnection('tcp', `127.0.0.1:${servers[which].port}`)
      const text = `${round} ${number}`
      connection.writer.writeString(text)
      connection.writer.flush()
      let heard = ''
      for await (const bytes of connection) heard += bytes
      t.is(heard, `${['one', 'two'][which]} ${text}`)
      if (number % 3 === 0) connection.close()
      await connection.closed
    }
    for (let round = 0; round < 20; round++) {
      await Promise.all(Array.from({ length: 50 }, (_, number) => dial(round, number)))
    }
    await until(() => stats().connections === 0)
  },
)

test.serial('1,000 dials at once connect, each to a connection of its own', async (t) => {
  const server = serve(echo)
  t.teardown(server.stop)
  await leaksNothing(async () => {
    const dials = Array.from({ length: 1000 }, () => dialConnection('tcp', `127.0.0.1:${server.port}`))
    const connections = await Promise.all(dials)
    t.is(new Set(connections.map((connection) => connection.localPort)).size, 1000)
    const answers = await Promise.all(
      connections.map((connection) => asks(connection, `id ${connection.id}`)),
    )
    t.deepEqual(
      answers,
      connections.map((connection) => `id ${connection.id}`),
    )
    for (const connection of connections) connection.close()
    await Promise.all(connections.map((connection) => connection.closed))
    await until(() => stats().connections === 0)
  })
})

test.serial('1,000 dials to a unix socket with a short backlog all come through', async (t) => {
  const address = `@netpoll-short-${process.pid}`
  const loop = createEventLoop(echo)
  const served = loop.serve(createListener('unix', address, { backlog: 4 }))
  const dials = Array.from({ length: 1000 }, () => dialAndClose('unix', address))
  t.deepEqual(await counts(dials), { connected: 1000 })
  await loop.shutdown()
  await served
})
