import { figures, kinds } from './kinds.mjs'
import { descriptions } from './peers.mjs'

/**
 * The results as Markdown: a table for each group of scenarios.
 *
 * @param {object} results as run.mjs writes them
 */
export function markdown({ machine, settings, peers, notes = [], scenarios }) {
  const lines = [
    `${machine.cpu}, ${machine.cores} cores, Linux ${machine.kernel}, Node ${machine.node}; ` +
      `${settings.rounds} rounds of ${settings.seconds} s. Medians; ratios are medians of the rounds (min..max).`,
    '',
    `Peers: ${peers.map((peer) => `${peer} (${descriptionOf(peer)})`).join(', ')}.`,
    ...notes.flatMap((note) => ['', note]),
    '',
  ]
  for (const group of new Set(scenarios.map((scenario) => scenario.group))) {
    const members = scenarios.filter((scenario) => scenario.group === group)
    lines.push(`## ${group}`, '', ...groupTable(members), '')
  }
  return lines.join('\n')
}

/** @param {string} peer `netpoll:loop` is netpoll with that driver */
export function descriptionOf(peer) {
  const [kind, driver] = peer.split(':')
  return driver ? `${descriptions[kind]}, driver ${driver}` : descriptions[kind]
}

/** Every scenario of the group is of the same kind. */
function groupTable(scenarios) {
  const { figures: names, ratios } = kinds[scenarios[0].kind]
  const columns = Object.entries(ratios).flatMap(([reference, list]) =>
    list.map((name) => ({ reference, name, title: `${figures[name].short} ÷ ${reference}` })),
  )
  const head = [
    'scenario',
    'peer',
    ...names.map((name) => figures[name].head),
    ...columns.map((column) => column.title),
  ]
  const rows = scenarios.flatMap(({ title, peers, failures, skipped = {} }) => {
    const measured = Object.entries(peers).filter(([peer]) => !(peer in skipped))
    return [
      ...measured.map(([peer, summary]) => [
        peer,
        ...names.map((name) => number(summary[name], figures[name].scale)),
        ...columns.map(({ reference, name }) => withSpread(summary[`to_${reference}`]?.[name])),
      ]),
      ...failures.map((failure) => [`**failed**: ${failure}`]),
      ...reasons(skipped).map(([reason, who]) => [`${who.join(', ')}: left out, ${reason}`]),
    ].map((row, index) => [index === 0 ? title : '', ...row])
  })
  return table(head, rows)
}

/** Peers that are left out, by why. */
function reasons(skipped) {
  const byReason = new Map()
  for (const [peer, reason] of Object.entries(skipped)) {
    byReason.set(reason, [...(byReason.get(reason) ?? []), peer])
  }
  return [...byReason]
}

/** Cells that are missing at the end of a row are empty. */
export function table(head, rows) {
  const line = (cells) => `| ${head.map((_, index) => cells[index] ?? '').join(' | ')} |`
  return [line(head), line(head.map(() => '---')), ...rows.map(line)]
}

/** @param {import('./statistics.mjs').Spread | undefined} figure */
export function number(figure, scale = 1) {
  if (figure === undefined) return '–'
  const value = figure.median * scale
  const size = Math.abs(value)
  return value.toFixed(size >= 100 ? 0 : size >= 10 ? 1 : 2)
}

/** @param {import('./statistics.mjs').Spread | undefined} ratio */
export function withSpread(ratio) {
  if (ratio === undefined) return '–'
  const [median, min, max] = [ratio.median, ratio.min, ratio.max].map((value) =>
    value.toFixed(value < 0.2 ? 3 : 2),
  )
  return `${median} (${min}..${max})`
}
