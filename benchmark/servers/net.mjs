// The peer everybody has: node:net, used as somebody who knows it would.
import { createServer } from 'node:net'
import { completeFrames } from './frames.mjs'
import { ready } from './session.mjs'

const services = { echo, frame }

const server = createServer({ noDelay: true }, (socket) => {
  socket.on('error', () => {}) // the load has gone
  services[process.argv[2]](socket)
})
server.listen({ host: '127.0.0.1', port: 0, backlog: 4096 }, () => ready(server.address().port))

function echo(socket) {
  socket.on('data', (chunk) => socket.write(chunk))
}

/** Frames are parsed in place and answered with one write per read; only a partial one is ever copied. */
function frame(socket) {
  let partial
  socket.on('data', (chunk) => {
    const bytes = partial === undefined ? chunk : Buffer.concat([partial, chunk])
    const end = completeFrames(bytes)
    partial = end === bytes.length ? undefined : bytes.subarray(end)
    if (end > 0) socket.write(partial === undefined ? bytes : bytes.subarray(0, end))
  })
}
