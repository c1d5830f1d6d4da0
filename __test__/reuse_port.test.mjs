// Semantics 11: environments that share a port by reusePort, and what becomes of the others when one ends.

/* oxlint-disable unicorn/require-post-message-target-origin -- windows have one, workers have none */

import { once } from 'node:events'
import { Worker } from 'node:worker_threads'
import test from 'ava'
import { createEventLoop, createListener } from '../index.js'
import { connect, take, until } from './fixtures/peer.mjs'

const CLIENTS = 200

const fixture = new URL('fixtures/shared_port.mjs', import.meta.url)

/** The main thread, which answers with 'mainly', and a worker at the same port. */
async function share(t, serves) {
  const listener = createListener('tcp', '127.0.0.1:0', { reusePort: true })
  const { port } = listener.address()
  const loop = createEventLoop(({ reader, writer }) => {
    reader.skip(reader.length)
    writer.writeString('mainly')
    writer.flush()
  })
  const served = loop.serve(listener)
  t.teardown(() => Promise.all([loop.shutdown(), served]))
  const worker = new Worker(fixture, { workerData: { port, serves } })
  t.teardown(() => worker.terminate())
  await once(worker, 'message')
  return { port, worker }
}

/** How often each answer came to as many clients. */
async function ask(port, clients) {
  const counts = { mainly: 0, worker: 0 }
  const one = async () => {
    const socket = await connect(port)
    socket.write('who?')
    counts[String(await take(socket, 6))]++
    socket.destroy()
  }
  await Promise.all(Array.from({ length: clients }, one))
  return counts
}

for (const end of ['shuts down', 'is terminated']) {
  test.serial(`two environments share a port, and when one ${end} the other has it alone`, async (t) => {
    const { port, worker } = await share(t, true)
    const both = await ask(port, CLIENTS)
    t.is(both.mainly + both.worker, CLIENTS)
    t.true(both.mainly > 0 && both.worker > 0, JSON.stringify(both))
    const exit = once(worker, 'exit')
    if (end === 'shuts down') worker.postMessage('end')
    else await worker.terminate()
    await exit
    t.deepEqual(await ask(port, CLIENTS), { mainly: CLIENTS, worker: 0 })
  })
}

test.serial('connects that wait in the backlog of one that ends are reset, and no others', async (t) => {
  const { port, worker } = await share(t, false)
  const sockets = await Promise.all(Array.from({ length: CLIENTS }, () => connect(port)))
  let [answered, reset] = [0, 0]
  for (const socket of sockets) {
    socket.write('who?')
    socket.once('data', (bytes) => {
      if (String(bytes) === 'mainly') answered++
    })
    socket.once('error', ({ code }) => {
      if (code === 'ECONNRESET') reset++
    })
  }
  await worker.terminate()
  await until(() => answered + reset === CLIENTS, 'each is answered or reset')
  t.true(answered > 0 && reset > 0, `${answered} answered, ${reset} reset`)
  t.deepEqual(await ask(port, CLIENTS), { mainly: CLIENTS, worker: 0 })
  for (const socket of sockets) socket.destroy()
})
