// A client of rpc.mjs: sends a few calls at once, and matches the answers to them by their order.
//
//   node examples/rpc-client.mjs [port]

import { once } from 'node:events'
import { connect } from 'node:net'

const socket = connect(Number(process.argv[2] ?? 8081), '127.0.0.1')
const pending = []
let received = Buffer.alloc(0)

socket.on('data', (chunk) => {
  received = Buffer.concat([received, chunk])
  while (received.length >= 4 && received.length >= 4 + received.readUInt32BE()) {
    const end = 4 + received.readUInt32BE()
    const { result, error } = JSON.parse(received.toString('utf8', 4, end))
    received = received.subarray(end)
    const { resolve, reject } = pending.shift()
    if (error === undefined) resolve(result)
    else reject(new Error(error))
  }
})

function call(method, ...params) {
  const body = Buffer.from(JSON.stringify({ method, params }))
  const head = Buffer.alloc(4)
  head.writeUInt32BE(body.length)
  socket.write(Buffer.concat([head, body]))
  return new Promise((resolve, reject) => pending.push({ resolve, reject }))
}

await once(socket, 'connect')
const answers = await Promise.allSettled([call('add', 1, 2), call('echo', 'hello'), call('divide', 1, 0)])
for (const { value, reason } of answers) console.log(reason ? `error: ${reason.message}` : value)
socket.end()
