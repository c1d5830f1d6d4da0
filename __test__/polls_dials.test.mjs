// Dials that are under way while polls come and go.

import { setImmediate } from 'node:timers/promises'
import test from 'ava'
import { createEventLoop, dialConnection, setNumLoops } from '../index.js'
import { descriptors, serve, settled, silent, until } from './fixtures/peer.mjs'
import { run } from './fixtures/program.mjs'

const DIALS = 16
const reason = new Error('on purpose')
const index = new URL('../index.js', import.meta.url).href
const here = new URL(import.meta.url).pathname

const echo = ({ reader, writer }) => {
  writer.append(reader)
  writer.flush()
}

async function ask({ reader, writer }, text) {
  writer.writeString(text)
  writer.flush()
  await reader.waitRead(text.length)
  return reader.readString(text.length)
}

const times = (count, make) => Array.from({ length: count }, make)
const reasons = async (dials) => (await Promise.allSettled(dials)).map((result) => result.reason)

test.beforeEach(() => setNumLoops(4))

for (const network of ['tcp', 'unix']) {
  test.serial(
    `${network}: setNumLoops() does not wait for dials that nobody answers, which go on`,
    async (t) => {
      const { address, listener } = await silent(t, network)
      const dials = times(DIALS, () => dialConnection(network, address))
      let answered = 0
      for (const dial of dials) void dial.then(() => answered++)
      for (const count of [1, 3, 2, 4, 1]) await setNumLoops(count)
      t.is(answered, 0)

      const loop = createEventLoop(echo)
      const served = loop.serve(listener)
      const clients = await Promise.all(dials)
      for (const [i, client] of clients.entries()) t.is(await ask(client, `dial ${i}`), `dial ${i}`)
      t.true(clients.every((client) => client.poll.index === 0))
      for (const client of clients) client.close()
      await loop.shutdown({ timeout: 0 }).catch(() => undefined)
      await served
    },
  )
}

test.serial('a dial times out although its poll has gone', async (t) => {
  const { address } = await silent(t, 'tcp')
  await settled()
  const before = descriptors()
  const dials = times(DIALS, () => dialConnection('tcp', address, { timeout: 200 }))
  await setNumLoops(1)
  for (const error of await reasons(dials)) t.is(error.code, 'ERR_NETPOLL_DIAL_TIMEOUT')
  await until(() => descriptors() <= before, 'their sockets are closed')
})

test.serial(
  'a dial is aborted before, while and after its poll goes, and holds nothing any more',
  async (t) => {
    const { address } = await silent(t, 'tcp')
    await setNumLoops(1)
    await settled()
    const before = descriptors()
    for (let round = 0; round < 20; round++) {
      await setNumLoops(4)
      const controllers = times(DIALS, () => new AbortController())
      const dials = controllers.map(({ signal }) => dialConnection('tcp', address, { signal }))
      const outcomes = reasons(dials)
      const resized = setNumLoops(1)
      for (const controller of controllers.slice(0, DIALS / 2)) {
        controller.abort(reason)
        if (round % 2 === 0) await setImmediate()
      }
      await resized
      for (const controller of controllers) controller.abort(reason)
      for (const error of await outcomes) t.is(error, reason)
    }
    await until(() => descriptors() <= before, 'their sockets are closed')
  },
)

test.serial('dials that succeed while polls come and go are each answered once', async (t) => {
  const { port, loop, stop } = serve(echo)
  t.teardown(stop)
  for (let round = 0; round < 20; round++) {
    await setNumLoops(4)
    const dials = times(DIALS, () => dialConnection('tcp', `127.0.0.1:${port}`))
    for (let turns = 0; turns < round % 4; turns++) await setImmediate()
    await setNumLoops(2)
    await setNumLoops(1)
    const clients = await Promise.all(dials)
    for (const [i, client] of clients.entries()) t.is(await ask(client, `dial ${i}`), `dial ${i}`)
    t.is(loop.connections, DIALS)
    for (const client of clients) client.close()
    await until(() => loop.connections === 0)
  }
})

/** What a program with three polls prints as JSON; `crash(poll)` lets a poll die. */
async function told(t, source, env = {}) {
  const program = `
    import { configure, setNumLoops, stats } from '${index}'
    import { descriptors } from '${new URL('fixtures/peer.mjs', import.meta.url).href}'
    const { environment } = (await import('node:module')).createRequire('${here}')('../dist/environment.js')
    configure({ numLoops: 3 })
    const crash = (poll) => environment().native.crash(poll)
    const tell = (value) => console.log(JSON.stringify(value))
    ${source}
  `
  const { code, stdout, stderr } = await run(program, { env: { ...process.env, ...env } })
  t.is(code, 0, stderr)
  return JSON.parse(stdout)
}

test('when the poll dies to which a dial has moved, it rejects with POLL_DIED', async (t) => {
  const codes = await told(
    t,
    `
    const silent = createListener('tcp', '127.0.0.1:0', { backlog: 1 })
    const address = '127.0.0.1:' + silent.address().port
    const dials = Array.from({ length: 12 }, () => dialConnection('tcp', address).then(() => 'connected', (error) => error.code))
    const where = () => Array.from(environment().dials.values(), (dial) => dial.poll.index)
    await until(() => where().length < 12)
    await setNumLoops(2)
    // Those of the poll that has gone are at one that has not.
    await until(() => where().every((poll) => poll < 2))
    const there = where().filter((poll) => poll === 1).length
    crash(1)
    await until(() => where().every((poll) => poll === 0))
    const left = where().length
    crash(0)
    const codes = await Promise.all(dials)
    tell({ moved: there > 4 || left > 4, codes: [...new Set(codes)].toSorted(), there: there > 0 })
    process.exit()
    `,
  )
  t.deepEqual(codes, { moved: true, codes: ['ERR_NETPOLL_POLL_DIED', 'connected'], there: true })
})

test('when polls die while their dials move, each is answered and no connection is left over', async (t) => {
  const { outcomes, open } = await told(
    t,
    `
    const { port, loop, stop } = serve(({ reader, writer }) => {
      writer.append(reader)
      writer.flush()
    })
    const outcomes = new Set()
    for (let round = 0; round < 20; round++) {
      await setNumLoops(3)
      const clients = []
      const dials = Array.from({ length: 20 }, () =>
        dialConnection('tcp', '127.0.0.1:' + port).then((client) => clients.push(client), (error) => outcomes.add(error.code)),
      )
      for (let turns = 0; turns < round % 3; turns++) await new Promise(setImmediate)
      const resized = setNumLoops(1).catch((error) => outcomes.add(error.code))
      crash(1 + (round % 2))
      await Promise.all(dials)
      await resized
      for (const client of clients) client.close()
      await until(() => environment().dials.size === 0)
      await until(() => loop.connections === 0, 'what nobody has is closed')
    }
    await stop()
    tell({ outcomes: [...outcomes], open: stats().connections })
    `,
  )
  t.true(
    outcomes.every((code) => code === 'ERR_NETPOLL_POLL_DIED'),
    `${outcomes}`,
  )
  t.is(open, 0)
})

test('a dial of which its dead poll could not tell that it has moved leaves no connection behind', async (t) => {
  const { connected, codes } = await told(
    t,
    `
    // Polls that go on while this thread is busy.
    configure({ driver: 'thread' })
    // Whoever connects to a unix socket is in its backlog; the others try again and again.
    const address = '@netpoll-moved-' + process.pid
    const silent = createListener('unix', address, { backlog: 1 })
    const clients = []
    const codes = []
    const dials = Array.from({ length: 60 }, () =>
      dialConnection('unix', address).then((client) => clients.push(client), (error) => codes.push(error.code)),
    )
    await until(() => environment().dials.size < 60)
    // The ring has room for the news of a few. This thread looks at none of them before the poll is dead.
    const { words } = environment().polls[2]
    const [backlogged, dead] = [1, 2]
    environment().native.retirePoll(2)
    while (Atomics.load(words, backlogged) === 0);
    crash(2)
    while (Atomics.load(words, dead) === 0);
    let accepted = 0
    const loop = createEventLoop(() => undefined, { onPrepare: () => void accepted++ })
    const served = loop.serve(silent)
    await Promise.all(dials)
    await until(() => accepted === 60)
    // Some may have come to the backlog before, and their poll has died.
    const open = () => clients.filter((client) => client.isActive()).length
    await until(() => loop.connections === open(), 'all others are closed')
    await loop.shutdown({ timeout: 0 }).catch(() => undefined)
    await served
    tell({ connected: clients.length, codes })
    `,
    { NETPOLL_RING_ENTRIES: '8' },
  )
  t.is(connected + codes.length, 60)
  t.deepEqual([...new Set(codes)], ['ERR_NETPOLL_POLL_DIED'])
})
