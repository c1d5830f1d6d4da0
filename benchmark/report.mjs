/** Which figures are divided by those of which reference. */
const RATIOS = { net: ['throughput', 'cpu', 'js'], floor: ['throughput', 'cpu'] }

const FIGURES = ['throughput', 'p50', 'p99', 'p999', 'cpu', 'js', 'loadBusy']

/**
 * Medians of the figures, and of the ratios to each reference in the same round.
 *
 * @param {Record<string, object>[]} rounds by peer, the figures of each round
 * @param {string} peer
 * @param {string[]} figures
 * @param {Record<string, string[]>} ratios
 */
export function summarize(rounds, peer, figures = FIGURES, ratios = RATIOS) {
  const own = rounds.filter((round) => round[peer] && !round[peer].error)
  const summary = Object.fromEntries(
    figures.map((name) => [name, spread(own.map((round) => round[peer][name]))]),
  )
  for (const [reference, names] of Object.entries(ratios)) {
    const shared = own.filter((round) => reference !== peer && round[reference] && !round[reference].error)
    const ratio = (name) => spread(shared.map((round) => round[peer][name] / round[reference][name]))
    summary[`to_${reference}`] = Object.fromEntries(names.map((name) => [name, ratio(name)]))
  }
  return summary
}

/** The results as Markdown. */
export function markdown({ machine, settings, scenarios, idle }) {
  const lines = [
    `${machine.cpu}, ${machine.cores} cores, Linux ${machine.kernel}, Node ${machine.node}; ` +
      `${settings.rounds} rounds of ${settings.seconds} s. Medians; ratios are medians of the rounds (min..max).`,
    '',
  ]
  if (scenarios.length > 0) lines.push(...loadTable(scenarios), '')
  if (idle) lines.push(...idleTable(idle), '')
  return lines.join('\n')
}

function loadTable(scenarios) {
  const head = [
    'scenario',
    'peer',
    'k req/s',
    'p50 µs',
    'p99 µs',
    'p999 µs',
    'CPU µs/req',
    'JS µs/req',
    'load busy',
  ]
  const ratios = ['req/s ÷ net', 'CPU ÷ net', 'JS ÷ net', 'req/s ÷ floor', 'CPU ÷ floor']
  const rows = scenarios.flatMap(({ title, peers, failures }) => [
    ...Object.entries(peers).map(([peer, summary], index) => {
      const { throughput, p50, p99, p999, cpu, js, loadBusy, to_net: net, to_floor: floor } = summary
      return [
        index === 0 ? title : '',
        peer,
        number(throughput, 1e-3),
        ...[p50, p99, p999, cpu].map((figure) => number(figure)),
        peer === 'floor' ? '–' : number(js),
        loadBusy ? `${Math.round(loadBusy.median * 100)} %` : '–',
        ...[net.throughput, net.cpu, peer === 'floor' ? undefined : net.js].map(withSpread),
        ...[floor.throughput, floor.cpu].map(withSpread),
      ]
    }),
    ...failures.map((failure) => [title, `**failed**: ${failure}`]),
  ])
  return table([...head, ...ratios], rows)
}

function idleTable({ title, peers, failures }) {
  const rows = Object.entries(peers).map(([peer, { before, after, to_net: net }]) => [
    peer,
    ...[before, after].map((figure) => number(figure, 1 / 1024)),
    ...[net.before, net.after].map(withSpread),
  ])
  const head = [`${title}, KiB a connection`, 'before a request', 'after one', 'before ÷ net', 'after ÷ net']
  return table(head, [...rows, ...failures.map((failure) => [`**failed**: ${failure}`])])
}

function table(head, rows) {
  const line = (cells) => `| ${head.map((_, index) => cells[index] ?? '').join(' | ')} |`
  return [line(head), line(head.map(() => '---')), ...rows.map(line)]
}

function spread(values) {
  if (values.length === 0) return undefined
  const sorted = values.toSorted((a, b) => a - b)
  const middle = sorted.length >> 1
  const median = sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2
  return { median, min: sorted[0], max: sorted.at(-1) }
}

function number(figure, scale = 1) {
  if (figure === undefined) return '–'
  const value = figure.median * scale
  return value.toFixed(value >= 100 ? 0 : value >= 10 ? 1 : 2)
}

function withSpread(ratio) {
  if (ratio === undefined) return '–'
  const [median, min, max] = [ratio.median, ratio.min, ratio.max].map((value) =>
    value.toFixed(value < 0.2 ? 3 : 2),
  )
  return `${median} (${min}..${max})`
}
