import { connect } from 'node:net'
import { measureCalls, port, size } from './calls.mjs'

const socket = connect({ host: '127.0.0.1', port, noDelay: true })
let missing = 0
let answered

socket.on('data', (chunk) => {
  missing -= chunk.length
  if (missing === 0) answered()
})

await measureCalls((request) => {
  missing = size
  socket.write(request)
  return new Promise((resolve) => (answered = resolve))
})
socket.destroy()
