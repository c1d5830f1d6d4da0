import { spawnSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import os from 'node:os'
import { goBinary, loadBinary, LOAD_CORE, SERVER_CORE, startServer } from './peers.mjs'

const root = new URL('..', import.meta.url)

/** Throws a clear word about what a measurement needs and this machine has not. */
export function checkMachine() {
  if (process.platform !== 'linux') throw new Error('the benchmarks need Linux')
  if (os.availableParallelism() <= Math.max(SERVER_CORE, LOAD_CORE))
    throw new Error('the benchmarks need two cores')
  if (spawnSync('taskset', ['-V']).error) throw new Error('taskset is missing; it comes with util-linux')
  if (!existsSync('/proc/self/schedstat'))
    throw new Error('this kernel has no /proc/PID/schedstat (CONFIG_SCHED_INFO)')
}

export function buildLoad() {
  const build = spawnSync('cargo', ['build', '--release', '--quiet', '-p', 'netpoll-load'], {
    cwd: root,
    stdio: ['ignore', 'inherit', 'inherit'],
  })
  if (build.error && !existsSync(loadBinary))
    throw new Error('the load generator is not built, and there is no cargo to build it')
  if (build.status) throw new Error('the load generator does not build')
}

/** Why the peers in Go cannot be measured, or undefined. */
export function buildGo() {
  if (spawnSync('go', ['version']).status !== 0) return 'there is no go on the PATH'
  const build = spawnSync('go', ['build', '-o', goBinary, '.'], {
    cwd: new URL('benchmark/servers/go', root),
    encoding: 'utf8',
    stdio: ['ignore', 'ignore', 'pipe'],
  })
  return build.status === 0 ? undefined : `they do not build: ${build.stderr.trim().replaceAll(/\s+/g, ' ')}`
}

/** Throws when a server does not start. */
export async function tryServer(peer) {
  try {
    const { server } = await startServer(peer, { service: 'echo' })
    await server.kill()
  } catch (error) {
    const hint = peer.name === 'netpoll' ? '; `npm run build` builds the package' : ''
    throw new Error(`the server of ${peer.name} does not start${hint}\n${error.message}`, { cause: error })
  }
}

export function describeMachine() {
  return {
    cpu: os.cpus()[0].model,
    cores: os.cpus().length,
    kernel: os.release(),
    node: process.versions.node,
  }
}
