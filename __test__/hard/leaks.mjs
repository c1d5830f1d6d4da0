// What environments leave behind when they have ended, for a search for leaks at the end of the process: connections of
// all kinds here, and workers that end in all ways with theirs. It ends by itself, so that Node lets go of all it has.

/* oxlint-disable unicorn/require-post-message-target-origin -- windows have one, workers have none */

import { once } from 'node:events'
import { Worker } from 'node:worker_threads'
import { LinkBuffer, dialConnection, setNumLoops } from '../../index.js'
import { connect, serve, take, until } from '../fixtures/peer.mjs'

const WORKERS = 5
const echo = new URL('../fixtures/echo_worker.mjs', import.meta.url)
const unreading = new URL(
  `data:text/javascript,${encodeURIComponent(`
    import { parentPort } from 'node:worker_threads'
    import { serve } from '${new URL('../fixtures/peer.mjs', import.meta.url)}'
    const large = Buffer.alloc(1 << 20)
    const { port } = serve(({ writer }) => {
      writer.writeBinary(large)
      writer.flush()
      parentPort.postMessage('unread')
    })
    parentPort.postMessage(port)
  `)}`,
)

const ENDS = {
  'terminate()': (worker) => worker.terminate(),
  'process.exit()': (worker) => worker.postMessage('exit'),
  'an uncaught throw': (worker) => worker.postMessage('throw'),
  'its natural end': (worker) => worker.postMessage('shutdown'),
}

for (const end of Object.values(ENDS)) {
  for (let i = 0; i < WORKERS; i++) {
    const worker = new Worker(echo, { workerData: { clients: 3 } })
    worker.on('error', () => undefined)
    await new Promise((resolve) => worker.once('message', resolve))
    const exit = new Promise((resolve) => worker.once('exit', resolve))
    void end(worker)
    await exit
  }
}

// Input that nobody has read, and a pinned Buffer that its peer does not read.
for (let i = 0; i < WORKERS; i++) {
  const worker = new Worker(unreading)
  const [port] = await once(worker, 'message')
  const socket = await connect(port)
  socket.write('hello')
  await once(worker, 'message')
  await worker.terminate()
  socket.destroy()
}

const server = serve(async ({ reader, writer }) => {
  const bytes = Buffer.from(reader.next(reader.length))
  const kept = new LinkBuffer()
  kept.writeBinary(bytes)
  kept.flush()
  writer.append(kept)
  writer.flush()
})
for (const count of [3, 1]) {
  await setNumLoops(count)
  for (let i = 0; i < 10; i++) {
    const connection = await dialConnection('tcp', `127.0.0.1:${server.port}`)
    const large = Buffer.alloc(i * 50_000 + 1, i)
    connection.writer.writeBinary(large)
    connection.writer.flush()
    await connection.reader.waitRead(large.length)
    if (i % 2 === 0) connection.reset()
    else connection.close()
  }
  const socket = await connect(server.port)
  socket.write('hello')
  await take(socket, 5)
  socket.destroy()
  await until(() => server.loop.connections === 0)
}
await server.stop()
console.log('all have ended')
