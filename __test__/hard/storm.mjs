// Connections that end by a RST as soon as they are made: to a port, so many, and in which way. It ends when all have.

import { once } from 'node:events'
import net from 'node:net'
import { eachOf } from '../fixtures/figures.mjs'

const [port, count, how] = process.argv.slice(2)
await eachOf(Number(count), 200, async () => {
  const socket = net.connect({ port: Number(port), host: '127.0.0.1' })
  socket.on('error', () => undefined)
  const closed = once(socket, 'close')
  socket.on('connect', () => {
    if (how === 'written') socket.write('unfinished')
    socket.resetAndDestroy()
  })
  await closed
})
