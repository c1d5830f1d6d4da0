import { fileURLToPath } from 'node:url'
import { Child } from './child.mjs'

/** Server and load have a core each, so that neither takes time from the other. */
export const SERVER_CORE = 0
export const LOAD_CORE = 1

const target = process.env.CARGO_TARGET_DIR ?? path('../target')

/** The load generator, which is the floor as well. */
export const loadBinary = `${target}/release/netpoll-load`

/** What the others are compared with comes last. */
export const peerNames = ['netpoll', 'net', 'floor']

/**
 * Starts a server that is ready.
 *
 * @param {string} peer
 * @param {'echo' | 'frame'} service
 */
export async function startServer(peer, service) {
  const server = peer === 'floor' ? floor(service) : node(peer, service)
  try {
    const [, port] = /^ready (\d+)$/.exec(await server.line())
    return { server, port }
  } catch (error) {
    await server.kill()
    throw error
  }
}

/**
 * @param {string} command of the load generator
 * @param {Record<string, string | number | true>} options
 */
export function startLoad(command, port, options) {
  const flags = Object.entries(options).flatMap(([name, value]) =>
    value === true ? `--${name}` : [`--${name}`, `${value}`],
  )
  return new Child(LOAD_CORE, [loadBinary, command, '--port', port, ...flags])
}

function floor(service) {
  const flags = service === 'frame' ? ['--frame'] : []
  return new Child(SERVER_CORE, [loadBinary, 'floor', '--port', '0', ...flags])
}

function node(peer, service) {
  const script = path(`servers/${peer}.mjs`)
  return new Child(SERVER_CORE, [process.execPath, '--expose-gc', script, service], { ipc: true })
}

function path(relative) {
  return fileURLToPath(new URL(relative, import.meta.url))
}
