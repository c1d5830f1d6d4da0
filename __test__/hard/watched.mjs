// server.mjs in a process of its own, and what is asked of it.

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readdirSync } from 'node:fs'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'

/** The path of a program beside this one. */
export const program = (name) => fileURLToPath(new URL(name, import.meta.url))

/** Starts server.mjs, with limits of prlimit, flags of Node and an environment if there are any. */
export async function watched(t, what, { limits = [], flags = [], env = process.env } = {}) {
  const server = [process.execPath, '--expose-gc', ...flags, program('server.mjs'), JSON.stringify(what)]
  const [command, ...args] = limits.length > 0 ? ['prlimit', ...limits, ...server] : server
  const child = spawn(command, args, { env, stdio: ['pipe', 'pipe', 'inherit'] })
  t.teardown(() => void child.kill('SIGKILL'))
  const lines = createInterface(child.stdout)[Symbol.asyncIterator]()
  const port = Number((await lines.next()).value)
  const { pid } = child
  const report = async (line = '') => {
    child.stdin.write(`${line}\n`)
    return JSON.parse((await lines.next()).value)
  }
  const stop = async () => {
    child.stdin.end()
    return once(child, 'close')
  }
  return { child, pid, port, report, stop, descriptors: () => readdirSync(`/proc/${pid}/fd`).length }
}
