/**
 * @typedef {object} Scenario
 * @property {string} title
 * @property {'echo' | 'frame'} service what the server does
 * @property {number} size of a request's body in bytes
 * @property {number} connections
 * @property {number} inflight requests that each connection keeps unanswered
 */

const KiB = 1024
const MiB = 1024 * KiB

/** @type {Scenario[]} */
export const scenarios = [
  ...echo(64, [1, 100, 1000]),
  ...echo(KiB, [1, 100, 1000]),
  ...echo(64 * KiB, [1, 16, 100]),
  ...echo(MiB, [1, 16]),
  ...frame(256, 1, [1, 64, 100, 1000]),
  ...frame(256, 8, [1, 64, 100, 1000]),
]

/** Memory of idle connections: the slope between two counts leaves out what a server needs without any. */
export const idle = { title: 'idle memory', few: 2_000, many: 10_000, size: 64 }

function echo(size, counts) {
  return counts.map((connections) => ({
    title: `echo ${bytes(size)}, ${plural(connections)}`,
    service: 'echo',
    size,
    connections,
    inflight: 1,
  }))
}

function frame(size, inflight, counts) {
  return counts.map((connections) => ({
    title: `frame ${bytes(size)}, ${plural(connections)}, ${inflight} in flight`,
    service: 'frame',
    size,
    connections,
    inflight,
  }))
}

function bytes(size) {
  if (size >= MiB) return `${size / MiB} MiB`
  return size >= KiB ? `${size / KiB} KiB` : `${size} B`
}

function plural(connections) {
  return connections === 1 ? '1 connection' : `${connections} connections`
}
