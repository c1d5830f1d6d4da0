// npm run bench [-- --rounds N --seconds S --only PATTERN --peers a,b --quick]
import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, writeFileSync } from 'node:fs'
import os from 'node:os'
import { parseArgs } from 'node:util'
import { measure, measureIdle } from './measure.mjs'
import { LOAD_CORE, SERVER_CORE, loadBinary, peerNames, startServer } from './peers.mjs'
import { markdown, summarize } from './report.mjs'
import { idle, scenarios } from './scenarios.mjs'

const root = new URL('..', import.meta.url)
const results = new URL('results/', import.meta.url)

const { values: options } = parseArgs({
  options: {
    rounds: { type: 'string' },
    seconds: { type: 'string' },
    only: { type: 'string', default: '' },
    peers: { type: 'string', default: peerNames.join(',') },
    quick: { type: 'boolean', default: false },
  },
})
const settings = {
  rounds: positive('rounds', options.rounds ?? (options.quick ? '2' : '5')),
  seconds: positive('seconds', options.seconds ?? (options.quick ? '0.5' : '2')),
  warmup: options.quick ? 0.4 : 0.8,
}
const peers = options.peers.split(',')
const pattern = new RegExp(options.only, 'i')
const chosen = scenarios.filter(({ title }) => pattern.test(title))
const withIdle = pattern.test(idle.title)

await prepare()
const total = settings.rounds * peers.length * (chosen.length + (withIdle ? 1 : 0))
let done = 0
await report(await runAll())

async function runAll() {
  const outcome = { machine: machine(), settings, scenarios: [], idle: undefined }
  for (const scenario of chosen) {
    const rounds = await runRounds(scenario, (peer) => measure(peer, scenario, settings))
    outcome.scenarios.push({ ...scenario, ...summaries(rounds), rounds })
  }
  if (withIdle) {
    const rounds = await runRounds(idle, (peer) => measureIdle(peer, idle))
    const figures = ['before', 'after']
    outcome.idle = { ...idle, ...summaries(rounds, figures, { net: figures }), rounds }
  }
  return outcome
}

/**
 * The peers take turns, each round in another order, so that a machine that changes its speed changes it for all.
 *
 * Every measurement has a fresh server: nothing of another scenario is in its heap, no other server is alive on
 * its core, and the luck of one process (addresses, optimizations) shows as spread instead of staying for all
 * rounds. The warm-up is for the compiler.
 */
async function runRounds(scenario, measurePeer) {
  const rounds = []
  for (let round = 0; round < settings.rounds; round++) {
    const figures = {}
    for (let turn = 0; turn < peers.length; turn++) {
      const peer = peers[(round + turn) % peers.length]
      figures[peer] = await measurePeer(peer).catch((error) => ({ error: error.message }))
      progress(scenario, round, peer, figures[peer])
    }
    rounds.push(figures)
  }
  return rounds
}

function summaries(rounds, ...what) {
  const failures = rounds.flatMap((round) =>
    Object.entries(round).flatMap(([peer, { error }]) =>
      error ? `${peer}: ${error.replaceAll(/\s+/g, ' ')}` : [],
    ),
  )
  return {
    peers: Object.fromEntries(peers.map((peer) => [peer, summarize(rounds, peer, ...what)])),
    failures: [...new Set(failures)],
  }
}

function progress({ title }, round, peer, { error, throughput, cpu, before, after }) {
  const load = () => `${(throughput / 1000).toFixed(1)}k req/s, ${cpu.toFixed(2)} µs`
  const memory = () => `${(before / 1024).toFixed(2)} and ${(after / 1024).toFixed(2)} KiB`
  const figures = error ? 'failed' : throughput ? load() : memory()
  const line = `[${++done}/${total}] ${title}, round ${round + 1}/${settings.rounds}, ${peer}: ${figures}`
  process.stderr.write(process.stderr.isTTY ? `\r\x1b[K${line}` : `${line}\n`)
}

async function report(outcome) {
  if (process.stderr.isTTY) process.stderr.write('\r\x1b[K')
  const text = markdown(outcome)
  mkdirSync(results, { recursive: true })
  writeFileSync(new URL('latest.json', results), `${JSON.stringify(outcome, null, 2)}\n`)
  writeFileSync(new URL('latest.md', results), text)
  console.log(text)
  const failed = [...outcome.scenarios, ...(outcome.idle ? [outcome.idle] : [])].some(
    ({ failures }) => failures.length,
  )
  if (failed) fail('Some measurements have failed; see the table.')
}

function machine() {
  return {
    cpu: os.cpus()[0].model,
    cores: os.cpus().length,
    kernel: os.release(),
    node: process.versions.node,
  }
}

/** Everything that a measurement needs, or a clear word about what is missing. */
async function prepare() {
  if (process.platform !== 'linux') fail('The benchmarks need Linux.')
  if (os.availableParallelism() <= Math.max(SERVER_CORE, LOAD_CORE)) fail('The benchmarks need two cores.')
  if (spawnSync('taskset', ['-V']).error) fail('taskset is missing; it comes with util-linux.')
  if (!existsSync('/proc/self/schedstat')) fail('This kernel has no /proc/PID/schedstat (CONFIG_SCHED_INFO).')
  const unknown = peers.find((peer) => !peerNames.includes(peer))
  if (unknown) fail(`${unknown} is no peer; there are ${peerNames.join(', ')}.`)
  if (chosen.length === 0 && !withIdle) fail(`No scenario matches ${options.only}.`)
  buildLoad()
  for (const peer of peers) await tryServer(peer)
}

function buildLoad() {
  const build = spawnSync('cargo', ['build', '--release', '--quiet', '-p', 'netpoll-load'], {
    cwd: root,
    stdio: ['ignore', 'inherit', 'inherit'],
  })
  if (build.error && !existsSync(loadBinary))
    fail('The load generator is not built, and there is no cargo to build it.')
  if (build.status) fail('The load generator does not build.')
}

async function tryServer(peer) {
  try {
    const { server } = await startServer(peer, 'echo')
    await server.kill()
  } catch (error) {
    const hint =
      peer === 'netpoll'
        ? 'The package does not run; build it with `npm run build`, or leave it out with --peers net,floor.'
        : ''
    fail(`The ${peer} server does not start. ${hint}\n${error.message}`)
  }
}

function positive(name, text) {
  const value = Number(text)
  if (!(value > 0)) fail(`--${name} has to be a number above 0.`)
  return value
}

function fail(message) {
  console.error(message)
  process.exit(1)
}
