// Addresses: what is one, and those of connections as net sees them from the other side.

import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import net from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test from 'ava'
import { createEventLoop, createListener, listen, NetpollError } from '../index.js'
import { connect, deferred, pair, settled, until } from './fixtures/peer.mjs'

const folder = mkdtempSync(join(tmpdir(), 'netpoll-addresses-'))
test.after.always(() => rmSync(folder, { recursive: true }))

// ---- texts

const malformed = {
  tcp: [
    '',
    ':',
    '8080',
    'localhost',
    '127.0.0.1',
    '127.0.0.1:',
    '127.0.0.1:http',
    '127.0.0.1:-1',
    '127.0.0.1:+80',
    '127.0.0.1:0x50',
    '127.0.0.1:8e1',
    '127.0.0.1:80 ',
    '127.0.0.1: 80',
    ' 127.0.0.1:80',
    '127.0.0.1:8 0',
    '127.0.0.1:80.0',
    '127.0.0.1:65536',
    '127.0.0.1:99999999999999999999',
    '::1:80',
    '::1',
    '[::1]',
    '[::1]80',
    '[::1:80',
    '::1]:80',
    '[]:80',
    '[localhost]:80',
    '[::g]:80',
    'a b:80',
    'a/b:80',
    'user@host:80',
    'http://localhost:80',
    'a\0b:80',
    'a:80\0',
  ],
  tcp4: ['[::1]:0', '[::]:0', '0.0.0.0'],
  tcp6: ['127.0.0.1:0', '0.0.0.0:0', '[::1]'],
  unix: ['', '@', 'a\0b', '@a\0b', '/'.padEnd(108, 'x'), '@'.padEnd(109, 'x')],
}

for (const [network, texts] of Object.entries(malformed)) {
  for (const text of texts) {
    test(`${network} ${JSON.stringify(text)} is no address`, (t) => {
      const expected = { instanceOf: NetpollError, code: 'ERR_NETPOLL_ADDRESS', name: 'NetpollError' }
      t.throws(() => createListener(network, text), expected)
      t.throws(() => listen(network, text), expected)
    })
  }
}

test('a host name throws in createListener, which asks no resolver', (t) => {
  for (const network of ['tcp', 'tcp4', 'tcp6']) {
    for (const address of ['server.example:0', 'local-host:80', '1.2.3:0', '256.0.0.1:0']) {
      t.throws(() => createListener(network, address), { code: 'ERR_NETPOLL_ADDRESS' }, address)
    }
  }
})

test('the longest unix path and the longest abstract name are addresses', (t) => {
  for (const address of [`${folder}/`.padEnd(107, 'x'), `@${process.pid}`.padEnd(108, 'x')]) {
    const listener = createListener('unix', address)
    t.is(listener.address(), address)
    listener.close()
  }
})

for (const network of ['', 'udp', 'TCP', 'tcp5', 'unixgram', undefined, null, 4, {}]) {
  test(`${JSON.stringify(network)} is no network`, (t) => {
    t.throws(() => createListener(network, ':0'), { code: 'ERR_INVALID_ARG_VALUE', instanceOf: TypeError })
    t.throws(() => listen(network, ':0'), { code: 'ERR_INVALID_ARG_VALUE', instanceOf: TypeError })
  })
}

for (const address of [undefined, null, 8080, {}, [':0'], new URL('tcp://localhost:80'), Buffer.from(':0')]) {
  test(`${address === null ? null : (address?.constructor.name ?? address)} is no address text`, (t) => {
    t.throws(() => createListener('tcp', address), { code: 'ERR_INVALID_ARG_TYPE', instanceOf: TypeError })
    t.throws(() => listen('tcp', address), { code: 'ERR_INVALID_ARG_TYPE', instanceOf: TypeError })
  })
}

// ---- of connections

const SERVER_SIDE = [
  'remoteAddress',
  'remotePort',
  'remoteFamily',
  'localAddress',
  'localPort',
  'localFamily',
]

function addresses(connection) {
  return Object.fromEntries(SERVER_SIDE.map((name) => [name, connection[name]]))
}

/** The same with the two sides exchanged. */
function fromTheOtherSide(socket) {
  return {
    remoteAddress: socket.localAddress,
    remotePort: socket.localPort,
    remoteFamily: socket.localFamily,
    localAddress: socket.remoteAddress,
    localPort: socket.remotePort,
    localFamily: socket.remoteFamily,
  }
}

/** A connection of a listener, and the socket of net at its other end. */
async function connectedTo(t, listener, where) {
  const accepted = deferred()
  const loop = createEventLoop(undefined, {
    onConnect: (connection) => void accepted.resolve(connection),
  })
  void loop.serve(listener)
  const socket = net.connect(where)
  await once(socket, 'connect')
  const connection = await accepted.promise
  t.teardown(async () => {
    socket.destroy()
    await loop.shutdown({ timeout: 0 })
  })
  return { connection, socket, loop }
}

for (const [network, host] of [
  ['tcp4', '127.0.0.1'],
  ['tcp', '127.0.0.1'],
  ['tcp', '::1'],
  ['tcp6', '::1'],
]) {
  test(`a ${network} connection from ${host} has the addresses that net sees on the other side`, async (t) => {
    const literal = host.includes(':') ? `[${host}]` : host
    const listener = createListener(network, `${literal}:0`)
    const { connection, socket } = await connectedTo(t, listener, { host, port: listener.address().port })
    t.deepEqual(addresses(connection), fromTheOtherSide(socket))
    t.is(connection.remoteAddress, host)
    t.is(connection.localPort, listener.address().port)
  })
}

test('an IPv4 connection of a listener without a host has the addresses that a server of net sees', async (t) => {
  const listener = createListener('tcp', ':0')
  const { connection, socket } = await connectedTo(t, listener, {
    host: '127.0.0.1',
    port: listener.address().port,
  })
  const server = net.createServer().listen(0)
  await once(server, 'listening')
  const other = net.connect(server.address().port, '127.0.0.1')
  const [accepted] = await once(server, 'connection')
  const ports = { remotePort: socket.localPort, localPort: socket.remotePort }
  t.deepEqual(addresses(connection), { ...addresses(accepted), ...ports })
  t.is(connection.remoteAddress, '::ffff:127.0.0.1')
  other.destroy()
  accepted.destroy()
  server.close()
})

test('a connection knows to which of the addresses of its listener the peer came', async (t) => {
  const listener = createListener('tcp4', ':0')
  const { connection } = await connectedTo(t, listener, { host: '127.0.0.5', port: listener.address().port })
  t.is(connection.localAddress, '127.0.0.5')
})

test('a unix connection has no addresses, as in net', async (t) => {
  const path = join(folder, 'connection.sock')
  const { connection } = await connectedTo(t, createListener('unix', path), { path })
  const server = net.createServer().listen(join(folder, 'net.sock'))
  await once(server, 'listening')
  const other = net.connect(join(folder, 'net.sock'))
  const [accepted] = await once(server, 'connection')
  t.deepEqual(addresses(connection), addresses(accepted))
  t.is(connection.remoteAddress, undefined)
  other.destroy()
  accepted.destroy()
  server.close()
})

test('addresses that were asked for before the end are known after it', async (t) => {
  const { connection, peer } = await pair(t)
  const known = addresses(connection)
  peer.destroy()
  await connection.closed
  t.deepEqual(addresses(connection), known)
  t.is(typeof known.remotePort, 'number')
})

test('addresses are known in onDisconnect and close callbacks, asked for there for the first time', async (t) => {
  const seen = []
  const listener = createListener('tcp', '127.0.0.1:0')
  const loop = createEventLoop(undefined, {
    onConnect: (connection) => connection.addCloseCallback(({ remotePort }) => seen.push(remotePort)),
    onDisconnect: ({ remotePort }) => seen.push(remotePort),
  })
  const served = loop.serve(listener)
  const socket = await connect(listener.address().port)
  const { localPort } = socket
  await until(() => loop.connections === 1)
  socket.destroy()
  await until(() => seen.length === 2)
  t.deepEqual(seen, [localPort, localPort])
  await loop.shutdown()
  await served
})

test('a handler that has waited past the end of its connection is told the addresses at its first question', async (t) => {
  const told = deferred()
  const began = deferred()
  const listener = createListener('tcp', '127.0.0.1:0')
  const loop = createEventLoop(async (connection) => {
    began.resolve()
    await until(() => loop.connections === 0)
    await settled()
    told.resolve(connection.remotePort)
  })
  const served = loop.serve(listener)
  const socket = await connect(listener.address().port)
  const { localPort } = socket
  socket.write('x')
  await began.promise
  socket.resetAndDestroy()
  t.is(await told.promise, localPort)
  await loop.shutdown()
  await served
})

test('addresses of one connection are never those of another that had its slot', async (t) => {
  const listener = createListener('tcp', '127.0.0.1:0')
  const seen = []
  const loop = createEventLoop(({ reader, remotePort }) => {
    reader.skip(reader.length)
    seen.push(remotePort)
  })
  const served = loop.serve(listener)
  for (let i = 0; i < 50; i++) {
    const socket = await connect(listener.address().port)
    const { localPort } = socket
    socket.write('x')
    await until(() => seen.length === i + 1)
    t.is(seen[i], localPort)
    socket.destroy()
    await until(() => loop.connections === 0)
  }
  await loop.shutdown()
  await served
})
