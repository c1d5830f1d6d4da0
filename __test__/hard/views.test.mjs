// What libraries do to views and Buffers, thousands of times among others' traffic: no other connection notices.

import { execFile } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import test from 'ava'
import { seed } from '../fixtures/chance.mjs'

const execute = promisify(execFile)
const program = fileURLToPath(new URL('secrets.mjs', import.meta.url))
const CLIENTS = Number(process.env.NETPOLL_HARD_CLIENTS ?? 6000)
const ENDS = /^(ERR_NETPOLL_(CONN_CLOSED|EOF)|ECONNRESET|EPIPE)$/

const HARM = {
  'views are detached by streams of bytes, structuredClone(), postMessage() and transfer()': {
    // Views that a handler holds over an await are not among them: all that were cut from a chunk go together.
    kinds: ['detaches', 'copies', 'moves', 'slices', 'strings', 'pipes'],
    happened: ({ stream, clone, post }) => Math.min(stream, clone, post),
  },
  'Buffers are posted away while they are being sent': {
    kinds: ['gives', 'copies', 'moves', 'views'],
    happened: ({ given = 0, refused = 0 }) => given + refused,
  },
}

for (const [what, { kinds, happened }] of Object.entries(HARM)) {
  for (const driver of ['loop', 'thread', 'adaptive']) {
    test.serial(`with the driver '${driver}' no connection notices that of others ${what}`, async (t) => {
      const argument = JSON.stringify({ seed, clients: CLIENTS, kinds })
      const env = { ...process.env, NETPOLL_DRIVER: driver }
      const options = { env, timeout: 180_000, killSignal: 'SIGKILL' }
      const { stdout } = await execute(process.execPath, [program, argument], options)
      t.log(`seed ${seed}: ${stdout.trim()}`)
      const counts = JSON.parse(stdout)
      t.deepEqual([counts.wrong, counts.foreign, counts.pinnedSends], [0, 0, 0])
      t.is(counts.done + counts.cut, CLIENTS)
      t.true(happened(counts) > CLIENTS / 20, stdout)
      for (const code of Object.keys(counts.failures)) t.regex(code, ENDS)
    })
  }
}
