import { createEventLoop, createListener, dialConnection, ShardQueue } from './package.mjs'
import { completeFrames, eachFrame } from './frames.mjs'
import { ready } from './session.mjs'
import { body, burn, call, counts, ended, service, upstream } from './services.mjs'

const services = {
  echo: { onRequest: echo },
  frame: { onRequest: frame },
  burn: { onRequest: burnAndEcho, onPrepare: () => ({ received: 0 }) },
  upload: { onRequest: upload, onPrepare: () => ({ received: 0 }) },
  download: { onRequest: download, onPrepare: () => ({ received: 0 }) },
  mux: { onRequest: mux, onPrepare: (connection) => new ShardQueue(connection) },
  relay: { onRequest: relay, onConnect: dial, onDisconnect: (client, server) => server?.close() },
}

const { onRequest, ...hooks } = services[service]
const listener = createListener('tcp', '127.0.0.1:0')
createEventLoop(onRequest, { ...hooks, onError() {} }).serve(listener)
ready(listener.address().port)

function echo({ reader, writer }) {
  writer.append(reader)
  writer.flush()
}

/** Frames are parsed in place and their blocks moved to the writer; a partial one stays in the reader. */
function frame({ reader, writer }) {
  const end = completeFrames(reader.peek(reader.length))
  if (end === 0) return
  writer.append(reader.slice(end))
  writer.flush()
}

function burnAndEcho({ reader, writer }, context) {
  burn(take(reader.length, context))
  writer.append(reader)
  writer.flush()
}

function upload({ reader, writer }, context) {
  const { length } = reader
  const chunks = take(length, context)
  reader.skip(length)
  if (chunks === 0) return
  writer.writeBinary(counts(chunks, context.received))
  writer.flush()
}

function download({ reader, writer }, context) {
  const { length } = reader
  reader.skip(length)
  for (let requests = take(length, context); requests > 0; requests--) writer.writeBinary(body)
  writer.flush()
}

function take(length, context) {
  const count = ended(context.received, length)
  context.received += length
  return count
}

/** Each call is answered by itself; what is ready in the same tick goes out together. */
function mux({ reader }, queue) {
  for (const length of eachFrame(reader.peek(reader.length))) {
    void call(reader.slice(length)).then((answer) => queue.add(answer))
  }
}

/** The upstream's handler moves its blocks to the client, and relay() the client's to the upstream. */
function dial(client) {
  return dialConnection('tcp', `127.0.0.1:${upstream}`, { onRequest: ({ reader }) => move(reader, client) })
}

function relay({ reader }, server) {
  return move(reader, server)
}

/** A promise, until the other side has taken enough, when it is slower than this one. */
function move(reader, to) {
  to.writer.append(reader)
  if (!to.writer.flush()) return to.flushed()
}
