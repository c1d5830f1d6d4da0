// Listeners: where they listen, what becomes of early connects, close(), and the errors of net.

import { exec, execFileSync } from 'node:child_process'
import dns from 'node:dns/promises'
import { once } from 'node:events'
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  readlinkSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import net from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import test from 'ava'
import { createEventLoop, createListener, listen, NetpollError } from '../index.js'
import { connect, descriptors, outcome, serve, settled, take, until } from './fixtures/peer.mjs'
import { run } from './fixtures/program.mjs'

const folder = mkdtempSync(join(tmpdir(), 'netpoll-listener-'))
test.after.always(() => rmSync(folder, { recursive: true }))

let names = 0

/** A path that nothing is at. */
const path = () => join(folder, `${++names}.sock`)

function echo({ reader, writer }) {
  writer.append(reader)
  writer.flush()
}

/** A listening server of net. */
async function netServer(...where) {
  const server = net.createServer()
  server.listen(...where)
  await once(server, 'listening')
  return server
}

/** The error of net for the same case. */
async function netError(...where) {
  const server = net.createServer()
  server.listen(...where)
  const [error] = await once(server, 'error')
  return error
}

/** All that net's errors tell. */
function fields(error) {
  const { code, errno, syscall, address, port, message } = error
  return { code, errno, syscall, address, port, message }
}

function failure(network, address, options) {
  try {
    createListener(network, address, options).close()
  } catch (error) {
    return error
  }
  throw new Error(`${address} can be listened at`)
}

// ---- where

const places = [
  ['tcp', ':0', undefined],
  ['tcp', '0.0.0.0:0', '0.0.0.0'],
  ['tcp', '127.0.0.1:0', '127.0.0.1'],
  ['tcp', '[::1]:0', '::1'],
  ['tcp', '[::]:0', '::'],
  ['tcp', 'localhost:0', '127.0.0.1'],
  ['tcp4', ':0', '0.0.0.0'],
  ['tcp4', '127.0.0.1:0', '127.0.0.1'],
  ['tcp4', 'localhost:0', '127.0.0.1'],
  ['tcp6', ':0', '::'],
  ['tcp6', '[::1]:0', '::1'],
  ['tcp6', 'localhost:0', '::1'],
]

for (const [network, address, host] of places) {
  test(`${network} ${address} listens where net does for ${host ?? 'no host'}, at a port of its own`, async (t) => {
    const listener = createListener(network, address)
    t.teardown(() => listener.close())
    const server = await netServer(0, host)
    t.teardown(() => server.close())
    t.deepEqual({ ...listener.address(), port: 0 }, { ...server.address(), port: 0 })
    t.true(listener.address().port > 0)
    const socket = net.connect(listener.address().port, listener.address().address)
    await once(socket, 'connect')
    socket.destroy()
  })
}

test('a given port is listened at', async (t) => {
  const server = await netServer(0, '127.0.0.1')
  const { port } = server.address()
  server.close()
  await once(server, 'close')
  const listener = createListener('tcp', `127.0.0.1:${port}`)
  t.is(listener.address().port, port)
  listener.close()
})

test('the address of a unix socket is its path', (t) => {
  const at = path()
  const listener = createListener('unix', at)
  t.is(listener.address(), at)
  t.true(statSync(at).isSocket())
  listener.close()
})

test('an abstract unix socket has its name, and no file', async (t) => {
  const name = `@netpoll-${process.pid}`
  const listener = createListener('unix', name)
  const loop = createEventLoop(echo)
  const served = loop.serve(listener)
  t.teardown(() => loop.shutdown())
  t.is(listener.address(), name)
  t.false(existsSync(name))
  // Node 20 cannot connect to it.
  const { stdout } = await promisify(exec)(`printf abstract | socat -t 5 - ABSTRACT-CONNECT:${name.slice(1)}`)
  t.is(stdout, 'abstract')
  listener.close()
  await served
})

test('a unix socket serves', async (t) => {
  const at = path()
  const loop = createEventLoop(echo)
  const served = loop.serve(createListener('unix', at))
  const socket = net.connect(at)
  socket.write('hello')
  t.is(String(await take(socket, 5)), 'hello')
  socket.destroy()
  await loop.shutdown()
  await served
})

test.serial('fd is an open socket of this process until it is closed', async (t) => {
  await settled()
  const before = descriptors()
  const listener = createListener('tcp', '127.0.0.1:0')
  t.regex(readlinkSync(`/proc/self/fd/${listener.fd}`), /^socket:/)
  listener.close()
  await until(() => descriptors() === before)
  t.pass()
})

test('a tcp listener without a host takes IPv4 and IPv6, with ipv6Only IPv6 alone', async (t) => {
  for (const [options, both] of [
    [undefined, true],
    [{ ipv6Only: true }, false],
  ]) {
    const listener = createListener('tcp', '[::]:0', options)
    const { port } = listener.address()
    for (const [host, expected] of [
      ['::1', true],
      ['127.0.0.1', both],
    ]) {
      const socket = net.connect(port, host)
      const answer = await Promise.race([
        once(socket, 'connect').then(() => true),
        once(socket, 'error').then(([error]) => error.code),
      ]).catch((error) => error.code)
      t.is(answer, expected || 'ECONNREFUSED')
      socket.destroy()
    }
    listener.close()
  }
})

/** A listener on a port of IPv6 and a server of net on the same port of IPv4, which others may have taken. */
async function bothFamilies() {
  for (let attempt = 0; attempt < 20; attempt++) {
    const listener = createListener('tcp6', ':0')
    try {
      return [listener, await netServer(listener.address().port, '127.0.0.1')]
    } catch (error) {
      listener.close()
      if (error.code !== 'EADDRINUSE') throw error
    }
  }
  throw new Error('no port is free for IPv4 beside a listener of IPv6')
}

test('tcp6 takes no IPv4', async (t) => {
  const [listener, server] = await bothFamilies()
  const socket = net.connect(server.address().port, '127.0.0.1')
  const [accepted] = await once(server, 'connection')
  t.is(accepted.remotePort, socket.localPort)
  for (const end of [socket, accepted]) end.destroy()
  for (const end of [server, listener]) end.close()
})

// ---- names

test.serial("listen() resolves a host name for its network, with Node's resolver", async (t) => {
  const { lookup } = dns
  t.teardown(() => (dns.lookup = lookup))
  const asked = []
  dns.lookup = async (host, { family }) => {
    asked.push([host, family])
    return family === 6 ? { address: '::1', family: 6 } : { address: '127.0.0.1', family: 4 }
  }
  for (const [network, expected] of [
    ['tcp', '127.0.0.1'],
    ['tcp4', '127.0.0.1'],
    ['tcp6', '::1'],
  ]) {
    const listener = await listen(network, 'server.example:0')
    t.is(listener.address().address, expected)
    listener.close()
  }
  t.deepEqual(asked, [
    ['server.example', 0],
    ['server.example', 4],
    ['server.example', 6],
  ])
})

test.serial('listen() asks nobody for a literal, localhost, no host, or a path', async (t) => {
  const { lookup } = dns
  t.teardown(() => (dns.lookup = lookup))
  dns.lookup = () => t.fail()
  for (const address of ['127.0.0.1:0', '[::1]:0', 'localhost:0', ':0'])
    (await listen('tcp', address)).close()
  const listener = await listen('unix', path())
  listener.close()
  t.pass()
})

test.serial('listen() rejects with the error of the resolver', async (t) => {
  const { lookup } = dns
  t.teardown(() => (dns.lookup = lookup))
  const error = new Error('nobody knows')
  dns.lookup = () => Promise.reject(error)
  t.is(await t.throwsAsync(listen('tcp', 'server.example:0')), error)
})

test('listen() rejects with the errors of the system', async (t) => {
  const server = await netServer(0, '127.0.0.1')
  const { port } = server.address()
  const expected = await netError(port, '127.0.0.1')
  t.deepEqual(fields(await t.throwsAsync(listen('tcp', `127.0.0.1:${port}`))), fields(expected))
  server.close()
})

// ---- connects before serve

test('connects and bytes that come before serve() are kept and served', async (t) => {
  const listener = createListener('tcp', '127.0.0.1:0')
  const sockets = []
  for (let i = 0; i < 20; i++) {
    sockets.push(await connect(listener.address().port))
    sockets[i].write(`early ${i}`)
  }
  const loop = createEventLoop(echo)
  const served = loop.serve(listener)
  for (const [i, socket] of sockets.entries()) {
    t.is(String(await take(socket, `early ${i}`.length)), `early ${i}`)
    socket.destroy()
  }
  await loop.shutdown()
  await served
})

test('connects to a listener that is closed without having been served are cut', async (t) => {
  const listener = createListener('tcp', '127.0.0.1:0')
  const socket = await connect(listener.address().port)
  listener.close()
  t.is((await outcome(socket)).code, 'ECONNRESET')
})

test('a listener is served only once', async (t) => {
  const { listener, loop, stop } = serve(echo)
  t.teardown(stop)
  await t.throwsAsync(loop.serve(listener), { code: 'ERR_NETPOLL_INVALID_STATE', instanceOf: NetpollError })
  await t.throwsAsync(createEventLoop(echo).serve(listener), { code: 'ERR_NETPOLL_INVALID_STATE' })
})

test('a closed listener is not served', async (t) => {
  const listener = createListener('tcp', '127.0.0.1:0')
  listener.close()
  await t.throwsAsync(createEventLoop(echo).serve(listener), { code: 'ERR_NETPOLL_INVALID_STATE' })
})

// ---- close

test('close() frees the address at once, and again does nothing', (t) => {
  const first = createListener('tcp', '127.0.0.1:0')
  const address = `127.0.0.1:${first.address().port}`
  first.close()
  const second = createListener('tcp', address)
  first.close()
  t.is(failure('tcp', address).code, 'EADDRINUSE')
  second.close()
})

test('close() while it is served frees the port at once, ends serve(), and leaves connections be', async (t) => {
  const { port, listener, served, stop } = serve(echo)
  t.teardown(stop)
  const socket = await connect(port)
  socket.write('one')
  await take(socket, 3)
  listener.close()
  listener.close()
  const successor = createListener('tcp', `127.0.0.1:${port}`)
  successor.close()
  await served
  socket.write('two')
  t.is(String(await take(socket, 3)), 'two')
  const refused = net.connect(port, '127.0.0.1')
  const [error] = await once(refused, 'error')
  t.is(error.code, 'ECONNREFUSED')
  socket.destroy()
})

test('close() removes the file of a unix socket', (t) => {
  const at = path()
  for (let i = 0; i < 3; i++) {
    const listener = createListener('unix', at)
    t.true(existsSync(at))
    listener.close()
    t.false(existsSync(at))
  }
})

test('Symbol.asyncDispose closes, served or not', async (t) => {
  const unserved = createListener('tcp', '127.0.0.1:0')
  await unserved[Symbol.asyncDispose]()
  await unserved[Symbol.asyncDispose]()
  const { port, listener, served, stop } = serve(echo)
  await listener[Symbol.asyncDispose]()
  await served
  t.notThrows(() => createListener('tcp', `127.0.0.1:${port}`).close())
  await stop()
})

// ---- errors of the system

const busy = [
  ['tcp', (port) => `127.0.0.1:${port}`, '127.0.0.1'],
  ['tcp', (port) => `[::1]:${port}`, '::1'],
  ['tcp', (port) => `:${port}`, undefined],
  ['tcp', (port) => `localhost:${port}`, '127.0.0.1'],
  ['tcp4', (port) => `:${port}`, '0.0.0.0'],
  ['tcp6', (port) => `localhost:${port}`, '::1'],
]

for (const [network, address, host] of busy) {
  test(`${network} ${address('PORT')} in use is the error of net`, async (t) => {
    const server = await netServer(0, host)
    t.teardown(() => server.close())
    const { port } = server.address()
    const error = failure(network, address(port))
    t.is(error.code, 'EADDRINUSE')
    t.true(error instanceof NetpollError)
    t.deepEqual(fields(error), fields(await netError(port, host)))
  })
}

test('net finds our port in use as it finds its own', async (t) => {
  const listener = createListener('tcp', '127.0.0.1:0')
  const { port } = listener.address()
  t.deepEqual(fields(failure('tcp', `127.0.0.1:${port}`)), fields(await netError(port, '127.0.0.1')))
  listener.close()
})

test('an address that is not of this machine is the error of net', async (t) => {
  for (const port of [0, 4711]) {
    const error = failure('tcp', `192.0.2.1:${port}`)
    t.is(error.code, 'EADDRNOTAVAIL')
    t.deepEqual(fields(error), fields(await netError(port, '192.0.2.1')))
  }
})

test('a unix path at which a server listens, or a file is, is the error of net', async (t) => {
  const live = path()
  const server = await netServer(live)
  t.teardown(() => server.close())
  const file = path()
  writeFileSync(file, 'mine')
  const directory = path()
  mkdirSync(directory)
  for (const at of [live, file, directory]) {
    const error = failure('unix', at)
    t.is(error.code, 'EADDRINUSE')
    t.deepEqual(fields(error), fields(await netError(at)))
  }
  t.is(readFileSync(file, 'utf8'), 'mine')
})

test('an abstract name in use is EADDRINUSE', (t) => {
  const name = `@netpoll-twice-${process.pid}`
  const listener = createListener('unix', name)
  const { code, errno, syscall, address } = failure('unix', name)
  t.deepEqual(
    { code, errno, syscall, address },
    { code: 'EADDRINUSE', errno: -98, syscall: 'listen', address: name },
  )
  listener.close()
})

test('what is not permitted is the error of net', async (t) => {
  const forbidden = path()
  mkdirSync(forbidden, { mode: 0o555 })
  const at = join(forbidden, 'x.sock')
  const unprivileged = process.getuid() === 0 ? { uid: 65534, gid: 65534 } : {}
  const forbiddenPlaces = [['unix', at, [at]]]
  // Where anybody may listen at port 80, nothing is forbidden about it.
  if (Number(readFileSync('/proc/sys/net/ipv4/ip_unprivileged_port_start')) > 80) {
    forbiddenPlaces.push(['tcp', '127.0.0.1:80', [80, '127.0.0.1']], ['tcp', ':80', [80]])
  }
  // The folder of the test is closed to others at first.
  execFileSync('chmod', ['755', folder])
  const { stdout, stderr } = await run(
    `const fields = ({ code, errno, syscall, address, port, message }) => ({ code, errno, syscall, address, port, message })
    for (const [network, address, where] of ${JSON.stringify(forbiddenPlaces)}) {
      let ours
      try { createListener(network, address) } catch (error) { ours = fields(error) }
      const server = net.createServer()
      server.listen(...where)
      const [error] = await once(server, 'error')
      console.log(JSON.stringify([ours, fields(error)]))
    }`,
    unprivileged,
  )
  const lines = stdout.trim().split('\n')
  t.is(lines.length, forbiddenPlaces.length, stderr)
  for (const line of lines) {
    const [ours, theirs] = JSON.parse(line)
    t.is(ours.code, 'EACCES')
    t.deepEqual(ours, theirs)
  }
})

// ---- unlink

/** A socket file that nobody listens at. */
async function stale() {
  const at = path()
  const { code } = await run(
    `net.createServer().listen(${JSON.stringify(at)}, () => process.kill(process.pid, 'SIGKILL'))`,
  )
  if (code !== null || !statSync(at).isSocket()) throw new Error('The program has not died')
  return at
}

test('a stale unix path is in use, unless unlink takes it', async (t) => {
  const at = await stale()
  t.is(failure('unix', at).code, 'EADDRINUSE')
  t.is(failure('unix', at, { unlink: false }).code, 'EADDRINUSE')
  const listener = createListener('unix', at, { unlink: true })
  const socket = net.connect(at)
  await once(socket, 'connect')
  socket.destroy()
  listener.close()
})

test('unlink leaves the socket of a live server', async (t) => {
  const at = path()
  const server = await netServer(at)
  t.is(failure('unix', at, { unlink: true }).code, 'EADDRINUSE')
  const socket = net.connect(at)
  await once(socket, 'connect')
  socket.destroy()
  server.close()
})

test('unlink leaves the socket of a live server whose backlog is full', async (t) => {
  const at = path()
  const listener = createListener('unix', at, { backlog: 1 })
  const sockets = Array.from({ length: 4 }, () => net.connect(at).on('error', () => undefined))
  await once(sockets[0], 'connect')
  t.is(failure('unix', at, { unlink: true }).code, 'EADDRINUSE')
  t.true(existsSync(at))
  for (const socket of sockets) socket.destroy()
  listener.close()
})

test('unlink leaves a regular file, and a link to a socket', async (t) => {
  const file = path()
  writeFileSync(file, 'mine')
  t.is(failure('unix', file, { unlink: true }).code, 'EADDRINUSE')
  t.is(readFileSync(file, 'utf8'), 'mine')
  const link = path()
  const target = await stale()
  execFileSync('ln', ['-s', target, link])
  t.is(failure('unix', link, { unlink: true }).code, 'EADDRINUSE')
  t.true(existsSync(target))
  t.is(readlinkSync(link), target)
})

test('unlink of nothing is no error', (t) => {
  t.notThrows(() => createListener('unix', path(), { unlink: true }).close())
})

// ---- options

test('listeners with reusePort share a port, others do not', (t) => {
  const first = createListener('tcp', '127.0.0.1:0', { reusePort: true })
  const address = `127.0.0.1:${first.address().port}`
  const second = createListener('tcp', address, { reusePort: true })
  t.is(failure('tcp', address).code, 'EADDRINUSE')
  first.close()
  second.close()
})

test('the backlog is what was asked for', async (t) => {
  const listener = createListener('tcp', '127.0.0.1:0', { backlog: 17 })
  const row = execFileSync('ss', ['-Hltn', `sport = :${listener.address().port}`], { encoding: 'utf8' })
  t.is(row.trim().split(/\s+/)[2], '17')
  listener.close()
})

test('keepAlive, recvBuffer and sendBuffer hold for the connections', async (t) => {
  const listener = createListener('tcp', '127.0.0.1:0', {
    keepAlive: true,
    recvBuffer: 20_000,
    sendBuffer: 30_000,
  })
  const loop = createEventLoop(echo)
  const served = loop.serve(listener)
  const { port } = listener.address()
  const socket = await connect(port)
  await until(() => loop.connections === 1 || (socket.write('x'), false))
  const row = execFileSync('ss', ['-Htnom', `sport = :${port}`], { encoding: 'utf8' })
  t.regex(row, /timer:\(keepalive/)
  // The kernel doubles both.
  t.regex(row, /rb40000,.*tb60000,/)
  socket.destroy()
  await loop.shutdown()
  await served
})

const wrong = [
  [{ backlog: 0 }, 'ERR_OUT_OF_RANGE'],
  [{ backlog: -1 }, 'ERR_OUT_OF_RANGE'],
  [{ backlog: NaN }, 'ERR_OUT_OF_RANGE'],
  [{ backlog: 1.5 }, 'ERR_OUT_OF_RANGE'],
  [{ backlog: 2 ** 53 }, 'ERR_OUT_OF_RANGE'],
  [{ backlog: '5' }, 'ERR_INVALID_ARG_TYPE'],
  [{ recvBuffer: -1 }, 'ERR_OUT_OF_RANGE'],
  [{ sendBuffer: 2 ** 53 }, 'ERR_OUT_OF_RANGE'],
  [{ noDelay: 1 }, 'ERR_INVALID_ARG_TYPE'],
  [{ keepAlive: 'yes' }, 'ERR_INVALID_ARG_TYPE'],
  [{ reusePort: null }, 'ERR_INVALID_ARG_TYPE'],
  [{ ipv6Only: 0 }, 'ERR_INVALID_ARG_TYPE'],
  [{ unlink: 'true' }, 'ERR_INVALID_ARG_TYPE'],
  [{ backlogs: 5 }, 'ERR_INVALID_ARG_VALUE'],
  [null, 'ERR_INVALID_ARG_TYPE'],
  ['backlog', 'ERR_INVALID_ARG_TYPE'],
]

for (const [options, code] of wrong) {
  test(`the options ${
    typeof options === 'string'
      ? options
      : Object.entries(options ?? {})
          .flat()
          .join(' ') || null
  } are ${code}`, (t) => {
    const at = path()
    t.throws(() => createListener('unix', at, options), { code })
    t.throws(() => listen('unix', at, options), { code })
    t.false(existsSync(at))
  })
}

test('options that are undefined are not given', (t) => {
  const listener = createListener('tcp', '127.0.0.1:0', {
    backlog: undefined,
    noDelay: undefined,
    recvBuffer: undefined,
  })
  listener.close()
  t.pass()
})
