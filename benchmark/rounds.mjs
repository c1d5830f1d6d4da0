import { kinds } from './kinds.mjs'
import { refusal } from './peers.mjs'
import { scenarios } from './scenarios.mjs'
import { summarize } from './statistics.mjs'

/** Whose figures others are divided by. */
const REFERENCES = ['net', 'floor', 'base']

/**
 * Measures a scenario: its rounds, with their summaries.
 *
 * The peers take turns, each round in another order, so that a machine that changes its speed changes it for all.
 *
 * Every measurement has a fresh server: nothing of another scenario is in its heap, no other server is alive on
 * its core, and the luck of one process (addresses, optimizations) shows as spread instead of staying for all
 * rounds. The warm-up is for the compiler.
 *
 * @param {import('./scenarios.mjs').Scenario} scenario
 * @param {import('./peers.mjs').Peer[]} peers
 * @param {{ rounds: number, seconds: number, warmup: number }} settings
 * @param {(round: number, peer: string, figures: object) => void} progress
 */
export async function runScenario(scenario, peers, settings, progress) {
  const { measure, figures: names } = kinds[scenario.kind]
  const able = peers.filter((peer) => refusal(peer, scenario) === undefined)
  const rounds = []
  const lasting = longer(settings, scenario.least)
  for (let round = 0; round < settings.rounds; round++) {
    const figures = {}
    for (let turn = 0; turn < able.length; turn++) {
      const peer = able[(round + turn) % able.length]
      figures[peer.name] = await measure(peer, scenario, lasting).catch((error) => ({
        error: error.message,
      }))
      progress(round, peer.name, figures[peer.name])
    }
    rounds.push(figures)
  }
  const references = REFERENCES.filter((name) => able.some((peer) => peer.name === name))
  return {
    ...scenario,
    peers: Object.fromEntries(able.map(({ name }) => [name, summarize(rounds, name, names, references)])),
    failures: failures(rounds),
    skipped: Object.fromEntries(
      peers.filter((peer) => !able.includes(peer)).map((peer) => [peer.name, refusal(peer, scenario)]),
    ),
    rounds,
  }
}

/** Earlier results, if there are any, with those of the same scenarios replaced and the others added, in their order. */
export function appended(earlier, results) {
  if (earlier === undefined) return results
  const titles = scenarios.map(({ title }) => title)
  const others = earlier.scenarios.filter(({ title }) =>
    results.scenarios.every((one) => one.title !== title),
  )
  const notes = new Set([...earlier.notes, ...results.notes, noteOf(earlier.settings)])
  notes.delete(noteOf(results.settings))
  return {
    ...results,
    peers: [...new Set([...earlier.peers, ...results.peers])],
    notes: [...notes],
    scenarios: [...others, ...results.scenarios].toSorted(
      (a, b) => titles.indexOf(a.title) - titles.indexOf(b.title),
    ),
  }
}

function noteOf({ rounds, seconds }) {
  return `Some scenarios were measured in ${rounds} rounds of ${seconds} s.`
}

/** The settings, with the times that a scenario needs at least. */
function longer(settings, { seconds, warmup } = settings) {
  return {
    ...settings,
    seconds: Math.max(settings.seconds, seconds),
    warmup: Math.max(settings.warmup, warmup),
  }
}

/** How many measurements there will be. */
export function countMeasurements(chosen, peers, { rounds }) {
  const able = chosen.flatMap((scenario) => peers.filter((peer) => refusal(peer, scenario) === undefined))
  return able.length * rounds
}

/** Each that has happened, once. */
function failures(rounds) {
  const all = rounds.flatMap((round) =>
    Object.entries(round).flatMap(([peer, { error }]) =>
      error === undefined ? [] : [`${peer}: ${error.replaceAll(/\s+/g, ' ')}`],
    ),
  )
  return [...new Set(all)]
}
