import { startServer, startUpstream } from '../peers.mjs'

/**
 * Lets `use` have a fresh server, and its port.
 *
 * @template T
 * @param {import('../peers.mjs').Peer} peer
 * @param {import('../scenarios.mjs').Scenario} scenario
 * @param {(server: import('../child.mjs').Child, port: string) => Promise<T>} use
 * @returns {Promise<T>}
 */
export async function withServer(peer, scenario, use) {
  const upstream = scenario.service === 'relay' ? await startUpstream() : undefined
  try {
    const { server, port } = await startServer(peer, { ...scenario, upstream: upstream?.port })
    try {
      return await use(server, port)
    } finally {
      await server.kill()
    }
  } finally {
    await upstream?.server.kill()
  }
}

/** Lets `use` have a process that is ended in any case. */
export async function withChild(child, use) {
  try {
    return await use(child)
  } finally {
    await child.kill()
  }
}
