// What runs on sockets runs on connection.toDuplex(): http, curl, tls, WebSockets, a database.

import { execFile, spawn, spawnSync } from 'node:child_process'
import { createHash, randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { createWriteStream, existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import http from 'node:http'
import http2 from 'node:http2'
import https from 'node:https'
import net from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { buffer, text } from 'node:stream/consumers'
import { finished, pipeline } from 'node:stream/promises'
import tls from 'node:tls'
import { promisify } from 'node:util'
import test from 'ava'
import { WebSocket, WebSocketServer } from 'ws'
import { dialConnection } from '../index.js'
import { leaksNothing, outcome, connect, serve, settled, take, until } from './fixtures/peer.mjs'

const MIB = 1 << 20
const execute = promisify(execFile)
const folder = mkdtempSync(join(tmpdir(), 'netpoll-'))
test.after.always(() => rmSync(folder, { recursive: true }))

/** Tests that need a program which is not here are skipped, and say so. */
function having(program, ...args) {
  const isHere = spawnSync(program, args).status === 0
  return isHere ? test : (title, ...rest) => test.skip(`${title} (there is no ${program})`, ...rest)
}

/** A server of Node on a port of this package: each connection is its 'connection' event. */
function serveWith(t, server, options) {
  const { port, loop, stop } = serve(undefined, {
    allowHalfOpen: true,
    onConnect: (connection) => void server.emit('connection', connection.toDuplex()),
    ...options,
  })
  t.teardown(stop)
  return { port, loop }
}

async function dial(port, options) {
  const connection = await dialConnection('tcp', `127.0.0.1:${port}`, { allowHalfOpen: true, ...options })
  return connection.toDuplex()
}

/** An http server that answers with what it was sent and where it came from, or with as many bytes as it is asked for. */
function echoServer() {
  return http.createServer((request, response) => {
    const size = Number(new URL(request.url, 'http://x').searchParams.get('size'))
    response.setHeader('from', request.socket.remoteAddress)
    if (size !== 0) response.end(Buffer.alloc(size, 7))
    else request.pipe(response)
  })
}

/** An agent of http whose sockets are Duplexes, and how many it has made. */
function duplexAgent(options) {
  const agent = new http.Agent({ keepAlive: true, ...options })
  agent.made = 0
  agent.createConnection = ({ port }, made) => {
    agent.made++
    dial(port).then((duplex) => made(null, duplex), made)
  }
  return agent
}

async function ask(options, body = '') {
  const request = http.request({ host: '127.0.0.1', ...options })
  request.end(body)
  const [response] = await once(request, 'response')
  return { status: response.statusCode, headers: response.headers, body: await buffer(response) }
}

function hash(bytes) {
  return createHash('sha256').update(bytes).digest('hex')
}

// ---- http

test('fetch() is answered by an http server, again and again, and byte for byte', async (t) => {
  const { port } = serveWith(t, echoServer())
  for (const size of [0, 1, 1000, 100_000, 16 * MIB]) {
    const body = randomBytes(size)
    const response = await fetch(`http://127.0.0.1:${port}/`, { method: 'POST', body })
    t.is(response.headers.get('from'), '127.0.0.1')
    t.is(hash(Buffer.from(await response.arrayBuffer())), hash(body))
  }
  const responses = await Promise.all(
    Array.from({ length: 50 }, () => fetch(`http://127.0.0.1:${port}/?size=100000`)),
  )
  for (const response of responses) t.is((await response.arrayBuffer()).byteLength, 100_000)
})

having('curl', '--version')('curl uploads and downloads a file', async (t) => {
  const { port, loop } = serveWith(t, echoServer())
  const sent = randomBytes(32 * MIB)
  const [there, back] = [join(folder, 'there'), join(folder, 'back')]
  writeFileSync(there, sent)
  const url = `http://127.0.0.1:${port}/`
  await execute('curl', ['--silent', '--show-error', '--fail', '--data-binary', `@${there}`, '-o', back, url])
  t.is(hash(readFileSync(back)), hash(sent))
  const { stdout } = await execute('curl', [
    '--silent',
    '--fail',
    '--data',
    'a',
    url,
    '--next',
    '--data',
    'b',
    url,
  ])
  t.is(stdout, 'ab')
  await until(() => loop.connections === 0)
})

test('a malformed request is answered by 400, although the server destroys its socket at once', async (t) => {
  const { port, loop } = serveWith(t, http.createServer())
  const socket = await connect(port)
  socket.write('NO HTTP\r\n\r\n')
  const { bytes, code } = await outcome(socket)
  t.regex(String(bytes), /^HTTP\/1\.1 400 Bad Request/)
  t.is(code, '')
  await until(() => loop.connections === 0)
})

test('an http server closes a connection that has been idle for its keepAliveTimeout', async (t) => {
  const server = http.createServer({ keepAliveTimeout: 1 }, (request, response) => response.end('x'))
  const { port, loop } = serveWith(t, server)
  const socket = await connect(port)
  socket.write('GET / HTTP/1.1\r\nHost: x\r\n\r\n')
  t.regex(String((await outcome(socket)).bytes), /x$/)
  socket.destroy()
  await until(() => loop.connections === 0)
})

test('an http server that closes closes idle connections and ends the others after their answer', async (t) => {
  let answer
  const server = http.createServer((request, response) => (answer = () => response.end('late')))
  // It keeps track of its connections only when it listens.
  server.emit('listening')
  t.teardown(() => server.close())
  const { port, loop } = serveWith(t, server)
  const busy = await connect(port)
  busy.write('GET / HTTP/1.1\r\nHost: x\r\n\r\n')
  await until(() => answer)
  server.closeIdleConnections()
  await settled()
  t.is(loop.connections, 1)
  answer()
  await take(busy, 10)
  server.closeAllConnections()
  await until(() => loop.connections === 0)
})

test('an http client runs on dialed connections, and its agent uses them again', async (t) => {
  const server = echoServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => server.close())
  const { port } = server.address()
  const agent = duplexAgent({ timeout: 60_000 })
  t.teardown(() => agent.destroy())
  for (const size of [1, 100, 5 * MIB]) {
    const sent = randomBytes(size)
    const { body } = await ask({ port, agent, method: 'POST' }, sent)
    t.is(hash(body), hash(sent))
  }
  t.is(agent.made, 1)
  const answers = await Promise.all(
    Array.from({ length: 10 }, () => ask({ port, agent, path: '/?size=65536' })),
  )
  for (const { body } of answers) t.is(body.length, 65_536)
  t.true(agent.made >= 10)
})

test('the timeout of an http request is that of its Duplex', async (t) => {
  const server = http.createServer(() => undefined)
  const { port } = serveWith(t, server)
  const agent = duplexAgent()
  t.teardown(() => agent.destroy())
  const request = http.request({ host: '127.0.0.1', port, agent, timeout: 50 })
  request.on('error', () => undefined)
  request.end()
  await once(request, 'timeout')
  t.false(request.destroyed)
  request.destroy()
  await until(() => request.closed)
})

test('a client that goes away in the midst of an answer ends it, and nothing is left', async (t) => {
  const closed = []
  const server = http.createServer((request, response) => {
    response.on('close', () => closed.push(response.writableFinished))
    const more = () => {
      while (!response.destroyed && response.write(Buffer.alloc(100_000)));
      response.once('drain', more)
    }
    more()
  })
  const { port, loop } = serveWith(t, server)
  for (const end of ['destroy', 'resetAndDestroy']) {
    const socket = await connect(port)
    socket.write('GET / HTTP/1.1\r\nHost: x\r\n\r\n')
    await take(socket, 1000)
    socket[end]()
  }
  await until(() => closed.length === 2 && loop.connections === 0)
  t.deepEqual(closed, [false, false])
})

test('http2 runs on it', async (t) => {
  const server = http2.createServer()
  server.on('stream', (stream) => {
    stream.respond({ ':status': 200 })
    stream.pipe(stream)
  })
  const { port, loop } = serveWith(t, server)
  const duplex = await dial(port)
  const client = http2.connect('http://localhost', { createConnection: () => duplex })
  const sent = Array.from({ length: 5 }, (_, index) => randomBytes(1 + index * 200_000))
  const got = sent.map((bytes) => {
    const stream = client.request({ ':method': 'POST' })
    stream.end(bytes)
    return buffer(stream)
  })
  for (const [index, bytes] of (await Promise.all(got)).entries()) t.is(hash(bytes), hash(sent[index]))
  client.close()
  await until(() => loop.connections === 0)
})

// ---- tls

const [key, certificate] = [join(folder, 'key.pem'), join(folder, 'certificate.pem')]
const made = spawnSync('openssl', [
  ...['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes', '-days', '2'],
  ...[
    '-subj',
    '/CN=localhost',
    '-addext',
    'subjectAltName=DNS:localhost',
    '-keyout',
    key,
    '-out',
    certificate,
  ],
])
const withTls = having('openssl', 'version')
const secrets =
  made.status === 0 ? { key: readFileSync(key), cert: readFileSync(certificate) } : { key: '', cert: '' }
const trust = { ca: secrets.cert, servername: 'localhost' }

withTls('a tls server runs on accepted connections, a tls client on a dialed one', async (t) => {
  const server = tls.createServer({ ...secrets, allowHalfOpen: true }, (socket) => socket.pipe(socket))
  const { port, loop } = serveWith(t, server)
  const sent = randomBytes(16 * MIB)
  const clients = [
    () => tls.connect({ port, host: '127.0.0.1', ...trust }),
    async () => tls.connect({ socket: await dial(port), ...trust }),
  ]
  for (const client of clients) {
    const socket = await client()
    await once(socket, 'secureConnect')
    t.true(socket.authorized)
    socket.end(sent)
    t.is(hash(await buffer(socket)), hash(sent))
  }
  await until(() => loop.connections === 0)
})

withTls('a TLSSocket made of a Duplex by hand is the server of a handshake', async (t) => {
  const accepted = []
  const { port, stop } = serve(undefined, {
    onConnect: (connection) => {
      const socket = new tls.TLSSocket(connection.toDuplex(), { isServer: true, ...secrets })
      accepted.push(socket)
      socket.on('data', (chunk) => socket.end(`${chunk}!`))
    },
  })
  t.teardown(stop)
  const socket = tls.connect({ port, host: '127.0.0.1', ...trust })
  socket.write('hello')
  t.is(await text(socket), 'hello!')
})

withTls('https is answered, and a client that trusts nobody is no fault of the server', async (t) => {
  const server = https.createServer(secrets, (request, response) => response.end('secret'))
  server.on('tlsClientError', () => undefined)
  // As in net, a half-open socket stays until the handshake's timeout.
  const { port, loop } = serveWith(t, server, { allowHalfOpen: false })
  const get = (options) =>
    new Promise((resolve, reject) => {
      https.get({ port, host: '127.0.0.1', agent: false, ...options }, resolve).on('error', reject)
    })
  t.is(await text(await get(trust)), 'secret')
  await t.throwsAsync(get({}), { code: 'DEPTH_ZERO_SELF_SIGNED_CERT' })
  await until(() => loop.connections === 0)
})

// ---- WebSockets

test('ws is served on accepted connections, and is a client on a dialed one', async (t) => {
  const server = http.createServer()
  const sockets = new WebSocketServer({ server })
  sockets.on('connection', (socket) => {
    socket.on('message', (message, binary) => socket.send(message, { binary }))
  })
  const { port, loop } = serveWith(t, server)
  const duplex = await dial(port)
  for (const options of [{}, { createConnection: () => duplex }]) {
    const client = new WebSocket(`ws://127.0.0.1:${port}/`, options)
    await once(client, 'open')
    for (const sent of [Buffer.from('short'), randomBytes(3 * MIB)]) {
      client.send(sent)
      const [received] = await once(client, 'message')
      t.is(hash(received), hash(sent))
    }
    client.close(1000, 'done')
    const [code, reason] = await once(client, 'close')
    t.deepEqual([code, String(reason)], [1000, 'done'])
  }
  await until(() => loop.connections === 0)
})

// ---- a database

having('redis-server', '--version')('redis answers ten thousand commands in their order', async (t) => {
  const path = join(folder, 'redis')
  const args = ['--port', '0', '--unixsocket', path, '--save', '', '--dir', folder]
  const redis = spawn('redis-server', args, { stdio: 'ignore' })
  t.teardown(() => redis.kill())
  await until(() => existsSync(path), 'redis listens')
  const connection = await dialConnection('unix', path)
  const duplex = connection.toDuplex()
  t.deepEqual([duplex.remoteAddress, duplex.remotePort, duplex.address()], [undefined, undefined, {}])
  for (let i = 0; i < 10_000; i++) duplex.write('*2\r\n$4\r\nINCR\r\n$1\r\nn\r\n')
  duplex.write('*1\r\n$4\r\nQUIT\r\n')
  const expected = Array.from({ length: 10_000 }, (_, index) => `:${index + 1}\r\n`).join('')
  t.is(await text(duplex), `${expected}+OK\r\n`)
})

// ---- and of all of them nothing stays

test('a file goes from a socket of net through a Duplex into a file', async (t) => {
  const sent = randomBytes(8 * MIB)
  const path = join(folder, 'received')
  const done = new Promise((resolve) => {
    const { port, stop } = serve(undefined, {
      onConnect: (connection) => void pipeline(connection.toDuplex(), createWriteStream(path)).then(resolve),
      allowHalfOpen: true,
    })
    t.teardown(stop)
    net.connect(port, '127.0.0.1').end(sent)
  })
  await done
  t.is(hash(readFileSync(path)), hash(sent))
})

test.serial('requests, answered and broken off, leave neither descriptors nor blocks behind', async (t) => {
  const server = echoServer()
  const { port, loop } = serveWith(t, server)
  await leaksNothing(async () => {
    const agent = duplexAgent()
    for (let i = 0; i < 5; i++) await ask({ port, agent, method: 'POST' }, Buffer.alloc(200_000))
    agent.destroy()
    const duplex = await dial(port)
    duplex.write('GET /?size=20000000 HTTP/1.1\r\nHost: x\r\n\r\n')
    await take(duplex, 1)
    duplex.destroy()
    await finished(duplex, { error: false }).catch(() => undefined)
    await until(() => loop.connections === 0)
  })
  t.pass()
})
