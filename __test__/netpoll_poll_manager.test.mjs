// What poll_manager_test.go of cloudwego/netpoll asserts, under the names that it has there; and the hooks of many
// connections on several polls, where netpoll leaves some out. In processes of their own: configure() comes first.

import test from 'ava'
import { run } from './fixtures/program.mjs'

const index = new URL('../index.js', import.meta.url).href

/** Runs a program that prints JSON; it has all of the package, and what tests share. */
async function report(t, source) {
  const imports = `import { configure, setLoadBalance, setNumLoops, stats } from '${index}'
    delete process.env.NETPOLL_NUM_LOOPS
  `
  const { code, stdout, stderr } = await run(imports + source)
  t.is(stderr, '')
  t.is(code, 0)
  return JSON.parse(stdout)
}

const ECHO = `
  const echo = ({ reader, writer }) => {
    writer.append(reader)
    writer.flush()
  }
  const ask = async (socket, text) => {
    socket.write(text)
    return String(await take(socket, text.length)) === text
  }
`

test('TestPollManager: what one end writes the other reads, and both learn of the end', async (t) => {
  const told = await report(
    t,
    `${ECHO}
    const ends = []
    const { port, stop } = serve(echo, { onDisconnect: (connection) => ends.push(connection.isActive()) })
    const socket = await connect(port)
    const answered = await ask(socket, 'hello world')
    socket.end()
    await once(socket, 'close')
    await until(() => ends.length === 1)
    await stop()
    console.log(JSON.stringify({ answered, ends }))
    `,
  )
  t.deepEqual(told, { answered: true, ends: [false] })
})

test('TestPollManagerSetNumLoops: polls come and go under load, and no connection notices', async (t) => {
  const told = await report(
    t,
    `${ECHO}
    const { port, stop, loop } = serve(echo)
    const sockets = []
    let answers = 0
    let going = true
    const asking = []
    const join = async () => {
      const socket = await connect(port)
      sockets.push(socket)
      asking.push((async () => {
        while (going) answers += await ask(socket, 'x'.repeat(1 + (answers % 5000)))
      })())
    }
    const sizes = [stats().polls.length]
    for (const size of [8, 2, 16, 1]) {
      await Promise.all(Array.from({ length: 8 }, join))
      await setNumLoops(size)
      sizes.push(stats().polls.length)
      const before = answers
      await until(() => answers > before + 200)
    }
    const { connections } = loop
    going = false
    await Promise.all(asking)
    const lost = sockets.filter((socket) => socket.destroyed).length
    for (const socket of sockets) socket.destroy()
    await stop()
    console.log(JSON.stringify({ sizes, connections, lost }))
    `,
  )
  t.deepEqual(told, { sizes: [1, 8, 2, 16, 1], connections: 32, lost: 0 })
})

test('the polls take turns with the connections, or those with few get more', async (t) => {
  const told = await report(
    t,
    `${ECHO}
    configure({ numLoops: 4, loadBalance: 'round-robin' })
    const { port, stop, loop } = serve(echo)
    const join = async () => {
      const socket = await connect(port)
      await ask(socket, 'x')
      return socket
    }
    const counts = () => stats().polls.map((poll) => poll.connections)
    const sockets = []
    for (let i = 0; i < 12; i++) sockets.push(await join())
    const turns = counts()
    for (const socket of sockets.splice(0, 6)) {
      socket.end()
      await once(socket, 'close')
    }
    await until(() => loop.connections === 6)
    setLoadBalance('least-connections')
    for (let i = 0; i < 10; i++) sockets.push(await join())
    const least = counts()
    for (const socket of sockets) socket.destroy()
    await stop()
    console.log(JSON.stringify({ turns, least }))
    `,
  )
  t.deepEqual(told, { turns: [3, 3, 3, 3], least: [4, 4, 4, 4] })
})

test('hooks of 1,500 connections on four polls come in order, each once, and no byte is lost', async (t) => {
  const told = await report(
    t,
    `
    configure({ numLoops: 4 })
    const lives = []
    let bytes = 0
    const { port, stop } = serve(
      ({ reader, context }) => {
        bytes += reader.length
        reader.skip(reader.length)
        context.push('request')
      },
      {
        onPrepare(connection) {
          const life = ['prepare']
          lives.push(life)
          connection.addCloseCallback(() => life.push('close'))
          return life
        },
        onConnect: (connection, life) => void life.push('connect'),
        onDisconnect: (connection, life) => void life.push('disconnect'),
      },
    )
    await Promise.all(Array.from({ length: 30 }, async () => {
      for (let i = 0; i < 50; i++) {
        const socket = await connect(port)
        socket.resume()
        if (i % 2 === 0) socket.end('x')
        else socket.write('x', () => socket.end())
        await once(socket, 'close')
      }
    }))
    await until(() => lives.length === 1500 && lives.every((life) => life.includes('close')))
    await stop()
    console.log(JSON.stringify({ bytes, kinds: [...new Set(lives.map((life) => life.join(' ')))] }))
    `,
  )
  t.deepEqual(told, { bytes: 1500, kinds: ['prepare connect request disconnect close'] })
})
