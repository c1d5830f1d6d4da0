// A client of mux.mjs: many calls at once on one connection. Their answers come in any order and find their calls by
// the number that both carry.
//
//   node examples/mux-client.mjs [port]

import { dialConnection } from '../index.js'
import { ShardQueue } from '../mux.js'

const connection = await dialConnection('tcp', `127.0.0.1:${process.argv[2] ?? 8083}`, { timeout: 5000 })
const queue = new ShardQueue(connection)
const pending = new Map()
let last = 0

/** Callers need not know of each other: what they add in the same tick is sent together. */
function call(method, ...params) {
  const body = JSON.stringify({ method, params })
  const head = Buffer.alloc(8)
  last = (last + 1) >>> 0
  head.writeUInt32BE(4 + Buffer.byteLength(body), 0)
  head.writeUInt32BE(last, 4)
  return new Promise((resolve, reject) => {
    queue.add(head, body)
    pending.set(last, { resolve, reject })
  })
}

async function receive({ reader }) {
  for (;;) {
    await reader.waitRead(8)
    const length = reader.readUInt32BE()
    await reader.waitRead(length)
    const number = reader.readUInt32BE()
    const { result, error } = JSON.parse(reader.readString(length - 4))
    reader.release()
    const caller = pending.get(number)
    if (!pending.delete(number)) throw new Error(`an answer to no call: ${number}`)
    if (error === undefined) caller.resolve(result)
    else caller.reject(new Error(error))
  }
}

/** No answer comes any more. */
function fail(error) {
  for (const { reject } of pending.values()) reject(error)
}

async function show(name, answer) {
  console.log(name, await answer.catch((error) => `error: ${error.message}`))
}

void receive(connection).catch(fail)
const numbers = Array.from({ length: 1000 }, (_, index) => index)
await Promise.all([
  show('later:', call('later', 200, 'hello')),
  show('add:', call('add', 1, 2)),
  show('divide:', call('divide', 1, 0)),
  show(
    'a thousand sums:',
    Promise.all(numbers.map((n) => call('add', n, n))).then((sums) => sums.at(-1)),
  ),
])
await queue.close()
connection.close()
