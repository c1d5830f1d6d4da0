// The peer everybody has: node:net, used as somebody who knows it would.
import { connect, createServer } from 'node:net'
import { completeFrames, eachFrame } from './frames.mjs'
import { ready } from './session.mjs'
import { body, burn, call, counts, ended, service, upstream } from './services.mjs'

const services = { echo, frame, burn: burnAndEcho, upload, download, mux, relay }

const server = createServer({ noDelay: true }, (socket) => {
  socket.on('error', () => {}) // the load has gone
  services[service](socket)
})
server.listen({ host: '127.0.0.1', port: 0, backlog: 4096 }, () => ready(server.address().port))

function echo(socket) {
  socket.on('data', (chunk) => socket.write(chunk))
}

/** Frames are parsed in place and answered with one write per read; only a partial one is ever copied. */
function frame(socket) {
  onFrames(socket, (bytes) => socket.write(bytes))
}

function burnAndEcho(socket) {
  onRequests(socket, (count, total, chunk) => {
    burn(count)
    socket.write(chunk)
  })
}

function upload(socket) {
  onRequests(socket, (count, total) => count > 0 && socket.write(counts(count, total)))
}

function download(socket) {
  onRequests(socket, (count) => {
    for (; count > 0; count--) socket.write(body)
  })
}

/** Each call is answered by itself; what is ready in the same tick goes out with one write. */
function mux(socket) {
  let answers = []
  const send = () => {
    socket.write(answers.length === 1 ? answers[0] : Buffer.concat(answers))
    answers = []
  }
  const add = (answer) => {
    if (answers.push(answer) === 1) process.nextTick(send)
  }
  onFrames(socket, (bytes) => {
    let start = 0
    for (const length of eachFrame(bytes)) {
      void call(bytes.subarray(start, (start += length))).then(add)
    }
  })
}

function relay(client) {
  const far = connect({ host: '127.0.0.1', port: upstream, noDelay: true })
  far.on('error', () => client.destroy())
  client.pipe(far).pipe(client)
}

/** Calls with how many requests end in each read, how many bytes have come, and the read itself. */
function onRequests(socket, take) {
  let received = 0
  socket.on('data', (chunk) => {
    const count = ended(received, chunk.length)
    received += chunk.length
    take(count, received, chunk)
  })
}

/** Calls with all frames that are complete after a read. */
function onFrames(socket, take) {
  let partial
  socket.on('data', (chunk) => {
    const bytes = partial === undefined ? chunk : Buffer.concat([partial, chunk])
    const end = completeFrames(bytes)
    partial = end === bytes.length ? undefined : bytes.subarray(end)
    if (end > 0) take(partial === undefined ? bytes : bytes.subarray(0, end))
  })
}
