import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readdirSync, readFileSync } from 'node:fs'
import { createInterface } from 'node:readline'
import { setTimeout as delay } from 'node:timers/promises'

/** Nothing that is waited for takes longer, unless it hangs. */
const PATIENCE = 60_000

/** A process pinned to a core, or to several, that answers in lines on its stdout. */
export class Child {
  #process
  #lines
  #exited
  #complaint = ''
  /** Whether ask() is answered. */
  answersMessages

  /**
   * @param {string} cores as taskset takes them
   * @param {string[]} command
   * @param {{ ipc?: boolean, env?: Record<string, string> }} [options]
   */
  constructor(cores, command, { ipc = false, env = {} } = {}) {
    const stdio = ['pipe', 'pipe', 'pipe', ...(ipc ? ['ipc'] : [])]
    this.#process = spawn('taskset', ['-c', cores, ...command], { stdio, env: { ...process.env, ...env } })
    this.answersMessages = ipc
    this.#process.stdin.on('error', () => {}) // it has ended: the next line() tells why
    this.#process.stderr.setEncoding('utf8').on('data', (text) => (this.#complaint += text))
    this.#exited = once(this.#process, 'close')
    this.#lines = createInterface({ input: this.#process.stdout })[Symbol.asyncIterator]()
  }

  /** The next line of its stdout. */
  async line() {
    const { value, done } = await within(this.#lines.next())
    if (!done) return value
    await within(this.#exited)
    const { exitCode, signalCode } = this.#process
    throw new Error(`a process ended (${exitCode ?? signalCode}): ${this.#complaint.trim()}`)
  }

  /** Writes a line to its stdin. */
  write(line) {
    this.#process.stdin.write(`${line}\n`)
  }

  /** Ends its stdin. */
  closeInput() {
    this.#process.stdin.end()
  }

  /** Sends a message and waits for the next one that comes back; undefined if it takes none. */
  async ask(message) {
    if (!this.answersMessages) return undefined
    const answer = once(this.#process, 'message')
    this.#process.send(message)
    const [value] = await within(answer)
    return value
  }

  /** The next line has to be this one. */
  async expect(wanted) {
    const line = await this.line()
    if (line !== wanted) throw new Error(`expected ${wanted}, got ${line}`)
  }

  /** Waits until it has ended by itself; rejects if it has failed. */
  async ended() {
    const [code, signal] = await within(this.#exited)
    if (code !== 0) throw new Error(`a process failed (${code ?? signal}): ${this.#complaint.trim()}`)
  }

  async kill() {
    this.#process.kill('SIGKILL')
    await this.#exited
  }

  /** Nanoseconds on a core so far: of all its threads, and of its first one, on which JavaScript runs. */
  cpu() {
    const { pid } = this.#process
    const time = (task) =>
      Number(readFileSync(`/proc/${pid}/task/${task}/schedstat`, 'utf8').split(' ', 1)[0])
    const all = readdirSync(`/proc/${pid}/task`).reduce((sum, task) => sum + time(task), 0)
    return { all, main: time(pid) }
  }

  /** Bytes of its memory that are resident. */
  rss() {
    const [, kilobytes] = /^VmRSS:\s+(\d+) kB$/m.exec(
      readFileSync(`/proc/${this.#process.pid}/status`, 'utf8'),
    )
    return Number(kilobytes) * 1024
  }
}

async function within(promise) {
  const timer = new AbortController()
  const late = delay(PATIENCE, undefined, { signal: timer.signal }).then(() => {
    throw new Error(`nothing happened within ${PATIENCE / 1000} s`)
  })
  late.catch(() => {})
  try {
    return await Promise.race([promise, late])
  } finally {
    timer.abort()
  }
}
