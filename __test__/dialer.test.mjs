// Connections that are dialed: where they go, how they fail, what a dial takes.

import { spawn, spawnSync } from 'node:child_process'
import dns from 'node:dns/promises'
import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import net from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test from 'ava'
import { createEventLoop, createListener, Dialer, dialConnection, NetpollError } from '../index.js'
import { dialed, netServer, serve, take, until } from './fixtures/peer.mjs'

const folder = mkdtempSync(join(tmpdir(), 'netpoll-'))
test.after.always(() => rmSync(folder, { recursive: true }))

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

/** A port at which nobody listens. */
async function closedPort() {
  const server = net.createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address()
  server.close()
  await once(server, 'close')
  return port
}

// ---- where to

test('a dialed connection sends to node:net and hears its answer, and both agree on the addresses', async (t) => {
  const { connection, reader, writer, peer } = await dialed(t)
  writer.writeString('ping')
  writer.flush()
  t.is(String(await take(peer, 4)), 'ping')
  peer.write('pong')
  await reader.waitRead(4)
  t.is(reader.readString(4), 'pong')
  t.deepEqual([connection.remoteAddress, connection.remotePort], ['127.0.0.1', peer.localPort])
  t.deepEqual([connection.localAddress, connection.localPort], ['127.0.0.1', peer.remotePort])
  t.is(connection.remoteFamily, 'IPv4')
  t.true(connection.isActive())
  t.deepEqual([connection.bytesWritten, connection.bytesRead], [4, 4])
})

for (const network of ['tcp', 'tcp4']) {
  test(`${network} to our own server`, async (t) => {
    const server = serve(echo)
    t.teardown(server.stop)
    const connection = await dialConnection(network, `127.0.0.1:${server.port}`)
    t.is(await asks(connection, 'hello'), 'hello')
    connection.close()
    await connection.closed
  })
}

test('no host is this machine', async (t) => {
  const server = serve(echo)
  t.teardown(server.stop)
  const connection = await dialConnection('tcp', `:${server.port}`)
  t.is(await asks(connection, 'hello'), 'hello')
  connection.close()
})

for (const address of [join(folder, 'socket'), `@netpoll-dialer-${process.pid}`]) {
  test(`a unix socket: ${address[0]}`, async (t) => {
    const loop = createEventLoop(echo)
    const served = loop.serve(createListener('unix', address))
    const connection = await dialConnection('unix', address)
    t.is(await asks(connection, 'hello'), 'hello')
    t.deepEqual([connection.remoteAddress, connection.remotePort, connection.remoteFamily], Array(3).fill())
    connection.close()
    await connection.closed
    await loop.shutdown()
    await served
  })
}

test('a unix socket of node:net', async (t) => {
  const path = join(folder, 'net')
  const server = net.createServer((socket) => socket.pipe(socket)).listen(path)
  await once(server, 'listening')
  const connection = await dialConnection('unix', path)
  t.is(await asks(connection, 'hello'), 'hello')
  connection.close()
  await connection.closed
  server.close()
})

const loopbacks = { '127.0.0.1': ['tcp4', '::1'], '::1': ['tcp6', '127.0.0.1'] }

for (const [host, [network, other]] of Object.entries(loopbacks)) {
  test(`localhost finds a server that listens at ${host} only`, async (t) => {
    const server = await aloneAt(t, host, other)
    if (server === null) return t.pass('there is no such family here')
    for (const which of ['tcp', network]) {
      const connection = await dialConnection(which, `localhost:${server.address().port}`)
      t.is(connection.remoteAddress, host)
      await connection.reader.waitRead(5)
      t.is(connection.reader.readString(5), 'hello')
      await connection.closed
    }
  })
}

/** A server at a port of `host` at which nobody else listens at `other`. */
async function aloneAt(t, host, other) {
  for (;;) {
    const server = net.createServer((socket) => socket.end('hello')).listen(0, host)
    t.teardown(() => server.close())
    await once(server, 'listening').catch(() => undefined)
    if (!server.listening) return null
    const somebody = net.connect(server.address().port, other)
    const isTaken = await once(somebody, 'connect').catch(() => false)
    somebody.destroy()
    if (!isTaken) return server
  }
}

test.serial(
  'a name is resolved by Node, and the addresses that refuse make way for those that do not',
  async (t) => {
    const server = await netServer(t)
    const { lookup } = dns
    const asked = []
    dns.lookup = (...args) => {
      asked.push(args)
      const addresses = ['::1', '127.0.0.9', '127.0.0.1']
      return Promise.resolve(addresses.map((address) => ({ address, family: net.isIP(address) })))
    }
    try {
      const connection = await dialConnection('tcp', `some.name:${server.port}`)
      t.deepEqual([connection.remoteAddress, connection.remotePort], ['127.0.0.1', server.port])
      connection.close()
      t.deepEqual(asked, [['some.name', { all: true, family: 0 }]])
      const refused = await t.throwsAsync(dialConnection('tcp', `some.name:${await closedPort()}`))
      t.deepEqual([refused.code, refused.syscall], ['ECONNREFUSED', 'connect'])
      t.is(refused.address, '::1', 'the first one that failed is told')
    } finally {
      dns.lookup = lookup
    }
  },
)

having('nc')('nc listens, and gets what is flushed before the half-close', async (t) => {
  const port = await closedPort()
  const child = spawn('nc', ['-l', '-N', '127.0.0.1', String(port)], { stdio: ['pipe', 'pipe', 'inherit'] })
  t.teardown(() => void child.kill())
  let connection
  await until(async () => {
    connection = await dialConnection('tcp', `127.0.0.1:${port}`).catch(() => undefined)
    return connection !== undefined
  })
  child.stdin.end('from nc')
  connection.writer.writeString('to nc')
  connection.writer.flush()
  connection.end()
  t.is(String((await child.stdout.toArray())[0]), 'to nc')
  await connection.reader.waitRead(7)
  t.is(connection.reader.readString(7), 'from nc')
  await connection.closed
})

// ---- how it comes from here

test('localAddress is where the connection comes from, with and without a port', async (t) => {
  const server = await netServer(t)
  const first = await dialConnection('tcp', server.address, { localAddress: '127.0.0.7' })
  t.is(first.localAddress, '127.0.0.7')
  const port = await closedPort()
  const second = await dialConnection('tcp', server.address, { localAddress: `127.0.0.1:${port}` })
  t.deepEqual([second.localAddress, second.localPort], ['127.0.0.1', port])
  await until(() => server.accepted.length === 2)
  t.deepEqual(
    server.accepted.map((socket) => socket.remoteAddress),
    ['127.0.0.7', '127.0.0.1'],
  )
  for (const connection of [first, second]) connection.close()
})

test('a local port can be used again at once for another server', async (t) => {
  const servers = [await netServer(t), await netServer(t)]
  const localAddress = `127.0.0.1:${await closedPort()}`
  for (const server of servers) {
    const connection = await dialConnection('tcp', server.address, { localAddress })
    // Who closes first keeps the port in TIME_WAIT.
    connection.close()
    await connection.closed
    await until(() => server.accepted.length === 1)
    server.accepted[0].end()
    await once(server.accepted[0].resume(), 'close')
  }
  t.pass()
})

test('a local address that is not ours, or in use, is told as bind', async (t) => {
  const server = await netServer(t)
  const elsewhere = await t.throwsAsync(
    dialConnection('tcp', server.address, { localAddress: '192.0.2.1' }),
    { instanceOf: NetpollError, code: 'EADDRNOTAVAIL', message: 'bind EADDRNOTAVAIL 192.0.2.1' },
  )
  t.deepEqual([elsewhere.syscall, elsewhere.address], ['bind', '192.0.2.1'])
  const taken = await t.throwsAsync(dialConnection('tcp', server.address, { localAddress: server.address }), {
    code: 'EADDRINUSE',
  })
  t.is(taken.syscall, 'bind')
})

// ---- what goes wrong

test('a port without listener rejects as net does', async (t) => {
  const port = await closedPort()
  const error = await t.throwsAsync(dialConnection('tcp', `127.0.0.1:${port}`), { instanceOf: NetpollError })
  const socket = net.connect(port, '127.0.0.1')
  const [theirs] = await once(socket, 'error')
  for (const field of ['code', 'errno', 'syscall', 'address', 'port', 'message']) {
    t.is(error[field], theirs[field], field)
  }
})

test('a unix socket that is not there, or at which nobody listens, rejects as net does', async (t) => {
  const gone = join(folder, 'gone')
  for (const path of [gone, folder]) {
    const error = await t.throwsAsync(dialConnection('unix', path), { instanceOf: NetpollError })
    const [theirs] = await once(net.connect(path), 'error')
    for (const field of ['code', 'errno', 'syscall', 'address', 'message']) {
      t.is(error[field], theirs[field], field)
    }
  }
})

test('a name that does not resolve rejects with the error of the resolver', async (t) => {
  const error = await t.throwsAsync(dialConnection('tcp', 'no.such.name.invalid:80'))
  t.deepEqual([error.syscall, error.hostname], ['getaddrinfo', 'no.such.name.invalid'])
  t.false(error instanceof NetpollError)
})

test('a port that would connect to itself refuses', async (t) => {
  const address = `127.0.0.1:${await closedPort()}`
  await t.throwsAsync(dialConnection('tcp', address, { localAddress: address }), { code: 'ECONNREFUSED' })
})

test('handlers run in the asynchronous context of the dial', async (t) => {
  const { AsyncLocalStorage } = await import('node:async_hooks')
  const storage = new AsyncLocalStorage()
  const server = serve(echo)
  t.teardown(server.stop)
  const seen = await storage.run('of the dial', async () => {
    const stores = []
    const connection = await dialConnection('tcp', `127.0.0.1:${server.port}`, {
      onRequest: (client) => {
        stores.push(storage.getStore())
        client.close()
      },
      onDisconnect: () => void stores.push(storage.getStore()),
    })
    connection.writer.writeString('?')
    connection.writer.flush()
    await connection.closed
    return stores
  })
  t.deepEqual(seen, ['of the dial', 'of the dial'])
})

// ---- arguments

const wrong = [
  [['udp', '127.0.0.1:80'], 'ERR_INVALID_ARG_VALUE'],
  [[undefined, '127.0.0.1:80'], 'ERR_INVALID_ARG_VALUE'],
  [['tcp', 80], 'ERR_INVALID_ARG_TYPE'],
  [['tcp'], 'ERR_INVALID_ARG_TYPE'],
  [['tcp', '127.0.0.1'], 'ERR_NETPOLL_ADDRESS'],
  [['tcp', '127.0.0.1:'], 'ERR_NETPOLL_ADDRESS'],
  [['tcp', '127.0.0.1:65536'], 'ERR_NETPOLL_ADDRESS'],
  [['tcp', '127.0.0.1:-1'], 'ERR_NETPOLL_ADDRESS'],
  [['tcp', '127.0.0.1:http'], 'ERR_NETPOLL_ADDRESS'],
  [['tcp', '::1:80'], 'ERR_NETPOLL_ADDRESS'],
  [['tcp4', '[::1]:80'], 'ERR_NETPOLL_ADDRESS'],
  [['tcp6', '127.0.0.1:80'], 'ERR_NETPOLL_ADDRESS'],
  [['unix', ''], 'ERR_NETPOLL_ADDRESS'],
  [['unix', '@'], 'ERR_NETPOLL_ADDRESS'],
  [['unix', 'x'.repeat(108)], 'ERR_NETPOLL_ADDRESS'],
  [['tcp', 'a:1', null], 'ERR_INVALID_ARG_TYPE'],
  [['tcp', 'a:1', 5], 'ERR_INVALID_ARG_TYPE'],
  [['tcp', 'a:1', { timeout: NaN }], 'ERR_OUT_OF_RANGE'],
  [['tcp', 'a:1', { timeout: -1 }], 'ERR_OUT_OF_RANGE'],
  [['tcp', 'a:1', { timeout: 2 ** 31 }], 'ERR_OUT_OF_RANGE'],
  [['tcp', 'a:1', { timeout: '5' }], 'ERR_INVALID_ARG_TYPE'],
  [['tcp', 'a:1', { signal: {} }], 'ERR_INVALID_ARG_TYPE'],
  [['tcp', 'a:1', { noDelay: 1 }], 'ERR_INVALID_ARG_TYPE'],
  [['tcp', 'a:1', { onRequest: 'x' }], 'ERR_INVALID_ARG_TYPE'],
  [['tcp', 'a:1', { onDisconnect: null }], 'ERR_INVALID_ARG_TYPE'],
  [['tcp', 'a:1', { onError: 1 }], 'ERR_INVALID_ARG_TYPE'],
  [['tcp', 'a:1', { readTimeout: -1 }], 'ERR_OUT_OF_RANGE'],
  [['tcp', 'a:1', { writeTimeout: 0.5 }], 'ERR_OUT_OF_RANGE'],
  [['tcp', 'a:1', { idleTimeout: Infinity }], 'ERR_OUT_OF_RANGE'],
  [['tcp', 'a:1', { allowHalfOpen: 0 }], 'ERR_INVALID_ARG_TYPE'],
  [['tcp', 'a:1', { maxReadBytes: 0 }], 'ERR_OUT_OF_RANGE'],
  [['tcp', 'a:1', { readHighWaterMark: 0 }], 'ERR_OUT_OF_RANGE'],
  [['tcp', 'a:1', { writeHighWaterMark: 0 }], 'ERR_OUT_OF_RANGE'],
  [['tcp', 'a:1', { maxPendingBytes: 0 }], 'ERR_OUT_OF_RANGE'],
  [['tcp', 'a:1', { onConnect() {} }], 'ERR_INVALID_ARG_VALUE'],
  [['tcp', 'a:1', { localAddress: 1 }], 'ERR_INVALID_ARG_TYPE'],
  [['tcp', 'a:1', { localAddress: 'some.name' }], 'ERR_NETPOLL_ADDRESS'],
  [['tcp', 'a:1', { localAddress: '127.0.0.1:x' }], 'ERR_NETPOLL_ADDRESS'],
  [['tcp', 'a:1', { localAddress: '1:2:3:4' }], 'ERR_NETPOLL_ADDRESS'],
  [['tcp', '127.0.0.1:1', { localAddress: '::1' }], 'ERR_NETPOLL_ADDRESS'],
  [['unix', '@a', { localAddress: '127.0.0.1' }], 'ERR_NETPOLL_ADDRESS'],
]

for (const [args, code] of wrong) {
  const shown = args.map((arg) =>
    typeof arg === 'object' && arg ? Object.entries(arg).flat().map(String) : arg,
  )
  test(`dialConnection(${shown.join(', ').slice(0, 80)}) throws ${code}`, (t) => {
    t.throws(() => void dialConnection(...args).catch(() => undefined), { code })
  })
}

test('a Dialer has defaults, which each dial may override, and which it checks', async (t) => {
  const server = serve(echo)
  t.teardown(server.stop)
  const address = `127.0.0.1:${server.port}`
  const defaults = { localAddress: '127.0.0.5', timeout: 60_000 }
  const dialer = new Dialer(defaults)
  defaults.localAddress = '127.0.0.6'
  const connections = [
    await dialer.dialConnection('tcp', address),
    await dialer.dialConnection('tcp', address, { localAddress: undefined, timeout: undefined }),
    await dialer.dialConnection('tcp', address, { localAddress: '127.0.0.8' }),
    await new Dialer().dialConnection('tcp', address),
  ]
  t.deepEqual(
    connections.map((connection) => connection.localAddress),
    ['127.0.0.5', '127.0.0.5', '127.0.0.8', '127.0.0.1'],
  )
  for (const connection of connections) connection.close()
  t.throws(() => new Dialer({ timeout: NaN }), { code: 'ERR_OUT_OF_RANGE' })
  t.throws(() => new Dialer({ address }), { code: 'ERR_INVALID_ARG_VALUE' })
  t.throws(() => new Dialer(null), { code: 'ERR_INVALID_ARG_TYPE' })
  t.throws(() => dialer.dialConnection('tcp', address, 5), { code: 'ERR_INVALID_ARG_TYPE' })
  t.throws(() => dialer.dialConnection('tcp', address, { timeout: -1 }), { code: 'ERR_OUT_OF_RANGE' })
})

/** A test that needs a program which is not there everywhere. */
function having(program) {
  return spawnSync(program, ['-h']).error?.code === 'ENOENT' ? test.skip : test
}
