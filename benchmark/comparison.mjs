import { figures, kinds } from './kinds.mjs'
import { table } from './report.mjs'
import { verdict } from './statistics.mjs'

/**
 * @typedef {object} Change of one figure in one scenario
 * @property {string} title
 * @property {string} name of the figure
 * @property {ReturnType<typeof verdict>} verdict
 * @property {import('./statistics.mjs').Spread} [before]
 * @property {import('./statistics.mjs').Spread} [after]
 */

/**
 * What has changed from one run to another for a peer. Machines change their speed: when both runs have measured net,
 * the figures are compared relative to net's of the same round.
 *
 * @param {object} before results as run.mjs writes them
 * @param {object} after
 * @param {{ peer?: string, threshold?: number, absolute?: boolean }} [options]
 */
export function compareRuns(before, after, { peer = 'netpoll', threshold, absolute = false } = {}) {
  const hasNet = ({ peers }) => peers.includes('net') && peer !== 'net'
  const relative = !absolute && hasNet(before) && hasNet(after)
  const changes = before.scenarios.flatMap((scenario) => {
    const same = after.scenarios.find(({ title }) => title === scenario.title)
    if (!same) return []
    return changesOf(scenario, summary(scenario, peer, relative), summary(same, peer, relative), threshold)
  })
  return { changes, relative, failures: failuresOf(after, peer) }
}

/**
 * What one peer is against another in the same run, whose rounds they have shared.
 *
 * @param {object} results
 * @param {string} base
 * @param {string} head
 * @param {{ threshold?: number }} [options]
 */
export function comparePeers(results, base, head, { threshold } = {}) {
  const changes = results.scenarios.flatMap((scenario) =>
    changesOf(scenario, scenario.peers[base], scenario.peers[head], threshold),
  )
  return { changes, relative: false, failures: failuresOf(results, head) }
}

/** Whether something is worse outside of the spread, or could be measured before and not any more. */
export function isRegression({ changes, failures }) {
  return failures.length > 0 || changes.some((change) => ['worse', 'missing'].includes(change.verdict))
}

/** As Markdown, what has changed first. */
export function comparisonTable({ changes, relative, failures }) {
  const order = ['missing', 'worse', 'better', 'unsure', 'new', 'same']
  const sorted = changes.toSorted((a, b) => order.indexOf(a.verdict) - order.indexOf(b.verdict))
  const rows = sorted.map(({ title, name, verdict: word, before, after }) => [
    title,
    `${figures[name].short}${relative && hasRatio(name) ? ' ÷ net' : ''}`,
    shown(before, name, relative),
    shown(after, name, relative),
    before && after ? difference(before.median, after.median) : '–',
    ['same', 'new', 'unsure'].includes(word) ? word : `**${word}**`,
  ])
  return [
    ...table(['scenario', 'figure', 'before', 'after', 'median', 'verdict'], rows),
    ...failures.flatMap((failure) => ['', `**failed**: ${failure}`]),
  ].join('\n')
}

function changesOf({ title, kind }, before, after, threshold) {
  return kinds[kind].judged
    .map((name) => ({
      title,
      name,
      before: before?.[name],
      after: after?.[name],
      verdict: verdict(before?.[name], after?.[name], {
        more: figures[name].more,
        least: figures[name].least,
        threshold,
      }),
    }))
    .filter((change) => change.verdict !== 'unknown')
}

/** A peer's figures, those that have a ratio to net replaced by it. */
function summary({ peers }, peer, relative) {
  const own = peers[peer]
  if (!own || !relative || !own.to_net) return own
  const ratios = Object.entries(own.to_net).filter(([name, ratio]) => ratio && hasRatio(name))
  return { ...own, ...Object.fromEntries(ratios) }
}

/** Of what is nearly nothing the ratios are noise: a figure with a least difference is compared as it is. */
function hasRatio(name) {
  return figures[name].least === undefined
}

function failuresOf({ scenarios }, peer) {
  return scenarios.flatMap(({ title, failures }) =>
    failures.filter((failure) => failure.startsWith(`${peer}: `)).map((failure) => `${title}: ${failure}`),
  )
}

function shown(spread, name, relative) {
  if (spread === undefined) return '–'
  const scale = relative && hasRatio(name) ? 1 : (figures[name].scale ?? 1)
  const [median, min, max] = [spread.median, spread.min, spread.max].map((value) =>
    Number((value * scale).toPrecision(3)),
  )
  return `${median} (${min}..${max})`
}

function difference(before, after) {
  if (before === 0) return '–'
  const percent = (after / before - 1) * 100
  return `${percent < 0 ? '' : '+'}${percent.toFixed(1)} %`
}
