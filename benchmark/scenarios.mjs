/**
 * @typedef {object} Scenario
 * @property {string} title
 * @property {string} group under which it is shown
 * @property {keyof typeof import('./kinds.mjs').kinds} kind how it is measured
 * @property {string} service what the server does
 * @property {number} [size] bytes of a request's body, of a chunk or of an answer
 * @property {Record<string, number | true>} [load] options of the load generator
 * @property {boolean} [churn] each connection asks once and is closed
 * @property {string} [cores] of the server, if not SERVER_CORE
 * @property {{ seconds: number, warmup: number }} [least] how long it takes at least
 * @property {boolean} [quick] part of --quick
 */

const KiB = 1024
const MiB = 1024 * KiB

/** Part of --quick: one of each kind of load, those that differ most. */
const QUICK = [
  'echo 1 KiB, 1 connection',
  'echo 1 KiB, 100 connections',
  'echo 1 KiB, 1000 connections',
  'echo 64 KiB, 16 connections',
  'echo 1 MiB, 10 connections',
  'frame 256 B, 64 connections, 8 in flight',
  'churn 64 B, 16 connections',
  'upload 64 KiB, 16 connections',
  'mux 64 B, 4 connections, 64 in flight',
  'client 1 KiB',
]

/**
 * Combinations of echo without sense are left out: more than 64 MiB in flight measure the memory of the kernel
 * (1 MiB at 100 connections and more, 64 KiB at 5,000, and 16 KiB at 5,000, which is 80 MiB); 4, 10 and 16 connections
 * are near each other, so only 1 KiB and 1 MiB have all three.
 *
 * @type {Scenario[]}
 */
export const scenarios = [
  ...echo(64, [1, 4, 16, 100, 1000, 5000]),
  ...echo(KiB, [1, 4, 10, 16, 100, 1000, 5000]),
  ...echo(16 * KiB, [1, 4, 16, 100, 1000]),
  ...echo(64 * KiB, [1, 4, 16, 100, 1000]),
  ...echo(MiB, [1, 4, 10, 16]),
  ...frame(256, 1, [1, 64, 100, 1000]),
  ...frame(256, 8, [1, 64, 100, 1000]),
  ...frame(256, 32, [64]),
  ...mux(64, [
    [1, 64],
    [4, 64],
    [4, 256],
  ]),
  ...churn(64, [1, 16, 100]),
  ...oneWay('upload', 64 * KiB, [1, 16]),
  ...oneWay('upload', MiB, [1, 16]),
  ...oneWay('download', 64 * KiB, [1, 16]),
  ...oneWay('download', MiB, [1, 16]),
  ...relay(KiB, [1, 100]),
  ...relay(64 * KiB, [16]),
  burn(KiB, 100),
  ...client([64, KiB, 64 * KiB]),
  paced(64, 1000),
  silence(KiB, 100),
  fairness(64, 100, MiB),
  timers(KiB, 100),
  idle(2_000, 10_000),
].map((scenario) => ({ ...scenario, quick: QUICK.includes(scenario.title) }))

function echo(size, counts) {
  return counts.map((connections) => ({
    title: `echo ${bytes(size)}, ${plural(connections)}`,
    group: 'Echo',
    kind: 'load',
    service: 'echo',
    size,
    load: { connections },
  }))
}

function frame(size, inflight, counts) {
  return counts.map((connections) => ({
    title: `frame ${bytes(size)}, ${plural(connections)}, ${inflight} in flight`,
    group: 'Frames',
    kind: 'load',
    service: 'frame',
    size,
    load: { connections, inflight, frame: true },
  }))
}

/** Each frame is a call of its own, answered later: through a ShardQueue here, by one write per tick with net. */
function mux(size, counts) {
  return counts.map(([connections, inflight]) => ({
    title: `mux ${bytes(size)}, ${plural(connections)}, ${inflight} in flight`,
    group: 'Multiplexed calls',
    kind: 'load',
    service: 'mux',
    size,
    load: { connections, inflight, frame: true },
  }))
}

function churn(size, counts) {
  return counts.map((connections) => ({
    title: `churn ${bytes(size)}, ${plural(connections)}`,
    group: 'Connection churn',
    kind: 'load',
    service: 'echo',
    size,
    churn: true,
    load: { connections },
  }))
}

/** One chunk or body of each connection is on its way at a time. */
function oneWay(service, size, counts) {
  return counts.map((connections) => ({
    title: `${service} ${bytes(size)}, ${plural(connections)}`,
    group: 'One way',
    kind: 'stream',
    service,
    size,
    load: { connections, [service]: true },
  }))
}

/** The upstream, an echo server of the floor, shares the core of the load. */
function relay(size, counts) {
  return counts.map((connections) => ({
    title: `relay ${bytes(size)}, ${plural(connections)}`,
    group: 'Relay',
    kind: 'load',
    service: 'relay',
    size,
    load: { connections },
  }))
}

/**
 * The server has both cores, for what its own threads do at once to show; the load stays on its one, and shares it with
 * whatever part of the server the scheduler puts there.
 */
function burn(size, connections) {
  return {
    title: `busy 20 µs, echo ${bytes(size)}, ${plural(connections)}`,
    group: 'Busy handlers, server on both cores',
    kind: 'load',
    service: 'burn',
    size,
    load: { connections },
    cores: '0,1',
  }
}

/** A client and a server of the same peer; for the floor the load generator is the client. */
function client(sizes) {
  return sizes.map((size) => ({
    title: `client ${bytes(size)}`,
    group: 'Sequential calls, client and server of the same peer',
    kind: 'client',
    service: 'echo',
    size,
  }))
}

/** So few requests take seconds to bring the compilers to rest, whose threads are on the same core. */
function paced(size, micros) {
  return {
    title: `echo ${bytes(size)}, a request each ${micros / 1000} ms, 1 connection`,
    group: 'One request a millisecond',
    kind: 'paced',
    service: 'echo',
    size,
    load: { connections: 1, pace: micros, inflight: 1000 },
    least: { seconds: 3, warmup: 3 },
  }
}

function silence(size, connections) {
  return {
    title: `after a burst of echo ${bytes(size)}, ${plural(connections)}`,
    group: 'Silence',
    kind: 'silence',
    service: 'echo',
    size,
    load: { connections },
  }
}

/** The pingers together ask 10,000 times a second, one after the other. */
function fairness(size, connections, firehose) {
  return {
    title: `${connections} pingers of ${bytes(size)} beside a firehose of ${bytes(firehose)}`,
    group: 'Fairness',
    kind: 'fairness',
    service: 'echo',
    size,
    load: { connections, pace: 100, inflight: 1000 },
    firehose,
  }
}

function timers(size, connections) {
  return {
    title: `timers, echo ${bytes(size)}, ${plural(connections)}`,
    group: 'setTimeout(0) under load',
    kind: 'timers',
    service: 'echo',
    size,
    load: { connections },
  }
}

/** The slope between two counts leaves out what a server needs without any connection. */
function idle(few, many) {
  const title = `idle memory, ${few} to ${many} connections`
  return { title, group: 'Idle memory', kind: 'idle', service: 'echo', size: 64, few, many }
}

function bytes(size) {
  if (size >= MiB) return `${size / MiB} MiB`
  return size >= KiB ? `${size / KiB} KiB` : `${size} B`
}

function plural(connections) {
  return connections === 1 ? '1 connection' : `${connections} connections`
}
