// Processes and workers that dial: what keeps them alive, and how they end in the middle of it.

import { once } from 'node:events'
import { Worker } from 'node:worker_threads'
import test from 'ava'
import { descriptors, netServer, settled, until } from './fixtures/peer.mjs'
import { run } from './fixtures/program.mjs'

const entry = new URL('../index.js', import.meta.url).href

async function ends(t, source, expected = 0) {
  const { code, signal, stdout, stderr } = await run(source)
  t.deepEqual([code, signal], [expected, null], stderr)
  return stdout
}

const SILENT = `
  const silent = createListener('tcp', '127.0.0.1:0', { backlog: 1 })
  const nowhere = '127.0.0.1:' + silent.address().port
  for (;;) {
    const guest = await dialConnection('tcp', nowhere, { timeout: 100 }).catch(() => null)
    if (guest === null) break
    guest.unref()
  }
`

test('a client program ends by itself when its connection has ended', async (t) => {
  const { address } = await netServer(t, (socket) => socket.pipe(socket))
  const told = await ends(
    t,
    `const connection = await dialConnection('tcp', '${address}')
    connection.writer.writeString('hello')
    connection.writer.flush()
    await connection.reader.waitRead(5)
    console.log(connection.reader.readString(5))
    connection.end()`,
  )
  t.is(told, 'hello\n')
})

test('a dial keeps its process alive until it has failed', async (t) => {
  const told = await ends(
    t,
    `${SILENT}
    dialConnection('tcp', nowhere, { timeout: 200 }).catch((error) => console.log(error.code))`,
  )
  t.is(told, 'ERR_NETPOLL_DIAL_TIMEOUT\n')
})

test('a dial that was aborted keeps no process alive', async (t) => {
  const told = await ends(
    t,
    `${SILENT}
    const controller = new AbortController()
    dialConnection('tcp', nowhere, { signal: controller.signal }).catch((error) => console.log(error.name))
    setTimeout(() => controller.abort(), 10)`,
  )
  t.is(told, 'AbortError\n')
})

test('a connection keeps its process alive, and unref() lets it go', async (t) => {
  const { address, accepted } = await netServer(t)
  await ends(t, `(await dialConnection('tcp', '${address}')).unref()`)
  const program = ends(
    t,
    `const connection = await dialConnection('tcp', '${address}')
    connection.addCloseCallback(() => console.log('closed'))
    connection.unref().ref()`,
  )
  await until(() => accepted.length === 2)
  accepted[1].destroy()
  t.is(await program, 'closed\n')
})

test('process.exit() in the middle of dials ends with its code', async (t) => {
  const { address } = await netServer(t)
  for (const after of ['setImmediate', 'queueMicrotask']) {
    await ends(
      t,
      `${SILENT}
      for (let i = 0; i < 50; i++) for (const to of ['${address}', nowhere]) void dialConnection('tcp', to)
      ${after}(() => process.exit(7))`,
      7,
    )
  }
})

test('what is dialed when the process exits harms nothing', async (t) => {
  const { address } = await netServer(t)
  await ends(
    t,
    `(await dialConnection('tcp', '${address}')).close()
    process.on('exit', () => void dialConnection('tcp', '${address}').catch(() => undefined))`,
  )
})

test('dials of a poll that has died reject with POLL_DIED, now and later', async (t) => {
  const told = await ends(
    t,
    `process.env.NETPOLL_NUM_LOOPS = '1'
    ${SILENT}
    const { environment } = (await import('node:module')).createRequire('${new URL(import.meta.url).pathname}')('../dist/environment.js')
    const dial = () => dialConnection('tcp', nowhere).catch((error) => error.code)
    const before = [dial(), dial()]
    await new Promise(setImmediate)
    environment().native.crash(0)
    console.log(String(await Promise.all(before)), await dial())
    silent.close()`,
  )
  t.is(told, 'ERR_NETPOLL_POLL_DIED,ERR_NETPOLL_POLL_DIED ERR_NETPOLL_POLL_DIED\n')
})

test('workers that are terminated in the middle of dials leave no descriptor', async (t) => {
  const { address, accepted } = await netServer(t)
  await settled()
  const before = descriptors()
  for (let round = 0; round < 10; round++) {
    const source = `import('${entry}').then(async ({ dialConnection }) => {
      const { parentPort } = require('node:worker_threads')
      const dial = () => dialConnection('tcp', '${address}')
      await Promise.all(Array.from({ length: 10 }, dial))
      for (let dials = 0; dials < 50; dials++) void dial()
      parentPort.postMessage('dialing')
    })`
    const worker = new Worker(source, { eval: true })
    await once(worker, 'message')
    await worker.terminate()
  }
  await until(() => {
    for (const socket of accepted) socket.resume().destroy()
    return descriptors() <= before
  }, `${descriptors()} descriptors, ${before} before`)
  t.pass()
})
