// HTTP by Node's own http module, over connections of this package.
//
//   node examples/http.mjs [port]        then, for instance:  curl -d hello http://127.0.0.1:8080/

import http from 'node:http'
import { pipeline } from 'node:stream'
import { createEventLoop, createListener } from '../index.js'

const server = http.createServer((request, response) => {
  if (request.method === 'POST') pipeline(request, response, () => {})
  else response.end(`Hello ${request.socket.remoteAddress}\n`)
})
server.emit('listening') // from here on it watches over its timeouts, and can close its connections

const loop = createEventLoop(undefined, {
  allowHalfOpen: true, // as the sockets of an http server are
  onConnect: (connection) => void server.emit('connection', connection.toDuplex()),
})

const listener = createListener('tcp', `127.0.0.1:${process.argv[2] ?? '8080'}`)
const { address, port } = listener.address()
console.log(`HTTP server on ${address}:${port}. Try: curl -d hello http://${address}:${port}/`)
for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, stop)
await loop.serve(listener)

/** Answers that have begun are sent; whoever reads too slowly is cut after a second. */
async function stop() {
  server.close()
  await loop.shutdown({ timeout: 1000 }).catch(() => {})
}
