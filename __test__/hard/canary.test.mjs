// Each connection has a secret. Whatever handlers do with the safe methods, and however connections end, none of it
// shows up on another one; and what looks for it would see it.

import { execFile } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import test from 'ava'
import { seed } from '../fixtures/chance.mjs'

const execute = promisify(execFile)
const program = fileURLToPath(new URL('secrets.mjs', import.meta.url))
const CLIENTS = Number(process.env.NETPOLL_HARD_CLIENTS ?? 8000)
const SAFE = ['copies', 'strings', 'moves', 'slices', 'dropped', 'views', 'keeps', 'closes', 'pipes']
/** What the ends of connections may do to handlers. */
const ENDS = /^(ERR_NETPOLL_(CONN_CLOSED|EOF)|ECONNRESET|EPIPE)$/

async function secrets(t, what, env) {
  const argument = JSON.stringify({ seed, clients: CLIENTS, ...what })
  const options = { env: { ...process.env, ...env }, timeout: 240_000, killSignal: 'SIGKILL' }
  const { stdout } = await execute(process.execPath, [program, argument], options)
  t.log(`seed ${seed}: ${stdout.trim()}`)
  const counts = JSON.parse(stdout)
  t.is(counts.done + counts.cut, what.clients ?? CLIENTS)
  t.is(counts.pinnedSends, 0)
  for (const code of Object.keys(counts.failures)) t.regex(code, ENDS)
  return counts
}

for (const env of [
  { NETPOLL_DRIVER: 'loop' },
  { NETPOLL_DRIVER: 'thread', NETPOLL_NUM_LOOPS: '3' },
  { NETPOLL_DRIVER: 'adaptive', NETPOLL_NUM_LOOPS: '2' },
  { NETPOLL_DRIVER: 'thread', NETPOLL_RING_ENTRIES: '8' },
]) {
  const settings = Object.entries(env).map((one) => one.join('='))
  test.serial(`with ${settings.join(' ')} no secret shows up on another connection`, async (t) => {
    const { wrong, foreign, checked } = await secrets(t, { kinds: SAFE }, env)
    t.deepEqual({ wrong, foreign }, { wrong: 0, foreign: 0 })
    t.true(checked > CLIENTS)
  })
}

test.serial('views that are looked at after their release do show the secrets of others', async (t) => {
  const { foreign } = await secrets(t, { kinds: ['unsafe'], clients: 1000 })
  t.true(foreign > 100, `${foreign} seen`)
})

test.serial('with NETPOLL_DEBUG=1 they show nothing', async (t) => {
  const kinds = ['unsafe']
  const { wrong, foreign } = await secrets(t, { kinds, clients: 1000 }, { NETPOLL_DEBUG: '1' })
  t.deepEqual({ wrong, foreign }, { wrong: 0, foreign: 0 })
})
