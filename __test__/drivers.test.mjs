// Who runs the turns of a poll: the Node loop, a thread, or each in turn. Each test has a process of its own.

import test from 'ava'
import { run } from './fixtures/program.mjs'

const HERE = new URL(import.meta.url).pathname

const PRELUDE = `
  import { configure, setNumLoops, stats } from '${new URL('../index.js', import.meta.url).pathname}'
  const { environment } = (await import('node:module')).createRequire('${HERE}')('../dist/environment.js')
  const tell = (value) => console.log(JSON.stringify(value))
  const echo = ({ reader, writer }) => {
    writer.append(reader)
    writer.flush()
  }
  const echoes = async (port, bytes) => {
    const peer = await connect(port)
    peer.end(bytes)
    const answer = await take(peer, bytes.length)
    peer.destroy()
    return answer.equals(bytes)
  }
  /** Bytes of which each says where it is. */
  const pattern = (length, seed) => {
    const bytes = Buffer.alloc(length)
    for (let i = 0; i < length; i++) bytes[i] = (i * 31 + (i >> 8) * 7 + seed) & 255
    return bytes
  }
`

/** What the program tells, one value a line. */
async function told(t, source, env = {}) {
  const { NETPOLL_DRIVER: _, NETPOLL_WITHOUT_LIBUV: __, ...rest } = process.env
  const { code, signal, stdout, stderr } = await run(PRELUDE + source, { env: { ...rest, ...env } })
  t.deepEqual([code, signal], [0, null], stderr)
  return stdout
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => JSON.parse(line))
}

const ECHOES = `
  const server = serve(echo)
  const right = await echoes(server.port, pattern(1 << 20, 3))
  tell([right, stats().polls.map(({ driver }) => driver)])
  await server.stop()
`

for (const driver of ['loop', 'thread']) {
  test(`with the driver '${driver}' stats() says so`, async (t) => {
    const [outcome] = await told(t, `configure({ driver: '${driver}', numLoops: 2 })` + ECHOES)
    t.deepEqual(outcome, [true, [driver, driver]])
  })

  test(`NETPOLL_DRIVER=${driver} is the default of configure()`, async (t) => {
    const [outcome] = await told(t, ECHOES, { NETPOLL_DRIVER: driver, NETPOLL_NUM_LOOPS: '1' })
    t.deepEqual(outcome, [true, [driver]])
  })
}

test("'adaptive' is the default, and begins on the loop", async (t) => {
  const [drivers] = await told(
    t,
    `const server = serve(echo)
    tell(stats().polls.map(({ driver, flips }) => [driver, flips]))
    await server.stop()`,
    { NETPOLL_NUM_LOOPS: '1' },
  )
  t.deepEqual(drivers, [['loop', 0]])
})

test("in a runtime without libuv 'adaptive' is 'thread', and 'loop' throws ERR_NETPOLL_UNSUPPORTED", async (t) => {
  const lines = await told(
    t,
    `try { configure({ driver: 'loop' }) } catch ({ code }) { tell(code) }
    configure({ driver: 'adaptive' })` + ECHOES,
    { NETPOLL_WITHOUT_LIBUV: '1', NETPOLL_NUM_LOOPS: '1' },
  )
  t.deepEqual(lines, ['ERR_NETPOLL_UNSUPPORTED', [true, ['thread']]])
})

test('another NETPOLL_DRIVER throws ERR_INVALID_ARG_VALUE', async (t) => {
  const lines = await told(t, `try { serve(echo) } catch ({ code }) { tell(code) }`, {
    NETPOLL_DRIVER: 'uring',
  })
  t.deepEqual(lines, ['ERR_INVALID_ARG_VALUE'])
})

test("'loop': one firehose and no other traffic arrives byte-exact, though a turn leaves what no event tells of", async (t) => {
  const [outcome] = await told(
    t,
    `configure({ driver: 'loop' })
    const bytes = pattern(24 << 20, 1)
    const chunks = []
    const server = serve(({ reader }) => void chunks.push(reader.readBinary(reader.length)))
    const peer = await connect(server.port)
    peer.end(bytes)
    await until(() => chunks.reduce((sum, { length }) => sum + length, 0) === bytes.length)
    tell([Buffer.concat(chunks).equals(bytes), stats().polls[0].driver])
    await server.stop()`,
  )
  t.deepEqual(outcome, [true, 'loop'])
})

test("'loop': deadlines are kept while nothing happens", async (t) => {
  const [outcome] = await told(
    t,
    `configure({ driver: 'loop' })
    const codes = []
    const server = serve(undefined, {
      idleTimeout: 300,
      async onConnect(connection) {
        for (const timeout of [1, 30]) {
          connection.setReadTimeout(timeout)
          await connection.reader.waitRead(1).catch(({ code }) => codes.push(code))
        }
      },
    })
    const peer = await connect(server.port)
    const closed = once(peer, 'close')
    peer.resume()
    await once(peer, 'end')
    peer.end()
    await closed
    tell(codes)
    await server.stop()`,
  )
  t.deepEqual(outcome, ['ERR_NETPOLL_READ_TIMEOUT', 'ERR_NETPOLL_READ_TIMEOUT'])
})

test("'loop': timers have their turn while connections keep it busy", async (t) => {
  const [outcome] = await told(
    t,
    `configure({ driver: 'loop' })
    const server = serve(echo)
    const peers = await Promise.all(Array.from({ length: 20 }, () => connect(server.port)))
    let echoed = 0
    for (const peer of peers) {
      peer.on('data', (bytes) => { echoed += bytes.length; peer.write(bytes) })
      peer.write(Buffer.alloc(1000))
    }
    let ticks = 0
    const timer = setInterval(() => ticks++, 1)
    await until(() => echoed > 20_000_000)
    clearInterval(timer)
    tell(ticks > 10)
    for (const peer of peers) peer.destroy()
    await server.stop()`,
  )
  t.true(outcome)
})

test("'loop': what is written outside of handlers is sent", async (t) => {
  const [outcome] = await told(
    t,
    `configure({ driver: 'loop' })
    let connection
    const server = serve(undefined, { onConnect: (one) => void (connection = one) })
    const peer = await connect(server.port)
    await until(() => connection)
    const answers = []
    for (const defer of [setImmediate, setTimeout, queueMicrotask, process.nextTick]) {
      defer(() => { connection.writer.writeString('x'); connection.writer.flush() })
      answers.push(String(await take(peer, 1)))
    }
    tell(answers)
    await server.stop()`,
  )
  t.deepEqual(outcome, ['x', 'x', 'x', 'x'])
})

test("'adaptive': many connections move the poll to its thread, few bring it back, and not a byte is lost", async (t) => {
  const [flips, wrong] = await told(
    t,
    `const server = serve(echo)
    const peers = await Promise.all(Array.from({ length: 60 }, () => connect(server.port)))
    let wrong = 0
    const pingPong = async (peer, seed, goesOn) => {
      for (let round = 0; goesOn(); round++) {
        const bytes = pattern(1000 + round % 7, seed + round)
        peer.write(bytes)
        if (!(await take(peer, bytes.length)).equals(bytes)) wrong++
      }
    }
    const driver = () => stats().polls[0].driver
    await Promise.all(peers.map((peer, seed) => pingPong(peer, seed, () => driver() === 'loop')))
    await pingPong(peers[0], 0, () => driver() === 'thread')
    tell(stats().polls[0].flips)
    tell(wrong)
    for (const peer of peers) peer.destroy()
    await server.stop()`,
    { NETPOLL_NUM_LOOPS: '1' },
  )
  t.true(flips >= 2)
  t.is(wrong, 0)
})

test("'adaptive': 10,000 changes of the driver under load lose, double and mix up nothing", async (t) => {
  const [flips, wrong, rounds, blocks] = await told(
    t,
    `const server = serve(echo)
    const peers = await Promise.all(Array.from({ length: 8 }, () => connect(server.port)))
    let [wrong, rounds, done] = [0, 0, false]
    const flips = () => stats().polls[0].flips
    const flip = () => {
      if (done) return
      environment().native.flip(0)
      done = flips() >= 10_000
      setImmediate(flip)
    }
    flip()
    await Promise.all(peers.map(async (peer, seed) => {
      for (let round = 0; !done; round++) {
        const bytes = pattern(1 + (round * 7919) % 20_000, seed + round)
        peer.write(bytes)
        if (!(await take(peer, bytes.length)).equals(bytes)) wrong++
        rounds++
      }
    }))
    tell(flips())
    tell(wrong)
    tell(rounds)
    for (const peer of peers) peer.destroy()
    await server.stop()
    await until(() => stats().connections === 0 && stats().blocksOut <= 1)
    tell(stats().blocksOut)`,
    { NETPOLL_NUM_LOOPS: '1' },
  )
  t.true(flips >= 10_000)
  t.is(wrong, 0)
  t.true(rounds > 100)
  t.true(blocks <= 1)
})

test("'adaptive': the number of a dead poll's descriptor is nobody's business any more, and no thread is started for it", async (t) => {
  const [outcome] = await told(
    t,
    `import { execFileSync } from 'node:child_process'
    import { closeSync, mkdtempSync, openSync, readdirSync, readFileSync, readlinkSync, rmSync } from 'node:fs'
    const list = (what, of) => readdirSync('/proc/self/' + what).flatMap((name) => {
      try { return [of('/proc/self/' + what + '/' + name, Number(name))] } catch { return [] }
    })
    const epolls = () => list('fd', (path, fd) => readlinkSync(path).includes('eventpoll') ? fd : -1).filter((fd) => fd >= 0)
    const watched = () => list('fdinfo', (path) => readFileSync(path, 'latin1')).join('').match(/tfd: +\\d+/g).map((text) => Number(text.slice(4)))
    const threads = () => list('task', (path) => readFileSync(path + '/comm', 'latin1').trim()).filter((name) => name.startsWith('netpoll-'))

    const directory = mkdtempSync('/tmp/netpoll-')
    execFileSync('mkfifo', [directory + '/fifo'])
    configure({ driver: 'adaptive', numLoops: 2 })
    const server = serve(echo)
    let failed = false
    server.served.catch(() => (failed = true))
    const { native } = environment()
    const before = epolls()
    native.crash(0)
    await until(() => failed)
    const dead = before.find((fd) => !epolls().includes(fd))

    // The next descriptors of the process have that number among them.
    const opened = []
    while (!opened.includes(dead)) opened.push(openSync(directory + '/fifo', 'r+'))
    // The loop looks after its polls whenever one of them comes back to it from its thread.
    for (const driver of ['thread', 'loop']) {
      native.flip(1)
      await until(() => stats().polls[1].driver === driver)
    }
    await new Promise((resolve) => setTimeout(resolve, 1))
    await new Promise(setImmediate)
    tell([watched().includes(dead), threads()])
    opened.forEach((fd) => closeSync(fd))
    rmSync(directory, { recursive: true })`,
  )
  t.deepEqual(outcome, [false, ['netpoll-1']])
})

for (const driver of ['loop', 'adaptive', 'thread']) {
  test(`'${driver}': isActive() tells of a reset in the midst of a synchronous handler`, async (t) => {
    const [outcome] = await told(
      t,
      `configure({ driver: '${driver}' })
      let peer
      const seen = []
      const server = serve((connection) => {
        connection.reader.skip(1)
        peer.resetAndDestroy()
        const end = Date.now() + 20_000
        while (connection.isActive() && Date.now() < end);
        seen.push(connection.isActive())
      })
      peer = await connect(server.port)
      peer.write('x')
      await until(() => seen.length > 0)
      tell(seen)
      await server.stop()`,
    )
    t.deepEqual(outcome, [false])
  })

  for (const [how, end, expected] of [
    ['process.exit()', 'process.exit(7)', 7],
    ['an uncaught throw', "throw new Error('on purpose')", 1],
  ]) {
    test(`'${driver}': ${how} in a handler ends the process cleanly`, async (t) => {
      const { code, signal } = await run(
        `${PRELUDE}
        configure({ driver: '${driver}' })
        const server = serve(() => { ${end} })
        const peer = await connect(server.port)
        peer.write('x')`,
      )
      t.deepEqual([code, signal], [expected, null])
    })
  }

  test(`'${driver}': a poll that dies fails its connections, and setNumLoops() is refused`, async (t) => {
    const [outcome] = await told(
      t,
      `configure({ driver: '${driver}', numLoops: 1 })
      const causes = []
      const server = serve(undefined, {
        onConnect: ({ reader }) => void reader.waitRead(10).catch(({ code }) => causes.push(code)),
      })
      server.served.catch(({ code }) => causes.push(code))
      const peer = await connect(server.port)
      await until(() => stats().connections === 1)
      const closed = once(peer, 'close')
      peer.resume()
      peer.on('end', () => peer.end())
      environment().native.crash(0)
      await closed
      await until(() => causes.length === 2)
      await setNumLoops(2).catch(({ code }) => causes.push(code))
      tell(causes)`,
    )
    t.deepEqual(outcome, Array(3).fill('ERR_NETPOLL_POLL_DIED'))
  })

  test(`'${driver}': polls come and go under load`, async (t) => {
    const [outcome] = await told(
      t,
      `configure({ driver: '${driver}', numLoops: 1 })
      const server = serve(echo)
      const peers = await Promise.all(Array.from({ length: 30 }, () => connect(server.port)))
      let [wrong, done] = [0, false]
      const all = Promise.all(peers.map(async (peer, seed) => {
        for (let round = 0; !done; round++) {
          const bytes = pattern(1 + (round * 7919) % 5000, seed + round)
          peer.write(bytes)
          if (!(await take(peer, bytes.length)).equals(bytes)) wrong++
        }
      }))
      for (const n of [3, 1, 4, 2, 1]) await setNumLoops(n)
      done = true
      await all
      tell([wrong, stats().polls.length])
      for (const peer of peers) peer.destroy()
      await server.stop()`,
    )
    t.deepEqual(outcome, [0, 1])
  })
}

test("'loop': unref() lets the process end, and no timer or round of the poll keeps it", async (t) => {
  const lines = await told(
    t,
    `configure({ driver: 'loop' })
    const accepted = []
    const server = serve(undefined, { idleTimeout: 60_000, onConnect: (one) => void accepted.push(one.unref()) })
    server.loop.unref()
    const peer = await connect(server.port)
    await until(() => accepted.length === 1)
    peer.unref()
    tell('end')`,
  )
  t.deepEqual(lines, ['end'])
})
