// The collector at work all the time: views, slices, pinned Buffers and what is lent go away at any moment.

import { execFile } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import test from 'ava'
import { seed } from '../fixtures/chance.mjs'

const execute = promisify(execFile)
const program = fileURLToPath(new URL('secrets.mjs', import.meta.url))
const CLIENTS = Number(process.env.NETPOLL_HARD_CLIENTS ?? 600)
const KINDS = [
  'copies',
  'moves',
  'slices',
  'dropped',
  'views',
  'keeps',
  'detaches',
  'strings',
  'pipes',
  'closes',
]

const PRESSURE = {
  'every millisecond': ['--expose-gc', '--import', 'data:text/javascript,setInterval(gc, 1).unref()'],
  'every 2,000 allocations, and everything is moved': ['--gc-interval=2000', '--stress-compaction'],
}

for (const [when, flags] of Object.entries(PRESSURE)) {
  for (const driver of ['loop', 'thread']) {
    test.serial(
      `with the driver '${driver}' all bytes are right when garbage is collected ${when}`,
      async (t) => {
        const argument = JSON.stringify({ seed, clients: CLIENTS, kinds: KINDS })
        const env = { ...process.env, NETPOLL_DRIVER: driver, NETPOLL_ZERO_COPY: 'always' }
        const options = { env, timeout: 180_000, killSignal: 'SIGKILL' }
        const { stdout } = await execute(process.execPath, [...flags, program, argument], options)
        t.log(`seed ${seed}: ${stdout.trim()}`)
        const { wrong, foreign, pinnedSends, done, cut } = JSON.parse(stdout)
        t.deepEqual({ wrong, foreign, pinnedSends }, { wrong: 0, foreign: 0, pinnedSends: 0 })
        t.is(done + cut, CLIENTS)
      },
    )
  }
}
