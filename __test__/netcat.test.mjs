// Programs that know nothing of this package as clients: netcat and socat send a file and get it back.

import { spawn, spawnSync } from 'node:child_process'
import { createHash, randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { closeSync, mkdtempSync, openSync, rmSync, writeSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test from 'ava'
import { createEventLoop, createListener, stats } from '../index.js'
import { descriptors, serve, settled, until } from './fixtures/peer.mjs'

const MIB = 1 << 20
const SIZE = 100 * MIB

const folder = mkdtempSync(join(tmpdir(), 'netpoll-'))
const file = join(folder, 'sent')
const sent = makeFile()

// What an environment opens once is open before anything is counted.
test.before(settled)
test.after.always(() => rmSync(folder, { recursive: true }))

const echoes = {
  'a slice that is handed on': ({ reader, writer }) => {
    writer.append(reader.slice(reader.length))
    writer.flush()
  },
  'a view that is written': ({ reader, writer }) => {
    writer.writeBinary(reader.next(reader.length))
    writer.flush()
  },
  'a copy, and a wait for the kernel': async (connection) => {
    const { reader, writer } = connection
    writer.writeBinary(reader.readBinary(reader.length))
    writer.flush()
    await connection.flushed()
  },
}

for (const [kind, echo] of Object.entries(echoes)) {
  having('nc')(`nc gets its 100 MiB back after it has half-closed: ${kind}`, async (t) => {
    const before = descriptors()
    const server = serve(echo)
    const client = run(t, 'nc', ['-N', '127.0.0.1', server.port])
    t.deepEqual(await received(client), sent)
    t.deepEqual(await client.exit, [0, null])
    await until(() => server.loop.connections === 0, 'the connection has ended by itself')
    await server.stop()
    await until(() => descriptors() === before, `${descriptors()} descriptors, ${before} before`)
  })
}

having('nc')('nc gets its 100 MiB back while it keeps its side open', async (t) => {
  const server = serve(echoes['a slice that is handed on'])
  const client = run(t, 'nc', ['127.0.0.1', server.port])
  t.deepEqual(await received(client, SIZE), sent)
  t.is(server.loop.connections, 1)
  client.kill()
  await until(() => server.loop.connections === 0)
  await server.stop()
})

having('nc')('nc that half-closes gets an answer that is made of all it has sent', async (t) => {
  const server = serve(async (connection) => {
    const hash = createHash('sha256')
    for await (const bytes of chunks(connection)) hash.update(bytes)
    connection.writer.writeString(hash.digest('hex'))
    connection.writer.flush()
  })
  const client = run(t, 'nc', ['-N', '127.0.0.1', server.port])
  const output = []
  for await (const chunk of client.stdout) output.push(chunk)
  t.is(Buffer.concat(output).toString(), sent.hash)
  await server.stop()
})

having('nc')('nc gets its 100 MiB back through a unix socket', async (t) => {
  const path = join(folder, 'socket')
  const loop = createEventLoop(echoes['a slice that is handed on'])
  const served = loop.serve(createListener('unix', path))
  const client = run(t, 'nc', ['-N', '-U', path])
  t.deepEqual(await received(client), sent)
  await loop.shutdown()
  await served
})

having('socat')('socat gets its 100 MiB back after it has half-closed', async (t) => {
  const server = serve(echoes['a slice that is handed on'])
  const client = run(t, 'socat', ['-t', '60', '-', `TCP:127.0.0.1:${server.port}`])
  t.deepEqual(await received(client), sent)
  t.deepEqual(await client.exit, [0, null])
  await server.stop()
})

having('socat')('socat gets its 100 MiB back while it keeps its side open', async (t) => {
  const server = serve(echoes['a view that is written'])
  const client = run(t, 'socat', ['-t', '60', '-', `TCP:127.0.0.1:${server.port},shut-none`])
  t.deepEqual(await received(client, SIZE), sent)
  client.kill()
  await until(() => server.loop.connections === 0)
  await server.stop()
})

test.serial('after all of them no block is out but those of the next read and write', async (t) => {
  await until(() => stats().connections === 0)
  t.true(stats().bytesOut <= 4 * MIB, `${stats().bytesOut}`)
})

/** Some systems come without one of them. */
function having(program) {
  const missing = spawnSync(program, ['-h']).error?.code === 'ENOENT'
  return missing ? test.serial.skip : test.serial
}

function makeFile() {
  const fd = openSync(file, 'w')
  const hash = createHash('sha256')
  for (let size = 0; size < SIZE; size += MIB) {
    const bytes = randomBytes(MIB)
    hash.update(bytes)
    writeSync(fd, bytes)
  }
  closeSync(fd)
  return { size: SIZE, hash: hash.digest('hex') }
}

/** Starts a client that sends the file. */
function run(t, program, args) {
  const stdin = openSync(file)
  const child = spawn(program, args.map(String), { stdio: [stdin, 'pipe', 'inherit'] })
  closeSync(stdin)
  child.exit = once(child, 'exit')
  t.teardown(() => child.kill('SIGKILL'))
  return child
}

/** What the client has received at its end, or when it has received `size` bytes. */
async function received({ stdout }, size = Infinity) {
  const hash = createHash('sha256')
  let count = 0
  for await (const chunk of stdout) {
    hash.update(chunk)
    if ((count += chunk.length) >= size) break
  }
  return { size: count, hash: hash.digest('hex') }
}

/** Copies of what comes, until the peer has ended. */
async function* chunks({ reader }) {
  while (!reader.ended || reader.length !== 0) {
    await reader.waitRead(1).catch(() => undefined)
    const bytes = reader.readBinary(reader.length)
    reader.release()
    yield bytes
  }
}
