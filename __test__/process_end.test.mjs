// Semantics 10: what keeps a process alive, and how one ends, at any moment.

import { once } from 'node:events'
import test from 'ava'
import { connect } from './fixtures/peer.mjs'
import { end, run, start } from './fixtures/program.mjs'

const ECHO = `
  const server = serve((connection) => {
    connection.writer.append(connection.reader)
    connection.writer.flush()
  })
`

/** Echoes through ten of its own clients for as long as it lives. */
const LOADED = `${ECHO}
  let echoed = 0
  for (let i = 0; i < 10; i++) {
    const socket = await connect(server.port)
    socket.on('data', (bytes) => {
      echoed += bytes.length
      socket.write(bytes)
    })
    socket.write(Buffer.alloc(i * 10_000 + 1, i))
  }
`

/** Resolves with the port that a program prints first. */
async function portOf(child) {
  const [text] = await once(child.stdout, 'data')
  return Number(text)
}

// ---- ref and unref

test('a program that only imports the package ends', async (t) => {
  t.deepEqual(await run(''), { code: 0, signal: null, stdout: '', stderr: '' })
})

test('a listener that nobody serves keeps no process alive', async (t) => {
  t.is((await run(`createListener('tcp', '127.0.0.1:0')`)).code, 0)
})

test('a loop that serves keeps its process alive until its listener is closed', async (t) => {
  const child = start(`${ECHO}
    console.log(server.port)
    process.stdin.once('data', () => server.listener.close())
    process.stdin.unref()
    process.on('exit', () => console.log('end'))
  `)
  const port = await portOf(child)
  // It serves at any later time, with no work of its own.
  for (let i = 0; i < 3; i++) {
    const socket = await connect(port)
    socket.write('x')
    await once(socket, 'data')
    socket.destroy()
  }
  t.is(child.exitCode, null)
  const ended = end(child)
  child.stdin.write('close')
  const { code, stdout } = await ended
  t.is(code, 0)
  t.is(stdout, 'end\n')
})

test('unref() of the loop lets its process go, before serve() and after it', async (t) => {
  for (const program of [
    `createEventLoop(() => {}).unref().serve(createListener('tcp', '127.0.0.1:0'))`,
    `serve(() => {}).loop.unref()`,
    `const { loop } = serve(() => {}); loop.unref(); loop.unref(); loop.ref(); loop.unref()`,
  ]) {
    t.deepEqual(await run(program), { code: 0, signal: null, stdout: '', stderr: '' }, program)
  }
})

test('ref() after unref() keeps the process alive', async (t) => {
  const child = start(`${ECHO}
    server.loop.unref().unref().ref()
    console.log(server.port)
  `)
  const ended = end(child)
  const socket = await connect(await portOf(child))
  socket.write('x')
  await once(socket, 'data')
  socket.destroy()
  t.is(child.exitCode, null)
  child.kill()
  t.is((await ended).signal, 'SIGTERM')
})

test('a loop of several listeners keeps its process alive until the last one is closed', async (t) => {
  const { code, stdout } = await run(`
    const loop = createEventLoop(() => {})
    const [one, two] = [createListener('tcp', '127.0.0.1:0'), createListener('tcp', '127.0.0.1:0')]
    loop.serve(one).then(() => {
      console.log('one')
      setTimeout(() => two.close(), 50).unref()
    })
    loop.serve(two).then(() => console.log('two'))
    one.close()
  `)
  t.is(code, 0)
  t.is(stdout, 'one\ntwo\n')
})

test('an open connection keeps its process alive when the listener is closed, until it ends', async (t) => {
  const child = start(`
    const server = serve(undefined, {
      onConnect() {
        server.listener.close()
        // Unless something else keeps the process, it ends before.
        setTimeout(() => console.log('alive'), 50).unref()
      },
      onDisconnect: () => console.log('disconnected'),
    })
    console.log(server.port)
  `)
  const port = await portOf(child)
  const printed = once(child.stdout, 'data')
  const socket = await connect(port)
  t.is(String((await printed)[0]), 'alive\n')
  const ended = end(child)
  socket.end()
  const { code, stdout } = await ended
  t.is(code, 0)
  t.is(stdout, 'disconnected\n')
})

test('unref() of the open connections lets their process go', async (t) => {
  const child = start(`
    const server = serve(undefined, {
      onConnect(connection) {
        server.listener.close()
        connection.unref()
        connection.unref()
        connection.ref()
        connection.unref()
      },
    })
    console.log(server.port)
  `)
  const ended = end(child)
  const socket = await connect(await portOf(child))
  const { code, signal } = await ended
  t.deepEqual([code, signal], [0, null])
  socket.destroy()
})

test('ref() of a connection after its unref() keeps the process alive until it ends', async (t) => {
  const { code, stdout } = await run(`
    const server = serve(undefined, {
      onConnect(connection) {
        server.listener.close()
        connection.unref().ref()
        setTimeout(() => {
          console.log('alive')
          connection.close()
        }, 50).unref()
        connection.closed.then(() => connection.ref().unref().ref())
      },
    })
    const socket = await connect(server.port)
    socket.unref()
  `)
  t.is(code, 0)
  t.is(stdout, 'alive\n')
})

test('what a handler flushed before the process had nothing else to do still goes out', async (t) => {
  const size = 5_000_000
  const child = start(`
    const server = serve((connection) => {
      connection.writer.writeBinary(Buffer.alloc(${size}, 1))
      connection.writer.flush()
      connection.close()
      server.listener.close()
    })
    console.log(server.port)
  `)
  const ended = end(child)
  const socket = await connect(await portOf(child))
  socket.write('go')
  let got = 0
  for await (const bytes of socket) got += bytes.length
  t.is(got, size)
  t.is((await ended).code, 0)
})

// ---- ends

/** Moments under load, spread over many drains: after so many echoed bytes and turns of the loop. */
const MOMENTS = Array.from({ length: 20 }, (_, i) => ({ bytes: (i * 7919 * 131) % 3_000_000, turns: i % 4 }))

async function atEachMoment(t, name, ending, check) {
  for (const { bytes, turns } of MOMENTS) {
    const { code, signal, stderr } = await run(`${LOADED}
      await until(() => echoed >= ${bytes})
      for (let i = 0; i < ${turns}; i++) await new Promise(setImmediate)
      ${ending}
    `)
    check({ code, signal, stderr }, `${name} at ${bytes} bytes, ${turns} turns: ${code} ${signal} ${stderr}`)
  }
}

test('process.exit() under load ends with its code, at any moment', async (t) => {
  await atEachMoment(t, 'exit', 'process.exit(42)', (ended, moment) => {
    t.deepEqual(ended, { code: 42, signal: null, stderr: '' }, moment)
  })
})

test('an uncaught throw under load ends with code 1 and its text, at any moment', async (t) => {
  await atEachMoment(t, 'throw', `setImmediate(() => { throw new Error('on purpose') })`, (ended, moment) => {
    t.deepEqual([ended.code, ended.signal], [1, null], moment)
    t.regex(ended.stderr, /Error: on purpose/)
  })
})

test('SIGTERM under load ends as it does without this package, at any moment', async (t) => {
  await atEachMoment(t, 'SIGTERM', `process.kill(process.pid, 'SIGTERM')`, (ended, moment) => {
    t.deepEqual(ended, { code: null, signal: 'SIGTERM', stderr: '' }, moment)
  })
})

test('a SIGTERM that shuts the loop down ends with code 0', async (t) => {
  const child = start(`${ECHO}
    process.once('SIGTERM', () => server.loop.shutdown())
    console.log(server.port)
  `)
  const ended = end(child)
  const socket = await connect(await portOf(child))
  socket.write('x')
  await once(socket, 'data')
  child.kill('SIGTERM')
  const { code, signal, stderr } = await ended
  t.deepEqual({ code, signal, stderr }, { code: 0, signal: null, stderr: '' })
  socket.destroy()
})

const inside = {
  'process.exit() in a handler': ['process.exit(7)', 7],
  'process.exit() in a handler with views and output pending': [
    'reader.peek(1); writer.writeString("x".repeat(1e6)); writer.flush(); writer.malloc(100); process.exit(7)',
    7,
  ],
  'a throw in a handler without onError': ['throw new Error("on purpose")', 1],
  'a rejection of a handler without onError': ['return Promise.reject(new Error("on purpose"))', 1],
}

for (const [name, [statement, expected]] of Object.entries(inside)) {
  test(`${name} ends the process with ${expected}`, async (t) => {
    const { code, signal, stderr } = await run(`
      const { port } = serve(({ reader, writer }) => { ${statement} })
      const socket = await connect(port)
      socket.write('go')
    `)
    t.deepEqual([code, signal], [expected, null], stderr)
    if (expected === 1) t.regex(stderr, /on purpose/)
  })
}

test('an exit listener that uses what is left of the package harms nothing', async (t) => {
  const { code, signal, stderr } = await run(`${LOADED}
    let connection
    const other = serve((c) => { connection = c })
    const socket = await connect(other.port)
    socket.write('hello')
    await until(() => connection)
    process.on('exit', () => {
      connection.isActive(), connection.bytesRead, connection.remoteAddress
      try { connection.writer.writeString('x'); connection.writer.flush() } catch {}
      server.listener.close()
      connection.close()
      server.loop.shutdown().catch(() => {})
    })
    process.exit(3)
  `)
  t.deepEqual({ code, signal, stderr }, { code: 3, signal: null, stderr: '' })
})

test('the peers of a process that exits see their connections closed', async (t) => {
  const child = start(`${ECHO}
    console.log(server.port)
    process.stdin.once('data', () => process.exit(0))
  `)
  const ended = end(child)
  const socket = await connect(await portOf(child))
  socket.write('x')
  await once(socket, 'data')
  child.stdin.write('go')
  socket.resume()
  await Promise.race([once(socket, 'end'), once(socket, 'close')])
  t.is((await ended).code, 0)
  socket.destroy()
})
