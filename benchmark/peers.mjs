import { existsSync } from 'node:fs'
import { resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { Child } from './child.mjs'

/** Server and load have a core each, so that neither takes time from the other. */
export const SERVER_CORE = '0'
export const LOAD_CORE = '1'

const target = process.env.CARGO_TARGET_DIR ?? path('../target')

/** The load generator, which is the floor as well. */
export const loadBinary = `${target}/release/netpoll-load`

/** The peers in Go, one program. */
export const goBinary = `${target}/benchmark/servers`

export const DRIVERS = ['adaptive', 'loop', 'thread']

export const GO_PEERS = ['go-netpoll', 'go-netpoll-2', 'gnet', 'go-net']

/** What each is, where results are shown. */
export const descriptions = {
  netpoll: 'this package',
  base: 'another checkout of this package',
  'go-netpoll': 'cloudwego/netpoll v0.7.2 with one poller',
  'go-netpoll-2': 'cloudwego/netpoll v0.7.2 with two pollers',
  gnet: 'gnet v2.9.7 with one event loop',
  'go-net': 'net of Go',
  net: 'net of Node',
  floor: 'the plainest epoll loop in Rust',
}

/**
 * @typedef {object} Peer
 * @property {string} name
 * @property {string[]} services
 * @property {boolean} javascript its server answers what servers/session.mjs does
 * @property {(args: string[], cores: string) => Child} server
 * @property {((port: string, args: number[]) => Child) | undefined} client calls one after the other
 */

/**
 * Those with these names; `netpoll:loop` is netpoll with that driver.
 *
 * @param {string[]} names
 * @param {{ driver?: string, loops?: string, busyPoll?: string, base?: string }} options of this package
 * @returns {Peer[]}
 */
export function findPeers(names, options) {
  return names.map((name) => ({ name, ...findPeer(name, options) }))
}

/** Why a peer has no part in a scenario, if it has none. */
export function refusal(peer, { service, kind }) {
  if (!peer.services.includes(service)) return `its server does no ${service}`
  if (kind === 'client' && !peer.client) return 'it has no client here'
  if (kind === 'timers' && !peer.javascript) return 'it has no timers of JavaScript'
  return undefined
}

/** Starts a server that is ready: { server, port }. */
export async function startServer(peer, { service, size = 0, upstream = 0, cores = SERVER_CORE }) {
  return whenReady(peer.server([service, `${size}`, `${upstream}`], cores))
}

/** The server behind a relay, on the core of the load. */
export async function startUpstream() {
  return whenReady(floorServer(['echo', '0', '0'], LOAD_CORE))
}

/**
 * @param {string} command of the load generator
 * @param {string} port
 * @param {Record<string, string | number | true>} options
 */
export function startLoad(command, port, options) {
  const flags = Object.entries(options).flatMap(([name, value]) =>
    value === true ? `--${name}` : [`--${name}`, `${value}`],
  )
  return new Child(LOAD_CORE, [loadBinary, command, '--port', port, ...flags])
}

const SERVICES = ['echo', 'frame', 'mux', 'upload', 'download', 'relay', 'burn']

function findPeer(name, { driver, loops, busyPoll, base }) {
  const [kind, variant = driver] = name.split(':')
  if (variant !== undefined && !DRIVERS.includes(variant)) throw new Error(`${variant} is no driver`)
  const env = {
    ...(variant && { NETPOLL_BENCH_DRIVER: variant }),
    ...(loops && { NETPOLL_BENCH_LOOPS: loops }),
    ...(busyPoll && { NETPOLL_BENCH_BUSY_POLL: busyPoll }),
  }
  if (kind === 'netpoll') return script('netpoll', env)
  if (kind === 'base') {
    if (!base) throw new Error('the peer base needs --base PATH, a checkout that is built')
    if (!existsSync(`${base}/index.js`)) throw new Error(`there is no package in ${base}`)
    return script('netpoll', { ...env, NETPOLL_BENCH_PACKAGE: resolve(base) })
  }
  if (name === 'net') return script('net', {})
  if (name === 'floor')
    return { services: SERVICES, javascript: false, server: floorServer, client: floorClient }
  if (GO_PEERS.includes(name)) return go(name)
  throw new Error(`${name} is no peer; there are ${Object.keys(descriptions).join(', ')}`)
}

function script(file, env) {
  const node = (folder) => [process.execPath, '--expose-gc', path(`${folder}/${file}.mjs`)]
  return {
    services: SERVICES,
    javascript: true,
    server: (args, cores) => new Child(cores, [...node('servers'), ...args], { ipc: true, env }),
    client: (port, args) => new Child(LOAD_CORE, [...node('clients'), port, ...args.map(String)], { env }),
  }
}

function go(name) {
  return {
    services: ['echo', 'frame', 'upload', 'download', 'burn'],
    javascript: false,
    server: ([service, size], cores) => {
      // gnet would announce itself on stdout: 2 is only errors.
      const env = { GOMAXPROCS: `${cores.split(',').length}`, GNET_LOGGING_LEVEL: '2' }
      return new Child(cores, [goBinary, name, service, size], { env })
    },
  }
}

function floorServer(args, cores) {
  return new Child(cores, [loadBinary, 'floor', '--port', '0', ...floorFlags(args)])
}

function floorFlags([service, size, upstream]) {
  if (service === 'relay') return ['--upstream', upstream]
  if (service === 'mux') return ['--service', 'frame'] // in order, as all frames
  return ['echo', 'frame'].includes(service) ? ['--service', service] : ['--service', service, '--size', size]
}

function floorClient(port, [size, seconds, warmup]) {
  return startLoad('run', port, { connections: 1, size, duration: seconds, warmup })
}

async function whenReady(server) {
  try {
    const line = await server.line()
    const port = /^ready (\d+)$/.exec(line)?.[1]
    if (port === undefined) throw new Error(`expected a port, got ${line}`)
    return { server, port }
  } catch (error) {
    await server.kill()
    throw error
  }
}

function path(relative) {
  return fileURLToPath(new URL(relative, import.meta.url))
}
