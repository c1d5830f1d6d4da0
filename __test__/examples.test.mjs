// The examples as their readers run them: programs of their own, spoken to over sockets.

import { spawn } from 'node:child_process'
import { createHash, randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { connect, createServer } from 'node:net'
import { buffer, text } from 'node:stream/consumers'
import test from 'ava'

const project = new URL('..', import.meta.url).pathname

test('echo gives every byte back, also those sent just before the end', async (t) => {
  const echo = await serve(t, 'echo.mjs')
  const sent = randomBytes(8 * 1024 * 1024)
  const socket = connect(echo.port, '127.0.0.1')
  socket.end(sent)
  t.is(hash(await buffer(socket)), hash(sent))
})

for (const signal of ['SIGINT', 'SIGTERM']) {
  test(`echo ends with code 0 on ${signal}, also with a client connected`, async (t) => {
    const echo = await serve(t, 'echo.mjs')
    const socket = connect(echo.port, '127.0.0.1')
    socket.write('here')
    await once(socket, 'data')
    echo.child.kill(signal)
    t.deepEqual(await once(echo.child, 'exit'), [0, null])
  })
}

test('echo says when its port is in use', async (t) => {
  const first = await serve(t, 'echo.mjs')
  const second = run(t, process.execPath, ['examples/echo.mjs', String(first.port)])
  const [message, [code]] = await Promise.all([text(second.stderr), once(second, 'exit')])
  t.is(message, `echo: port ${first.port} is in use; choose another one: PORT=8081 npm start\n`)
  t.is(code, 1)
})

test('echo shows its rates on a terminal, and none elsewhere', async (t) => {
  const rates = /\d+ connections, \d+ requests\/s, \d+\.\d MB\/s/
  // With exec no shell stands between: dash, unlike bash, stays, and would die of the Ctrl-C itself.
  const command = `exec ${process.execPath} examples/echo.mjs 0`
  const terminal = run(t, 'script', ['-qec', command, '/dev/null'], 'pipe')
  await printed(terminal, rates)
  terminal.stdin.write('\x03') // Ctrl-C, as a terminal has it
  t.deepEqual(await once(terminal, 'exit'), [0, null])

  const piped = await serve(t, 'echo.mjs')
  piped.child.kill('SIGINT')
  t.notRegex(await text(piped.child.stdout), rates)
})

test('the RPC client gets its answers in order, and the error of an unknown method', async (t) => {
  const { port } = await serve(t, 'rpc.mjs')
  const client = run(t, process.execPath, ['examples/rpc-client.mjs', String(port)])
  t.is(await text(client.stdout), '3\nhello\nerror: no method divide\n')
})

test('the RPC server finds frames however they are cut', async (t) => {
  const { port } = await serve(t, 'rpc.mjs')
  const frames = Buffer.concat([
    frame({ method: 'echo', params: ['ä'] }),
    frame({ method: 'add', params: [2, 3] }),
  ])
  const socket = connect({ port, host: '127.0.0.1', noDelay: true })
  for (const byte of frames) {
    socket.write(Buffer.of(byte))
    await new Promise(setImmediate)
  }
  socket.end()
  t.deepEqual(await buffer(socket), Buffer.concat([frame({ result: 'ä' }), frame({ result: 5 })]))
})

test('the RPC server hangs up on a frame that is too long, and serves on', async (t) => {
  const { port } = await serve(t, 'rpc.mjs')
  const rude = connect(port, '127.0.0.1').on('error', () => {})
  rude.write(Buffer.of(0xff, 0xff, 0xff, 0xff))
  await once(rude, 'close')
  const socket = connect(port, '127.0.0.1')
  socket.end(frame({ method: 'add', params: [1, 1] }))
  t.deepEqual(await buffer(socket), frame({ result: 2 }))
})

test('the multiplexed RPC client gets all its answers, each when it is done', async (t) => {
  const { child, port } = await serve(t, 'mux.mjs')
  const client = run(t, process.execPath, ['examples/mux-client.mjs', String(port)])
  const [output, [code]] = await Promise.all([text(client.stdout), once(client, 'exit')])
  const [first, second, ...rest] = output.trim().split('\n')
  t.deepEqual([first, second], ['add: 3', 'divide: error: no method divide'], 'not held up by the slow one')
  t.deepEqual(rest.toSorted(), ['a thousand sums: 1998', 'later: hello'])
  t.is(code, 0)
  child.kill('SIGINT')
  t.deepEqual(await once(child, 'exit'), [0, null])
})

test('calls of the multiplexed RPC client fail when the connection ends, and without a server it says so', async (t) => {
  const server = createServer((socket) => void socket.once('data', () => socket.resetAndDestroy()))
  await once(server.listen(0, '127.0.0.1'), 'listening')
  const { port } = server.address()
  const lost = run(t, process.execPath, ['examples/mux-client.mjs', String(port)])
  const [output, [code]] = await Promise.all([text(lost.stdout), once(lost, 'exit')])
  t.regex(output, /^later: error: .*ECONNRESET/m)
  t.regex(output, /^a thousand sums: error: .*ECONNRESET/m)
  t.is(code, 1)
  await once(server.close(), 'close')
  const alone = run(t, process.execPath, ['examples/mux-client.mjs', String(port)])
  t.regex(await text(alone.stderr), /ECONNREFUSED/)
})

test('the multiplexed RPC server answers what is done first, and all of it to a client that has finished', async (t) => {
  const { port } = await serve(t, 'mux.mjs')
  const socket = connect({ port, host: '127.0.0.1', allowHalfOpen: true })
  const quick = Array.from({ length: 3000 }, (_, index) => index + 1)
  const calls = [numbered(0, { method: 'later', params: [100, 'late'] })]
  for (const number of quick) calls.push(numbered(number, { method: 'add', params: [number, 1] }))
  socket.end(Buffer.concat(calls))
  const bytes = await buffer(socket)
  t.is(bytes.readUInt32BE(4), 1, 'the one that was called first takes its time')
  const late = numbered(0, { result: 'late' })
  const at = bytes.indexOf(late)
  const inOrder = Buffer.concat([bytes.subarray(0, at), bytes.subarray(at + late.length)])
  t.deepEqual(inOrder, Buffer.concat(quick.map((number) => numbered(number, { result: number + 1 }))))
})

test('the multiplexed RPC server hangs up on a frame that is too long, and serves on', async (t) => {
  const { port } = await serve(t, 'mux.mjs')
  const rude = connect(port, '127.0.0.1').on('error', () => {})
  rude.write(Buffer.concat([numbered(1, { method: 'later', params: [50, 1] }), Buffer.alloc(8, 0xff)]))
  await once(rude.resume(), 'close')
  const socket = connect(port, '127.0.0.1')
  socket.end(numbered(2, { method: 'add', params: [1, 1] }))
  t.deepEqual(await buffer(socket), numbered(2, { result: 2 }))
})

test('the relay joins two clients of a room, both ways, until both have ended', async (t) => {
  const { port } = await serve(t, 'proxy.mjs')
  const [left, right] = [randomBytes(4 * 1024 * 1024), randomBytes(4 * 1024 * 1024)]
  const first = connect({ port, host: '127.0.0.1', allowHalfOpen: true })
  const second = connect({ port, host: '127.0.0.1', allowHalfOpen: true })
  for (const socket of [first, second]) socket.write('room\n')
  first.end(left)
  t.is(hash(await untilEnd(second)), hash(left), 'the end of one side reaches the other')
  second.end(right) // which can still answer
  t.is(hash(await buffer(first)), hash(right))
})

for (const signal of ['SIGINT', 'SIGTERM']) {
  test(`the HTTP server answers, and ends with code 0 on ${signal}, also with a client connected`, async (t) => {
    const { child, port } = await serve(t, 'http.mjs')
    const url = `http://127.0.0.1:${port}/`
    t.is(await (await fetch(url)).text(), 'Hello 127.0.0.1\n')
    const body = randomBytes(1024 * 1024)
    const response = await fetch(url, { method: 'POST', body })
    t.is(hash(Buffer.from(await response.arrayBuffer())), hash(body))
    const socket = connect(port, '127.0.0.1')
    await once(socket, 'connect')
    child.kill(signal)
    t.deepEqual(await once(child, 'exit'), [0, null])
    socket.destroy()
  })
}

function frame(body) {
  const bytes = Buffer.from(JSON.stringify(body))
  const head = Buffer.alloc(4)
  head.writeUInt32BE(bytes.length)
  return Buffer.concat([head, bytes])
}

function numbered(number, body) {
  const bytes = Buffer.from(JSON.stringify(body))
  const head = Buffer.alloc(8)
  head.writeUInt32BE(4 + bytes.length, 0)
  head.writeUInt32BE(number, 4)
  return Buffer.concat([head, bytes])
}

/** All that comes before the peer's end. Unlike a consumer of streams it leaves the socket open for writing. */
async function untilEnd(socket) {
  const chunks = []
  socket.on('data', (chunk) => chunks.push(chunk))
  await once(socket, 'end')
  return Buffer.concat(chunks)
}

function hash(bytes) {
  return createHash('sha256').update(bytes).digest('hex')
}

/** Starts an example on a free port, and waits until it says which. */
async function serve(t, example) {
  const child = run(t, process.execPath, [`examples/${example}`, '0'])
  const [, port] = await printed(child, /127\.0\.0\.1:(\d+)/)
  return { child, port: Number(port) }
}

function run(t, command, args, stdin = 'ignore') {
  const child = spawn(command, args, { cwd: project, stdio: [stdin, 'pipe', 'pipe'] })
  t.teardown(() => child.kill('SIGKILL'))
  return child
}

/** Waits for a piece of output; rejects with all there was when the program ends without it. */
function printed({ stdout, stderr }, pattern) {
  return new Promise((resolve, reject) => {
    let output = ''
    const read = (chunk) => {
      output += chunk
      const match = pattern.exec(output)
      if (match) resolve(match)
    }
    stdout.on('data', read).on('end', () => reject(new Error(`printed only: ${output}`)))
    stderr.on('data', read)
  })
}
