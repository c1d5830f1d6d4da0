// listenerFrom(): listening sockets that another process has opened.

import { once } from 'node:events'
import { closeSync, existsSync, mkdtempSync, openSync, rmSync } from 'node:fs'
import net from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import test from 'ava'
import { createEventLoop, createListener, listenerFrom } from '../index.js'
import { connect, descriptors, outcome, serve, take, until } from './fixtures/peer.mjs'
import { start } from './fixtures/program.mjs'

const folder = mkdtempSync(join(tmpdir(), 'netpoll-inherited-'))
test.after.always(() => rmSync(folder, { recursive: true }))

/** A program that serves descriptor 3, tells its address, and stops when its stdin ends. */
const PROGRAM = `
  import { listenerFrom } from '${new URL('../index.js', import.meta.url).pathname}'
  const listener = listenerFrom(3)
  const loop = createEventLoop(({ reader, writer }) => {
    writer.writeString('child:')
    writer.append(reader)
    writer.flush()
  })
  const served = loop.serve(listener)
  console.log(JSON.stringify(listener.address()))
  process.stdin.resume()
  await once(process.stdin, 'end')
  await loop.shutdown()
  await served
`

/** The child that has inherited `fd`, its answer to where it listens, and how it is ended. */
async function inherit(t, fd) {
  const child = start(PROGRAM, { stdio: ['pipe', 'pipe', 'inherit', fd] })
  t.teardown(() => void child.kill())
  const [line] = await once(createInterface(child.stdout), 'line')
  const stop = async () => {
    const exit = once(child, 'exit')
    child.stdin.end()
    return exit
  }
  return { address: JSON.parse(line), stop }
}

async function answer(socket) {
  socket.write('hello')
  return String(await take(socket, 11))
}

test("a child serves the listening socket of its parent's net.Server", async (t) => {
  const parent = net.createServer().listen(0, '127.0.0.1')
  await once(parent, 'listening')
  const { port, family } = parent.address()
  const child = await inherit(t, parent._handle.fd)
  // It keeps listening although the parent no longer does.
  parent.close()
  t.deepEqual(child.address, { address: '127.0.0.1', port, family })
  for (let i = 0; i < 3; i++) {
    const socket = await connect(port)
    t.is(await answer(socket), 'child:hello')
    socket.destroy()
  }
  t.deepEqual(await child.stop(), [0, null])
})

test('a unix path stays when an inherited listener closes, and others listen on at the socket', async (t) => {
  const path = join(folder, 'shared')
  const listener = createListener('unix', path)
  const child = await inherit(t, listener.fd)
  t.is(child.address, path)
  const socket = net.connect(path)
  t.is(await answer(socket), 'child:hello')
  socket.destroy()
  t.deepEqual(await child.stop(), [0, null])
  t.true(existsSync(path))

  const loop = createEventLoop(({ reader, writer }) => {
    writer.append(reader)
    writer.flush()
  })
  const served = loop.serve(listener)
  const late = net.connect(path)
  late.write('parent')
  t.is(String(await take(late, 6)), 'parent')
  late.destroy()
  await loop.shutdown()
  await served
  t.false(existsSync(path))
})

test('an inherited TCP listener that closes leaves the socket to the others, too', async (t) => {
  const listener = createListener('tcp', '127.0.0.1:0')
  const child = await inherit(t, listener.fd)
  t.deepEqual(await child.stop(), [0, null])
  const loop = createEventLoop(({ reader, writer }) => {
    writer.append(reader)
    writer.flush()
  })
  const served = loop.serve(listener)
  const socket = await connect(listener.address().port)
  socket.write('parent')
  t.is(String(await take(socket, 6)), 'parent')
  socket.destroy()
  await loop.shutdown()
  await served
})

test('its connections have TCP_NODELAY', async (t) => {
  const parent = net.createServer().listen(0, '127.0.0.1')
  await once(parent, 'listening')
  const { port } = parent.address()
  const code = `
    import { listenerFrom } from '${new URL('../index.js', import.meta.url).pathname}'
    const loop = createEventLoop(async (connection) => {
      const { fd } = await connection.detach()
      const { spawnSync } = await import('node:child_process')
      const { stdout } = spawnSync('perl', ['-MSocket', '-e',
        'open S, "+<&=", 3; print unpack "i", getsockopt S, 6, 1'], { stdio: ['ignore', 'pipe', 'inherit', fd] })
      console.log(String(stdout))
      process.exit()
    })
    void loop.serve(listenerFrom(3))
    console.log('ready')
  `
  const child = start(code, { stdio: ['ignore', 'pipe', 'inherit', parent._handle.fd] })
  t.teardown(() => void child.kill())
  const lines = createInterface(child.stdout)[Symbol.asyncIterator]()
  t.is((await lines.next()).value, 'ready')
  parent.close()
  const socket = await connect(port)
  socket.write('x')
  t.is((await lines.next()).value, '1')
  socket.destroy()
})

const NUMBERS = [
  [-1, 'ERR_OUT_OF_RANGE'],
  [1.5, 'ERR_OUT_OF_RANGE'],
  [NaN, 'ERR_OUT_OF_RANGE'],
  [2 ** 31, 'ERR_OUT_OF_RANGE'],
  ['3', 'ERR_INVALID_ARG_TYPE'],
  [undefined, 'ERR_INVALID_ARG_TYPE'],
  [null, 'ERR_INVALID_ARG_TYPE'],
  [{}, 'ERR_INVALID_ARG_TYPE'],
]

for (const [fd, code] of NUMBERS) {
  test(`listenerFrom(${typeof fd} ${fd}) is ${code}`, (t) => void t.throws(() => listenerFrom(fd), { code }))
}

test.serial('what does not listen is a system error, and stays open and as it was', async (t) => {
  const server = serve(() => undefined)
  t.teardown(server.stop)
  const socket = await connect(server.port)
  const file = openSync('/dev/null')
  t.teardown(() => closeSync(file))
  await until(() => server.loop.connections === 1)
  const before = descriptors()
  for (const [fd, code] of [
    [socket._handle.fd, 'EINVAL'],
    [file, 'ENOTSOCK'],
    [2 ** 31 - 1, 'EBADF'],
  ]) {
    const error = t.throws(() => listenerFrom(fd), { code, name: 'NetpollError' })
    t.is(error.syscall, 'listen')
    t.true(error.errno < 0)
  }
  t.is(descriptors(), before)
  socket.write('alive')
  socket.end()
  t.is((await outcome(socket)).code, '')
})

test('a descriptor that a Listener has is refused until it is closed', async (t) => {
  const listener = createListener('tcp', '127.0.0.1:0')
  t.throws(() => listenerFrom(listener.fd), { code: 'ERR_NETPOLL_INVALID_STATE' })
  const loop = createEventLoop(() => undefined)
  const served = loop.serve(listener)
  t.throws(() => listenerFrom(listener.fd), { code: 'ERR_NETPOLL_INVALID_STATE' })
  await loop.shutdown()
  await served
})

test('an inherited listener that closes without having served takes its descriptor along', async (t) => {
  const program = `
    import { readdirSync } from 'node:fs'
    import { listenerFrom } from '${new URL('../index.js', import.meta.url).pathname}'
    const count = () => readdirSync('/proc/self/fd').length
    createListener('tcp', '127.0.0.1:0').close()
    const before = count()
    const listener = listenerFrom(3)
    listener.close()
    listener.close()
    console.log(before - count())
  `
  const listener = createListener('tcp', '127.0.0.1:0')
  const child = start(program, { stdio: ['ignore', 'pipe', 'inherit', listener.fd] })
  t.is((await once(createInterface(child.stdout), 'line'))[0], '1')
  listener.close()
})
