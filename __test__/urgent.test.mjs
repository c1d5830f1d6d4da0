// Reads that end although more is there: at the mark of urgent data, and behind descriptors that came along.

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test from 'ava'
import { createEventLoop, createListener } from '../index.js'
import { descriptors, serve, settled, until } from './fixtures/peer.mjs'

/** A peer that does what the Python program says, with the server's address as argument. */
function peer(t, program, address) {
  const child = spawn('python3', ['-c', `import socket, sys\n${program}`, `${address}`], { stdio: 'inherit' })
  t.teardown(() => void child.kill())
  return once(child, 'exit')
}

/** A handler that only looks: consuming would change nothing about what the poll reads. */
function gather() {
  const got = { text: '' }
  const onRequest = ({ reader }) => void (got.text += reader.readString(reader.length))
  return { got, onRequest }
}

test('what a peer sends behind urgent data is delivered at once; the urgent byte is none of the stream', async (t) => {
  const { got, onRequest } = gather()
  const { port, stop } = serve(onRequest)
  t.teardown(stop)
  const program = `
s = socket.create_connection(('127.0.0.1', int(sys.argv[1])))
s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
for i in range(200):
    s.send(b'before%03d;' % i)
    s.send(b'!', socket.MSG_OOB)
    s.send(b'behind%03d;' % i)
s.send(b'end')
s.recv(1)`
  void peer(t, program, port)
  await until(() => got.text.endsWith('end'), 'all is delivered while the connection rests')
  const expected = Array.from({ length: 200 }, (_, i) => {
    const number = `${i}`.padStart(3, '0')
    return `before${number};behind${number};`
  })
  // Of two urgent bytes that are pending at once, the kernel leaves the first in the stream.
  t.is(got.text.replaceAll('!', ''), `${expected.join('')}end`)
})

test.serial('what a peer sends behind descriptors is delivered at once, and those are closed', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'netpoll-urgent-'))
  t.teardown(() => rmSync(folder, { recursive: true }))
  const path = join(folder, 'socket')
  const { got, onRequest } = gather()
  const loop = createEventLoop(onRequest)
  const served = loop.serve(createListener('unix', path))
  await settled()
  const before = descriptors()
  const program = `
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
for i in range(200):
    socket.send_fds(s, [b'with'], [0, 1])
    s.send(b'out;')
s.send(b'end')
s.recv(1)`
  const exit = peer(t, program, path)
  await until(() => got.text.endsWith('end'), 'all is delivered while the connection rests')
  t.is(got.text, `${'without;'.repeat(200)}end`)
  t.true(descriptors() <= before + 1, 'the connection alone has a descriptor')
  await loop.shutdown()
  await served
  t.deepEqual(await exit, [0, null])
})
