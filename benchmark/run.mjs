// npm run bench: see options.mjs, or --help
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { chart } from './chart.mjs'
import { figures, kinds } from './kinds.mjs'
import { choose, parseOptions, usage } from './options.mjs'
import { descriptions, findPeers, GO_PEERS } from './peers.mjs'
import { buildGo, buildLoad, checkMachine, describeMachine, tryServer } from './prepare.mjs'
import { markdown, number } from './report.mjs'
import { appended, countMeasurements, runScenario } from './rounds.mjs'
import { scenarios } from './scenarios.mjs'

const results = new URL('results/', import.meta.url)

try {
  await main(parseOptions(process.argv.slice(2)))
} catch (error) {
  fail(error.message)
}

async function main(options) {
  if (options.help) return console.log(usage)
  const chosen = choose(scenarios, options)
  if (chosen.length === 0) throw new Error(`no scenario matches ${options.only}`)
  if (options.list) return console.log(chosen.map(({ title }) => title).join('\n'))
  const { peers, notes } = await prepare(options)
  const outcome = await runAll(chosen, peers, notes, options)
  if (process.stderr.isTTY) process.stderr.write('\r\x1b[K')
  console.log(markdown(outcome))
  if (outcome.scenarios.some(({ failures }) => failures.length > 0)) {
    fail('some measurements have failed; see the table')
  }
}

/** All that has to be there; what is left out, and why, is in `notes`. */
async function prepare(options) {
  checkMachine()
  buildLoad()
  const notes = []
  const names = options.peers ?? Object.keys(descriptions).filter((name) => name !== 'base')
  const withGo = options.peers || !options.quick ? names : names.filter((name) => !GO_PEERS.includes(name))
  const problem = withGo.some((name) => GO_PEERS.includes(name)) ? buildGo() : undefined
  if (problem) notes.push(`The peers in Go are left out: ${problem}.`)
  const peers = findPeers(problem ? withGo.filter((name) => !GO_PEERS.includes(name)) : withGo, options)
  if (problem && options.peers) throw new Error(notes[0])
  for (const peer of peers) await tryServer(peer)
  const { driver, loops, busyPoll } = options
  if (driver || loops || busyPoll) {
    notes.push(`This package with ${JSON.stringify({ driver, numLoops: loops, busyPoll })}.`)
  }
  return { peers, notes }
}

/** What is done is kept: the files are written anew after each scenario. */
async function runAll(chosen, peers, notes, { rounds, seconds, warmup, output, append }) {
  const settings = { rounds, seconds, warmup }
  const names = peers.map(({ name }) => name)
  let outcome = { machine: describeMachine(), settings, peers: names, notes, scenarios: [] }
  if (append) outcome = appended(readResults(output), outcome)
  const total = countMeasurements(chosen, peers, settings)
  const begun = performance.now()
  let done = 0
  for (const scenario of chosen) {
    const progress = (round, peer, measured) => {
      const left = Math.round((((performance.now() - begun) / ++done) * (total - done)) / 1000)
      const where = `[${done}/${total}, ${left} s left] ${scenario.title}, round ${round + 1}/${rounds}`
      show(`${where}, ${peer}: ${summaryOf(scenario, measured)}`)
    }
    const measured = await runScenario(scenario, peers, settings, progress)
    outcome = appended(outcome, { ...outcome, scenarios: [measured] })
    save(outcome, output)
  }
  return outcome
}

function readResults(output) {
  const file = new URL(`${output}.json`, results)
  return existsSync(file) ? JSON.parse(readFileSync(file, 'utf8')) : undefined
}

function summaryOf({ kind }, measured) {
  if (measured.error !== undefined) return `failed: ${measured.error}`
  const judged = kinds[kind].judged.filter((name) => Number.isFinite(measured[name]))
  return judged
    .map((name) => `${number({ median: measured[name] }, figures[name].scale)} ${figures[name].head}`)
    .join(', ')
}

function show(line) {
  process.stderr.write(process.stderr.isTTY ? `\r\x1b[K${line}` : `${line}\n`)
}

function save(outcome, output) {
  mkdirSync(results, { recursive: true })
  writeFileSync(new URL(`${output}.json`, results), `${JSON.stringify(outcome, null, 2)}\n`)
  writeFileSync(new URL(`${output}.md`, results), markdown(outcome))
  for (const figure of ['cpu', 'throughput']) {
    const svg = chart(outcome, figure)
    if (svg) writeFileSync(new URL(`${output}-${figure}.svg`, results), svg)
  }
}

function fail(message) {
  console.error(`bench: ${message}`)
  process.exitCode = 1
}
