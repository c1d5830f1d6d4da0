// What net_dialer_test.go, net_listener_test.go and net_polldesc_test.go of cloudwego/netpoll assert, under the names
// that they have there.

import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import net from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test from 'ava'
import { createEventLoop, createListener, dialConnection, Dialer } from '../index.js'
import { dial } from './fixtures/dialed.mjs'
import { descriptors, leaksNothing, serve, settled, until } from './fixtures/peer.mjs'

const folder = mkdtempSync(join(tmpdir(), 'netpoll-dialer-'))
test.after.always(() => rmSync(folder, { recursive: true }))

const echo = ({ reader, writer }) => {
  writer.append(reader)
  writer.flush()
}

/** Asks once, and closes when the answer of `size` bytes is here. */
async function talk(client, question, size) {
  client.writer.writeString(question)
  client.writer.flush()
  await client.reader.waitRead(size)
  const answer = client.reader.readString(size)
  client.close()
  await client.closed
  return answer
}

test('TestDialerTCP: a dial fails without a listener, and then has the addresses of both ends', async (t) => {
  const listener = createListener('tcp', '127.0.0.1:0')
  const { port } = listener.address()
  listener.close()
  const dialer = new Dialer({ timeout: 60_000 })
  const error = await t.throwsAsync(dialer.dialConnection('tcp', `127.0.0.1:${port}`))
  t.like(error, { code: 'ECONNREFUSED', syscall: 'connect', address: '127.0.0.1', port })

  let accepted
  const server = serve(undefined, { onConnect: (connection) => void (accepted = connection) })
  t.teardown(server.stop)
  const client = await dialer.dialConnection('tcp', `127.0.0.1:${server.port}`)
  t.is(client.localAddress, '127.0.0.1')
  t.is(client.remoteAddress, '127.0.0.1')
  t.is(client.remotePort, server.port)
  t.is(client.remoteFamily, 'IPv4')
  await until(() => accepted !== undefined)
  t.is(accepted.remotePort, client.localPort)
  client.close()
  await client.closed
})

test('TestDialerUnix: a dial fails without a listener, and then talks; the ends have no addresses, as in net', async (t) => {
  const path = join(folder, 'tmp.sock')
  await t.throwsAsync(new Dialer().dialConnection('unix', path), { code: 'ENOENT' })
  const loop = createEventLoop(echo)
  const served = loop.serve(createListener('unix', path))
  t.teardown(async () => {
    await loop.shutdown({ timeout: 0 })
    await served
  })
  const client = await new Dialer().dialConnection('unix', path)
  t.is(client.localAddress, undefined)
  t.is(client.remoteAddress, undefined)
  client.writer.writeString('hello')
  client.writer.flush()
  await client.reader.waitRead(5)
  t.is(client.reader.readString(5), 'hello')
  client.close()
  await client.closed
})

test.serial('TestDialerFdAlloc: 100 clients whose server closes leave the next one as it is', async (t) => {
  const { port, loop, stop } = serve((connection) => connection.close())
  t.teardown(stop)
  await leaksNothing(async () => {
    for (let i = 0; i < 50; i++) {
      const client = await dialConnection('tcp', `127.0.0.1:${port}`)
      t.true(client.isActive())
      client.writer.writeString('hello world')
      client.writer.flush()
      await until(() => !client.isActive())
      await client.closed
    }
    await until(() => loop.connections === 0)
  })
})

test.serial(
  'TestFDClose: a client that was closed does not touch the one that has its descriptor now',
  async (t) => {
    const { port, stop } = serve(echo)
    t.teardown(stop)
    const first = await dial(t, port)
    first.close()
    await first.closed
    const second = await dial(t, port)
    first.close()
    first.reset()
    await settled()
    t.true(second.isActive())
    second.writer.writeString('still here')
    second.writer.flush()
    await second.reader.waitRead(10)
    t.is(second.reader.readString(10), 'still here')
    second.close()
    await second.closed
    t.false(second.isActive())
  },
)

test.serial(
  'TestDialerThenClose: 20 x 50 short connections to two servers hear only of their own',
  async (t) => {
    const before = descriptors()
    const servers = ['1', '2'].map((name) => {
      const server = serve(({ reader, writer }) => {
        const question = reader.readString(reader.length)
        if (!question.startsWith(`${name}-`)) throw new Error(`${question} at ${name}`)
        writer.writeString(`${name}-${question}`)
        writer.flush()
      })
      t.teardown(server.stop)
      return server
    })
    let answers = 0
    await Promise.all(
      Array.from({ length: 20 }, async (_, task) => {
        for (let i = 0; i < 50; i++) {
          for (const [at, name] of ['1', '2'].entries()) {
            const client = await dialConnection('tcp', `127.0.0.1:${servers[at].port}`)
            const question = `${name}-${task}-${i}`
            const expected = `${name}-${question}`
            if ((await talk(client, question, expected.length)) !== expected) return t.fail(question)
            answers++
          }
        }
      }),
    )
    t.is(answers, 2000)
    for (const { stop } of servers) await stop()
    await until(() => descriptors() <= before)
  },
)

test('TestListenerDialer: onRequest of a client may close it, and its close callback is called', async (t) => {
  const server = net.createServer((socket) => {
    socket.on('error', () => undefined)
    socket.once('data', (question) => socket.write(question))
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => server.close())
  const dialer = new Dialer({ timeout: 60_000 })
  const calls = []
  for (let i = 0; i < 10; i++) {
    const client = await dialer.dialConnection('tcp', `127.0.0.1:${server.address().port}`)
    client.addCloseCallback(() => calls.push('closed'))
    client.setOnRequest((connection) => {
      calls.push(connection.reader.readString(10))
      connection.close()
    })
    client.writer.writeString('0123456789')
    client.writer.flush()
    await client.closed
    t.is(calls.length, 2 * (i + 1))
  }
  t.deepEqual(calls.slice(-2), ['0123456789', 'closed'])
})

test('TestRuntimePoll: ten dials that are closed at once are accepted and closed', async (t) => {
  let closed = 0
  const { port, stop } = serve(undefined, {
    onPrepare: (connection) => connection.addCloseCallback(() => closed++),
    onConnect: () => undefined,
  })
  t.teardown(stop)
  for (let i = 0; i < 10; i++) (await dial(t, port)).close()
  await until(() => closed === 10)
  await settled()
  t.is(closed, 10)
})
