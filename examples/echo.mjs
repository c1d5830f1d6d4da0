// An echo server: every byte that comes goes back. `npm start` runs it.
//
//   node examples/echo.mjs [port]        then, for instance:  nc 127.0.0.1 8080

import { createEventLoop, createListener } from '../index.js'

const port = process.argv[2] ?? process.env.PORT ?? '8080'
let requests = 0
let bytes = 0

const loop = createEventLoop(({ reader, writer }) => {
  requests += 1
  bytes += reader.length
  // A slice takes the blocks that hold the bytes, append() hands them on: nothing is copied. When the peer
  // reads too slowly, the next request waits by itself until the output has drained.
  writer.append(reader.slice(reader.length))
  writer.flush()
})

const listener = listen()
const address = listener.address()
console.log(
  `Echo server on ${address.address}:${address.port}. Talk to it: nc ${address.address} ${address.port}`,
)
if (process.stdout.isTTY) setInterval(showRates, 1000).unref()
for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, stop)
await loop.serve(listener)
if (process.stdout.isTTY) console.log()

function listen() {
  try {
    return createListener('tcp', `127.0.0.1:${port}`)
  } catch (error) {
    const inUse = `port ${port} is in use; choose another one: PORT=8081 npm start`
    console.error(`echo: ${error.code === 'EADDRINUSE' ? inUse : error.message}`)
    process.exit(1)
  }
}

/** Comes twice when npm passes on a Ctrl-C that was seen here already. Who reads too slowly is cut after a second. */
function stop() {
  loop.shutdown({ timeout: 1000 }).catch(() => {})
}

function showRates() {
  const line = `${loop.connections} connections, ${requests} requests/s, ${(bytes / 1e6).toFixed(1)} MB/s`
  process.stdout.write(`\r\x1b[K${line}`)
  requests = 0
  bytes = 0
}
