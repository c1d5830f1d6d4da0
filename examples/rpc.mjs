// A length-prefixed RPC server. A frame is a u32 (big endian) and as many bytes of JSON:
//
//   { "method": "add", "params": [1, 2] }   is answered by   { "result": 3 }   or   { "error": "..." }
//
// Answers come in the order of the calls, so a client may send many before it reads the first answer.
//
//   node examples/rpc.mjs [port]         then:  node examples/rpc-client.mjs [port]

import { createEventLoop, createListener } from '../index.js'

const maxBody = 1024 * 1024

const methods = {
  add: (a, b) => a + b,
  echo: (value) => value,
}

const loop = createEventLoop(
  ({ reader, writer }) => {
    // All complete frames that are here, then one flush for all answers. What is left of an incomplete frame
    // stays in the reader; the handler runs again when more of it has come.
    while (reader.length >= 4) {
      const length = reader.peek(4).readUInt32BE()
      if (length > maxBody) throw new RangeError(`a frame of ${length} bytes`)
      if (reader.length < 4 + length) break
      reader.skip(4)
      const answer = call(reader.readString(length))
      writer.writeUInt32BE(Buffer.byteLength(answer))
      writer.writeString(answer)
    }
    writer.flush()
  },
  {
    // The connection is closed already. Whoever sends such frames, or leaves in the middle, hears no more.
    onError: (error, { remoteAddress }) => console.error(`rpc: ${remoteAddress}: ${error.message}`),
  },
)

function call(body) {
  try {
    const { method, params } = JSON.parse(body)
    if (!Object.hasOwn(methods, method)) throw new TypeError(`no method ${method}`)
    return JSON.stringify({ result: methods[method](...params) })
  } catch (error) {
    return JSON.stringify({ error: error.message })
  }
}

const listener = createListener('tcp', `127.0.0.1:${process.argv[2] ?? 8081}`)
console.log(`RPC server on 127.0.0.1:${listener.address().port}`)
for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, stop)
await loop.serve(listener)

function stop() {
  loop.shutdown({ timeout: 1000 }).catch(() => {}) // who is not done by then is cut
}
