// Sends frames of 64 KiB, each with its number, to a port: so many of them. Then it ends its side.

import { once } from 'node:events'
import { connect, send } from '../fixtures/peer.mjs'

const [port, count] = process.argv.slice(2).map(Number)
const FRAME = 64 * 1024
const BATCH = 16
const socket = await connect(port)
const batches = Array.from({ length: 4 }, () => ({ bytes: Buffer.alloc(FRAME * BATCH, 7), sent: undefined }))
let sent = 0
for (let turn = 0; sent < count; turn++) {
  const batch = batches[turn % batches.length]
  await batch.sent
  const frames = Math.min(BATCH, count - sent)
  for (let i = 0; i < frames; i++) batch.bytes.writeUInt32BE(sent++, i * FRAME)
  batch.sent = send(socket, batch.bytes.subarray(0, frames * FRAME))
}
socket.end()
socket.resume()
await once(socket, 'close')
