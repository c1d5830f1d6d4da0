// A client of rpc.mjs: sends a few calls at once, and matches the answers to them by their order.
//
//   node examples/rpc-client.mjs [port]

import { dialConnection } from 'netpoll'

const pending = []

const connection = await dialConnection('tcp', `127.0.0.1:${process.argv[2] ?? 8081}`, {
  timeout: 5000,
  onRequest({ reader }) {
    while (reader.length >= 4) {
      const length = reader.peek(4).readUInt32BE()
      if (reader.length < 4 + length) break // runs again when more has come
      reader.skip(4)
      const { result, error } = JSON.parse(reader.readString(length))
      const caller = pending.shift()
      if (caller === undefined) throw new Error('an answer to no call') // closes the connection
      if (error === undefined) caller.resolve(result)
      else caller.reject(new Error(error))
    }
  },
  onError: (error) => console.error(`rpc-client: ${error.message}`),
  onDisconnect() {
    for (const { reject } of pending.splice(0)) reject(new Error('The server has gone'))
  },
})

function call(method, ...params) {
  const { writer } = connection
  const body = JSON.stringify({ method, params })
  writer.writeUInt32BE(Buffer.byteLength(body))
  writer.writeString(body)
  writer.flush()
  return new Promise((resolve, reject) => pending.push({ resolve, reject }))
}

const answers = await Promise.allSettled([call('add', 1, 2), call('echo', 'hello'), call('divide', 1, 0)])
for (const { value, reason } of answers) console.log(reason ? `error: ${reason.message}` : value)
connection.close()
