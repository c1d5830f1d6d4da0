// A panic on a poll's thread: its connections fail, loudly and completely, and the process lives on.

import test from 'ava'
import { run } from './fixtures/program.mjs'

/** Each test in a process of its own, whose one poll stays dead. */
const CRASH = `
  process.env.NETPOLL_NUM_LOOPS = '1'
  const { environment } = (await import('node:module')).createRequire('${new URL(import.meta.url).pathname}')('../dist/environment.js')
  const crash = () => environment().native.crash(0)
  const tell = (value) => console.log(JSON.stringify(value))
`

async function told(t, source) {
  const { code, signal, stdout, stderr } = await run(CRASH + source)
  t.deepEqual([code, signal], [0, null], stderr)
  return stdout
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => JSON.parse(line))
}

test('serve() rejects, waits reject, and callbacks run, each once, with POLL_DIED', async (t) => {
  const lines = await told(
    t,
    `
    const events = []
    const server = serve(undefined, {
      onConnect(connection) {
        connection.addCloseCallback(() => events.push('close callback'))
        connection.reader.waitRead(100).catch((error) => events.push('wait ' + error.code))
        connection.writer.writeBinary(Buffer.alloc(30_000_000))
        connection.writer.flush()
        connection.flushed().catch((error) => events.push('flushed ' + error.code))
        connection.closed.then(() => {
          events.push('closed ' + connection.isActive() + connection.readable + connection.writable)
          for (const call of [() => connection.reader.next(1), () => connection.writer.flush(), () => connection.setNoDelay(true)]) {
            try { call(); events.push('no error') } catch (error) { events.push('method ' + error.code) }
          }
        })
      },
      onDisconnect: () => events.push('onDisconnect'),
    })
    server.served.catch((error) => events.push('serve ' + error.code + ' ' + error.name))
    const socket = await connect(server.port)
    await until(() => server.loop.connections === 1)
    crash()
    await until(() => events.length >= 9)
    await new Promise(setImmediate)
    tell({ events: events.sort(), connections: server.loop.connections })
    socket.destroy()
  `,
  )
  t.deepEqual(lines, [
    {
      events: [
        'close callback',
        'closed falsefalsefalse',
        'flushed ERR_NETPOLL_POLL_DIED',
        'method ERR_NETPOLL_POLL_DIED',
        'method ERR_NETPOLL_POLL_DIED',
        'method ERR_NETPOLL_POLL_DIED',
        'onDisconnect',
        'serve ERR_NETPOLL_POLL_DIED NetpollError',
        'wait ERR_NETPOLL_POLL_DIED',
      ],
      connections: 0,
    },
  ])
})

test('a panic is reported on stderr', async (t) => {
  const { stderr } = await run(`${CRASH}
    const server = serve(() => {})
    server.served.catch(() => {})
    crash()
  `)
  t.regex(stderr, /panic/)
})

test('every connection fails, the peers see theirs closed, and the port is free again', async (t) => {
  const [line] = await told(
    t,
    `
    const server = serve((connection) => connection.reader.skip(connection.reader.length))
    const failed = server.served.then(() => 'resolved', (error) => error.code)
    const sockets = []
    for (let i = 0; i < 50; i++) sockets.push(await connect(server.port))
    for (const socket of sockets) socket.write('x')
    await until(() => server.loop.connections === 50)
    const ends = sockets.map((socket) => new Promise((resolve) => socket.on('end', resolve).on('close', resolve).resume()))
    crash()
    await Promise.all(ends)
    const code = await failed
    for (const socket of sockets) socket.destroy()
    const successor = net.createServer().listen(server.port, '127.0.0.1')
    await once(successor, 'listening')
    successor.close()
    tell({ code, connections: server.loop.connections })
  `,
  )
  t.deepEqual(line, { code: 'ERR_NETPOLL_POLL_DIED', connections: 0 })
})

test('no descriptor of the connections and the listener is left', async (t) => {
  const [line] = await told(
    t,
    `
    import { descriptors } from '${new URL('fixtures/peer.mjs', import.meta.url).pathname}'
    const server = serve(() => {})
    server.served.catch(() => {})
    const before = descriptors()
    const sockets = []
    for (let i = 0; i < 20; i++) sockets.push(await connect(server.port))
    await until(() => descriptors() >= before + 40)
    crash()
    await until(() => server.loop.connections === 0)
    for (const socket of sockets) socket.destroy()
    // The listener's has gone too, and what the poll itself had.
    await until(() => descriptors() < before)
    tell('none')
  `,
  )
  t.is(line, 'none')
})

test('a handler that is running is not cut short, and then its connection ends', async (t) => {
  const [events] = await told(
    t,
    `
    const events = []
    let proceed
    const server = serve(async (connection) => {
      events.push('begin')
      await new Promise((resolve) => (proceed = resolve))
      events.push('active ' + connection.isActive())
    }, { onDisconnect: () => events.push('onDisconnect') })
    server.served.catch(() => events.push('serve'))
    const socket = await connect(server.port)
    socket.write('x')
    await until(() => proceed !== undefined)
    crash()
    await until(() => events.includes('serve'))
    proceed()
    await until(() => events.includes('onDisconnect'))
    tell(events)
    socket.destroy()
  `,
  )
  t.deepEqual(events, ['begin', 'serve', 'active false', 'onDisconnect'])
})

test('shutdown() after it resolves, and the process ends by itself', async (t) => {
  const [line] = await told(
    t,
    `
    const server = serve(() => {})
    server.served.catch(() => {})
    const socket = await connect(server.port)
    await until(() => server.loop.connections === 1 || (socket.write('x'), false))
    crash()
    await until(() => server.loop.connections === 0)
    await server.loop.shutdown()
    socket.destroy()
    tell('shut down')
  `,
  )
  t.is(line, 'shut down')
})

test('a process that catches none of it ends with code 1 and the error', async (t) => {
  const { code, signal, stderr } = await run(`${CRASH}
    const server = serve(() => {})
    const socket = await connect(server.port)
    socket.write('x')
    await until(() => server.loop.connections === 1)
    crash()
    await new Promise(() => {})
  `)
  t.deepEqual([code, signal], [1, null])
  t.regex(stderr, /ERR_NETPOLL_POLL_DIED/)
})

test('a listener that is served after it fails with POLL_DIED, and close() frees its port', async (t) => {
  const [line] = await told(
    t,
    `
    const server = serve(() => {})
    crash()
    await server.served.catch(() => {})
    const listener = createListener('tcp', '127.0.0.1:0')
    const code = await createEventLoop(() => {}).serve(listener).then(() => 'resolved', (error) => error.code)
    listener.close()
    const successor = net.createServer().listen(listener.address().port, '127.0.0.1')
    await once(successor, 'listening')
    successor.close()
    tell(code)
  `,
  )
  t.is(line, 'ERR_NETPOLL_POLL_DIED')
})

test('a worker whose poll dies does not touch the main thread', async (t) => {
  const [line] = await told(
    t,
    `
    import { Worker } from 'node:worker_threads'
    const server = serve((connection) => {
      connection.writer.append(connection.reader)
      connection.writer.flush()
    })
    const worker = new Worker(\`
      const { parentPort } = require('node:worker_threads')
      const { createEventLoop, createListener } = require(process.cwd())
      const { environment } = require(process.cwd() + '/dist/environment.js')
      createEventLoop(() => {}).serve(createListener('tcp', '127.0.0.1:0')).catch((error) => parentPort.postMessage(error.code))
      environment().native.crash(0)
    \`, { eval: true, execArgv: [] })
    const [code] = await once(worker, 'message')
    await once(worker, 'exit')
    const socket = await connect(server.port)
    socket.write('alive')
    tell([code, String(await take(socket, 5))])
    socket.destroy()
    await server.stop()
  `,
  )
  t.deepEqual(line, ['ERR_NETPOLL_POLL_DIED', 'alive'])
})
