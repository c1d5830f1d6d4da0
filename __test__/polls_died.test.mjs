// One of several polls dies: its connections fail, the others go on; and processes with several polls end.

import { once } from 'node:events'
import { Worker } from 'node:worker_threads'
import test from 'ava'
import { run } from './fixtures/program.mjs'
import { connect, descriptors, take, until } from './fixtures/peer.mjs'

const here = new URL(import.meta.url).pathname
const index = new URL('../index.js', import.meta.url).href

/** Each test in a process of its own, which has `count` polls. */
const polls = (count) => `
  import { configure, LinkBuffer, setNumLoops, stats } from '${index}'
  import { descriptors, settled } from '${new URL('fixtures/peer.mjs', import.meta.url).href}'
  const { environment } = (await import('node:module')).createRequire('${here}')('../dist/environment.js')
  configure({ numLoops: ${count} })
  const crash = (poll) => environment().native.crash(poll)
  const tell = (value) => console.log(JSON.stringify(value))
  const connections = []
  const ends = []
  const echo = ({ reader, writer }) => {
    writer.append(reader)
    writer.flush()
  }
  const watching = (options) =>
    serve(echo, {
      onConnect(connection) {
        connections.push(connection)
        connection.reader.waitRead(1 << 20).catch((error) => ends.push([connection.poll.index, error.code]))
      },
      ...options,
    })
  const ask = async (socket, text) => {
    socket.write(text)
    return String(await take(socket, text.length)) === text
  }
  const answers = async (sockets) => {
    const all = await Promise.all(sockets.map((socket) => ask(socket, 'hello')))
    return all.filter(Boolean).length
  }
`

async function told(t, count, source) {
  const { code, signal, stdout, stderr } = await run(polls(count) + source)
  t.deepEqual([code, signal], [0, null], stderr)
  return JSON.parse(stdout)
}

test('when one of four dies its connections fail, the others go on, and new ones come to the others', async (t) => {
  const { failed, codes, alive, fresh, where, anew } = await told(
    t,
    4,
    `
    const server = serve(echo, {
      onPrepare: (connection) => void connections.push(connection),
      onDisconnect: (connection) => connection.flushed().catch((error) => ends.push([connection.poll.index, error.code])),
    })
    let isServing = true
    server.served.finally(() => (isServing = false)).catch(() => {})
    const sockets = []
    for (let i = 0; i < 40; i++) sockets.push(await connect(server.port))
    await answers(sockets)
    crash(2)
    await until(() => ends.length === 10)
    const living = []
    for (const socket of sockets) if (await ask(socket, 'x')) living.push(socket)
    const fresh = []
    for (let i = 0; i < 30; i++) fresh.push(await connect(server.port))
    const answered = await answers(fresh)
    const where = stats().polls.map((poll, index) => (index === 2 ? null : poll.connections))
    await setNumLoops(4)
    const more = []
    for (let i = 0; i < 20; i++) more.push(await connect(server.port))
    await answers(more)
    tell({
      failed: ends.map(([poll]) => poll),
      codes: [...new Set(ends.map(([, code]) => code))],
      alive: living.length,
      fresh: [answered, isServing],
      where,
      anew: stats().polls[2].connections,
    })
    for (const socket of [...sockets, ...fresh, ...more]) socket.destroy()
    await server.stop()
    `,
  )
  t.deepEqual(failed, Array(10).fill(2))
  t.deepEqual(codes, ['ERR_NETPOLL_POLL_DIED'])
  t.deepEqual([alive, fresh], [30, [30, true]])
  t.deepEqual(where, [20, 20, null, 20])
  t.true(anew >= 4, `${anew} of 20 new connections at the poll that was started anew`)
})

test('the first poll takes its listeners along; its neighbour goes on and serves what comes later', async (t) => {
  const line = await told(
    t,
    2,
    `
    const server = serve(echo)
    const code = server.served.then(() => 'resolved', (error) => error.code)
    const sockets = []
    for (let i = 0; i < 10; i++) sockets.push(await connect(server.port))
    await answers(sockets)
    crash(0)
    const first = await code
    const alive = await answers(sockets.map((socket) => socket.resume().pause()))
    const second = serve(echo)
    const late = []
    for (let i = 0; i < 4; i++) late.push(await connect(second.port))
    const served = await answers(late)
    const resized = await setNumLoops(3).then(() => 'resolved', (error) => error.code)
    const client = await dialConnection('tcp', '127.0.0.1:' + second.port)
    tell({ first, alive, served, resized, dialed: client.poll.index })
    client.close()
    for (const socket of [...sockets, ...late]) socket.destroy()
    await second.stop()
    `,
  )
  t.deepEqual(line, {
    first: 'ERR_NETPOLL_POLL_DIED',
    alive: 5,
    served: 4,
    resized: 'ERR_NETPOLL_POLL_DIED',
    dialed: 1,
  })
})

/** Rounds in which the poll `victim` dies while the polls from \`left\` on move their connections. */
const ROUNDS = (victim, left) => `
  const server = watching()
  server.served.catch((error) => tell(error.code))
  const start = [descriptors(), 0]
  const outcomes = new Set()
  let failed = 0
  for (let round = 0; round < 20; round++) {
    await setNumLoops(4)
    const from = connections.length
    ends.length = 0
    const sockets = []
    for (let i = 0; i < 40; i++) sockets.push(await connect(server.port))
    await until(() => connections.length === from + 40)
    const asked = sockets.map((socket) => ask(socket, 'x'.repeat(10_000)))
    const resized = setNumLoops(${left}).then(() => 'resolved', (error) => error.code)
    for (let i = 0; i < round % 5; i++) await new Promise(setImmediate)
    crash(${victim})
    outcomes.add(await resized)
    // Each of them has failed, or goes on; none is left in between.
    const survived = (await Promise.all(asked)).filter(Boolean).length
    const again = await answers(sockets)
    await until(() => ends.length + again === 40)
    if (again > survived) throw new Error('an answer was lost')
    failed += ends.length
    if (ends.some(([, code]) => code !== 'ERR_NETPOLL_POLL_DIED')) throw new Error(JSON.stringify(ends))
    for (const socket of sockets) socket.destroy()
    await until(() => server.loop.connections === 0)
  }
  await setNumLoops(1)
  await server.stop()
  // One block waits for the next read, and one for the next write.
  await until(() => descriptors() <= start[0] && stats().blocksOut <= 4, descriptors() + ' ' + stats().blocksOut)
  tell({ outcomes: [...outcomes].toSorted(), failed, blocks: stats().pinnedSends })
`

for (const [who, victim, left] of [
  ['a poll that is moving its connections', 3, 1],
  ['a poll to which others are moving theirs', 1, 2],
]) {
  test(`when ${who} dies, each connection fails or goes on, and nothing leaks`, async (t) => {
    const { outcomes, failed, blocks } = await told(t, 4, ROUNDS(victim, left))
    t.true(failed > 0)
    t.true(outcomes.every((outcome) => outcome === 'resolved' || outcome === 'ERR_NETPOLL_POLL_DIED'))
    t.is(blocks, 0)
  })
}

test('maxConnections does not count the connections of a poll that has died', async (t) => {
  const line = await told(
    t,
    2,
    `
    const server = watching({ maxConnections: 4 })
    const sockets = []
    for (let i = 0; i < 4; i++) sockets.push(await connect(server.port))
    await until(() => connections.length === 4)
    crash(1)
    await until(() => ends.length === 2)
    const more = []
    for (let i = 0; i < 2; i++) more.push(await connect(server.port))
    await until(() => connections.length === 6)
    tell([server.loop.connections, await answers(more)])
    for (const socket of [...sockets, ...more]) socket.destroy()
    await server.stop()
    `,
  )
  t.deepEqual(line, [4, 2])
})

test('blocks that a dead poll had lent, or was to take back, come back', async (t) => {
  const line = await told(
    t,
    2,
    `
    // Handlers of both polls keep what they have read.
    const kept = []
    const server = serve(async ({ reader }) => {
      await reader.waitRead(1 << 20)
      kept.push(reader.slice(1 << 20))
    })
    const sockets = [await connect(server.port), await connect(server.port)]
    for (const socket of sockets) socket.write(Buffer.alloc(1 << 20))
    await until(() => kept.length === 2)
    const held = stats().blocksOut
    crash(1)
    await until(() => server.loop.connections === 1)
    for (const slice of kept) slice.release()
    for (const socket of sockets) socket.destroy()
    await until(() => server.loop.connections === 0)
    await server.stop()
    await until(() => stats().blocksOut <= 2, held + ' to ' + stats().blocksOut)
    tell('back')
    `,
  )
  t.is(line, 'back')
})

test('views that a handler holds when its poll dies stay until it ends, whatever others write, and then come back', async (t) => {
  const line = await told(
    t,
    2,
    `
    let view
    let proceed
    const server = serve(async ({ poll, reader, writer }) => {
      if (poll.index === 0) return echo({ reader, writer })
      await reader.waitRead(10_000)
      view = reader.next(10_000)
      await new Promise((resolve) => (proceed = resolve))
    })
    const sockets = [await connect(server.port), await connect(server.port)]
    await until(() => server.loop.connections === 2)
    for (const socket of sockets) socket.write('x'.repeat(10_000))
    await take(sockets[0], 10_000)
    await until(() => view !== undefined)
    crash(1)
    await until(() => server.loop.connections === 1)
    // All blocks that are free, and more.
    const others = new LinkBuffer()
    for (let i = 0; i < 300; i++) others.malloc(60_000).fill('y')
    const stayed = view.every((byte) => byte === 0x78)
    others.close()
    proceed()
    for (const socket of sockets) socket.destroy()
    await server.stop()
    await until(() => stats().blocksOut <= 2, 'blocks: ' + stats().blocksOut)
    tell(stayed)
    `,
  )
  t.true(line)
})

// ---- ends of the process

/** A program that says how many polls there are after `source`. */
function counting(source, env = {}) {
  return run(
    `import { configure, setNumLoops, stats } from '${index}'
      ${source}
      createListener('tcp', '127.0.0.1:0').close()
      console.log(stats().polls.length)`,
    { env: { ...process.env, NETPOLL_NUM_LOOPS: undefined, ...env } },
  )
}

async function counted(...args) {
  return (await counting(...args)).stdout.trim()
}

test('numLoops of configure(), NETPOLL_NUM_LOOPS and setNumLoops() before the first use', async (t) => {
  t.is(await counted(''), '1')
  t.is(await counted('configure({ numLoops: 3 })'), '3')
  t.is(await counted('await setNumLoops(2); if (stats().polls.length !== 0) throw 1'), '2')
  t.is(await counted('', { NETPOLL_NUM_LOOPS: '5' }), '5')
  t.is(await counted('configure({ numLoops: 2 })', { NETPOLL_NUM_LOOPS: '5' }), '2')
  for (const wrong of ['0', '65', 'many', '1.5']) {
    t.regex((await counting('', { NETPOLL_NUM_LOOPS: wrong })).stderr, /ERR_OUT_OF_RANGE/)
  }
})

const ENDS = {
  'by itself, when nothing is left to do': [
    'server.loop.unref(); sockets.forEach((socket) => socket.destroy())',
    0,
  ],
  'by process.exit()': ['process.exit(7)', 7],
  'by an uncaught throw': ['setImmediate(() => { throw new Error("on purpose") })', 1],
}

for (const [how, [end, expected]] of Object.entries(ENDS)) {
  test(`a process ends ${how} while polls come and go`, async (t) => {
    for (let turns = 0; turns < 6; turns++) {
      const { code, signal } = await run(`${polls(4)}
        const server = watching()
        const sockets = []
        for (let i = 0; i < 40; i++) sockets.push(await connect(server.port))
        await until(() => connections.length === 40)
        void setNumLoops(1)
        void setNumLoops(4)
        for (let i = 0; i < ${turns}; i++) await new Promise(setImmediate)
        ${end}
      `)
      t.deepEqual([code, signal], [expected, null])
    }
  })
}

test('a process waits for setNumLoops() although nothing else keeps it alive', async (t) => {
  const line = await told(
    t,
    1,
    `
    createListener('tcp', '127.0.0.1:0').close()
    await setNumLoops(4)
    await setNumLoops(1)
    tell(stats().polls.length)
    `,
  )
  t.is(line, 1)
})

test('workers with several polls are terminated while these come and go, and leave nothing', async (t) => {
  const source = `import('${index}').then(async ({ configure, createEventLoop, createListener, setNumLoops }) => {
    const { parentPort } = require('node:worker_threads')
    configure({ numLoops: 4 })
    const listener = createListener('tcp', '127.0.0.1:0')
    void createEventLoop(({ reader, writer }) => {
      writer.append(reader)
      writer.flush()
    }).serve(listener)
    parentPort.postMessage(listener.address().port)
    for (let i = 0; ; i++) await setNumLoops([1, 4, 2][i % 3])
  })`
  const round = async () => {
    const worker = new Worker(source, { eval: true })
    const [port] = await once(worker, 'message')
    const sockets = await Promise.all(Array.from({ length: 10 }, () => connect(port)))
    for (const socket of sockets) socket.write('hello')
    for (const socket of sockets) t.is(String(await take(socket, 5)), 'hello')
    const exit = once(worker, 'exit')
    await worker.terminate()
    await exit
    for (const socket of sockets) socket.destroy()
  }
  await round()
  const before = descriptors()
  for (let i = 0; i < 5; i++) await round()
  await until(() => descriptors() <= before, `${descriptors()} descriptors, ${before} before`)
})
