// A process in which one system call of the package fails, as NETPOLL_FAULT says: it serves and dials, one connection
// after the other, and prints as JSON how each of them went and what is left.

import { createEventLoop, createListener, dialConnection, stats } from '../../index.js'
import { connect, descriptors, netServer, outcome, take, until } from '../fixtures/peer.mjs'

const SMALL = Array.from({ length: 12 }, (_, i) => pattern(100 * i + 1))
const LARGE = pattern(400_000)
const ROUNDS = 5

/** Codes with which connections, dials and the listener ended; 'exact' for those of which every byte was right. */
const ends = []
const wrong = []
/** How many have heard less than they have said. */
let short = 0

function pattern(length) {
  return Buffer.from(Uint8Array.from({ length }, (_, i) => Math.imul(i, 2_654_435_761) >>> 24))
}

async function echo(connection) {
  const { reader, writer } = connection
  try {
    for (;;) {
      await reader.waitRead(1)
      writer.append(reader)
      if (!writer.flush()) await connection.flushed()
    }
  } catch ({ code }) {
    if (code !== 'ERR_NETPOLL_EOF') ends.push(code)
    connection.close()
  }
}

/** What came back is a beginning of what was said, and all of it unless something has failed. */
function judge(heard, said, failed) {
  if (!said.subarray(0, heard.length).equals(heard)) wrong.push(`other bytes among ${heard.length}`)
  if (heard.length < said.length) short++
  else if (!failed) ends.push('exact')
}

async function client(port) {
  // Without a listener there is nobody.
  const socket = await connect(port).catch(() => undefined)
  if (socket === undefined) return
  const parts = []
  for (const message of [...SMALL, LARGE]) {
    socket.write(message)
    parts.push(await take(socket, message.length))
    if (parts.at(-1).length < message.length) break
  }
  socket.end()
  const { bytes } = await outcome(socket)
  const said = Buffer.concat([...SMALL, LARGE])
  judge(Buffer.concat([...parts, bytes]), said, false)
  socket.destroy()
}

async function dialer(address) {
  let connection
  const said = Buffer.concat(SMALL)
  const heard = []
  try {
    connection = await dialConnection('tcp', address)
    for (const message of SMALL) {
      connection.writer.writeBinary(message)
      if (!connection.writer.flush()) await connection.flushed()
      for (let left = message.length; left > 0;) {
        await connection.reader.waitRead(1)
        const bytes = connection.reader.readBinary(Math.min(left, connection.reader.length))
        heard.push(bytes)
        left -= bytes.length
      }
    }
    judge(Buffer.concat(heard), said, false)
  } catch ({ code }) {
    ends.push(code)
    judge(Buffer.concat(heard), said, true)
  }
  connection?.close()
  await connection?.closed
}

const teardowns = []
try {
  const { address, accepted } = await netServer({ teardown: (last) => teardowns.push(last) }, (socket) =>
    socket.pipe(socket),
  )
  const listener = createListener('tcp', '127.0.0.1:0')
  const loop = createEventLoop(undefined, { onConnect: (connection) => void echo(connection) })
  const served = loop.serve(listener).catch(({ code }) => ends.push(code))
  const before = descriptors()
  for (let round = 0; round < ROUNDS; round++) {
    await client(listener.address().port)
    await dialer(address)
  }
  for (const socket of accepted) socket.destroy()
  await until(() => accepted.every((socket) => socket.closed))
  await until(() => stats().connections === 0, 'no connection is left')
  await until(() => {
    const { blocksOut, pinnedSends, polls } = stats()
    // Each poll has a block for the next read and one for the next write.
    return blocksOut <= 2 * Math.max(polls.length, 1) && pinnedSends === 0
  }, 'blocks and pins are back')
  await until(() => descriptors() <= before, 'descriptors are closed')
  await loop.shutdown({ timeout: 0 }).catch(({ code }) => ends.push(code))
  await served
} catch (error) {
  if (error.syscall === undefined) wrong.push(String(error.stack))
  ends.push(error.code)
}
for (const last of teardowns) last()
console.log(JSON.stringify({ ends, wrong, short }))
