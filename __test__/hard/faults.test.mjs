// Each system call fails at some of its first calls, in every way, below a whole process: what is served and dialed is
// right to the byte or fails once, by a code that says why, and nothing is left. The core's own tests do this call by
// call (crates/netpoll/src/poll/tests/faults.rs). The module is built with the feature `fault`, apart from the other.

import { execFile, execFileSync } from 'node:child_process'
import { copyFileSync, mkdirSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import test from 'ava'
import { eachOf } from '../fixtures/figures.mjs'

const execute = promisify(execFile)
const root = fileURLToPath(new URL('../..', import.meta.url))
const program = fileURLToPath(new URL('faulty.mjs', import.meta.url))
const addon = join(root, 'target/fault/netpoll.node')

const ERRORS = ['EINTR', 'EAGAIN', 'ENOBUFS', 'ENOMEM', 'EMFILE', 'ECONNRESET', 'EPIPE']
const NUMBERS = [1, 2, 5, 20]
/** Calls that move bytes, which may be one at a time. */
const MOVERS = ['recv', 'readv', 'recvmsg', 'send', 'sendmsg']
const OTHERS = [
  ...['accept4', 'bind', 'connect', 'epoll_ctl', 'epoll_wait', 'getpeername', 'getsockname', 'getsockopt'],
  ...['ioctl', 'listen', 'mmap', 'setsockopt', 'shutdown', 'socket'],
]

/** Calls that are made again when a signal has interrupted them. */
const REPEATED = [...MOVERS, 'accept4', 'epoll_wait', 'ioctl']

/** Each call, and how it may fail. */
const CALLS = [...MOVERS.map((call) => [call, [...ERRORS, '1b']]), ...OTHERS.map((call) => [call, ERRORS])]

test.before('the module is built with the feature', () => {
  execFileSync('cargo', ['build', '--quiet', '--package', 'netpoll-node', '--features', 'fault'], {
    cwd: root,
  })
  mkdirSync(join(root, 'target/fault'), { recursive: true })
  copyFileSync(join(root, 'target/debug/libnetpoll_node.so'), addon)
})

/** How a process with a fault has ended, or why it has not. */
async function run(fault, settings) {
  const env = {
    NAPI_RS_NATIVE_LIBRARY_PATH: addon,
    NETPOLL_NUM_LOOPS: '1',
    NETPOLL_FAULT: fault,
    ...settings,
  }
  const options = { env: { ...process.env, ...env }, timeout: 90_000, killSignal: 'SIGKILL' }
  try {
    const { stdout, stderr } = await execute(process.execPath, [program], options)
    return { ...JSON.parse(stdout), struck: stderr.includes('netpoll: ') }
  } catch ({ code, signal, stderr, message }) {
    return { ends: [], wrong: [`${code ?? signal}: ${stderr || message}`], short: 0, struck: true }
  }
}

/** Whether nobody may notice. */
function isHarmless({ call, error }) {
  if (error === 'EINTR') return REPEATED.includes(call)
  return error === 'EAGAIN' && (MOVERS.includes(call) || call === 'accept4')
}

/** What is wrong with it. */
function objections({ call, error }, { ends, wrong, short }) {
  const failures = ends.filter((end) => end !== 'exact')
  const harmless = isHarmless({ call, error })
  // A poll that cannot wait has died, and all that it had with it.
  const died = call === 'epoll_wait' && !harmless && failures.every((end) => end === 'ERR_NETPOLL_POLL_DIED')
  // What could not be taken out of epoll is refused when it comes there again.
  const known = call === 'epoll_ctl' ? [error, 'EEXIST'] : [error]
  const typed = failures.length <= (harmless ? 0 : 1) && failures.every((end) => known.includes(end))
  const none = ends.length === 0 ? ['nothing was done'] : []
  const silent = short > 0 && failures.length === 0 ? [`${short} have heard less than all`] : []
  return [...wrong, ...none, ...silent, ...(died || typed ? [] : [`ends with ${failures}`])]
}

for (const [name, settings] of Object.entries({
  'a poll on a thread': { NETPOLL_DRIVER: 'thread' },
  'a poll on the loop': { NETPOLL_DRIVER: 'loop' },
  'output that is not copied': { NETPOLL_DRIVER: 'thread', NETPOLL_ZERO_COPY: 'always' },
})) {
  test.serial(`whatever call fails below ${name}, bytes are exact or one error says why`, async (t) => {
    const struck = {}
    const wrong = []
    await eachOf(CALLS.length, 2, async (i) => {
      const [call, errors] = CALLS[i]
      for (const number of NUMBERS) {
        let hits = 0
        for (const error of errors) {
          const script = `${call}:${number}:${error}`
          const outcome = await run(script, settings)
          hits += Number(outcome.struck)
          for (const objection of objections({ call, error }, outcome)) wrong.push(`${script}: ${objection}`)
        }
        struck[call] = (struck[call] ?? 0) + hits
        // Then it is not made so often.
        if (hits === 0) break
      }
    })
    t.deepEqual(wrong, [])
    const expected = ['accept4', 'connect', 'epoll_ctl', 'epoll_wait', 'recv', 'send', 'shutdown', 'socket']
    for (const call of expected) t.true(struck[call] > 0, `${call} has failed`)
    t.log(struck)
  })
}
