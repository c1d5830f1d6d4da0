// What `npm run bench` makes of its measurements: statistics, tables, charts and comparisons. Nothing is measured here.

import { spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test from 'ava'
import { chart, textChart } from '../benchmark/chart.mjs'
import { comparePeers, compareRuns, comparisonTable, isRegression } from '../benchmark/comparison.mjs'
import { figures, kinds } from '../benchmark/kinds.mjs'
import { choose, parseOptions } from '../benchmark/options.mjs'
import { page, summary } from '../benchmark/page.mjs'
import { descriptions, findPeers, refusal } from '../benchmark/peers.mjs'
import { markdown } from '../benchmark/report.mjs'
import { appended, countMeasurements, runScenario } from '../benchmark/rounds.mjs'
import { scenarios } from '../benchmark/scenarios.mjs'
import { chanceOfGap, spread, summarize, verdict } from '../benchmark/statistics.mjs'

test('a spread has the median, and leaves out what was not measured', (t) => {
  t.deepEqual(spread([3, 1, 2]), { median: 2, min: 1, max: 3, rounds: 3 })
  t.deepEqual(spread([4, 1, undefined, Number.NaN, 2, 3]), { median: 2.5, min: 1, max: 4, rounds: 4 })
  t.is(spread([]), undefined)
  t.is(spread([undefined]), undefined)
})

test('ratios are those of the same round, and a round that has failed is left out', (t) => {
  const rounds = [
    { netpoll: { cpu: 1 }, net: { cpu: 2 } },
    { netpoll: { cpu: 30 }, net: { cpu: 40 } },
    { netpoll: { cpu: 5 }, net: { error: 'lost' } },
    { netpoll: { error: 'lost' }, net: { cpu: 7 } },
  ]
  const { cpu, to_net: toNet } = summarize(rounds, 'netpoll', ['cpu'], ['net'])
  t.deepEqual(cpu, { median: 5, min: 1, max: 30, rounds: 3 })
  t.deepEqual(toNet.cpu, { median: 0.625, min: 0.5, max: 0.75, rounds: 2 })
  t.is(summarize(rounds, 'net', ['cpu'], ['net']).to_net, undefined)
})

const around = (median, width, rounds = 5) => ({ median, min: median - width, max: median + width, rounds })

test('a change inside of the spread is none, however large the medians differ', (t) => {
  t.is(verdict(around(100, 20), around(130, 20)), 'same')
})

test('a change outside of the spread has to be larger than the threshold', (t) => {
  t.is(verdict(around(100, 0.5), around(102, 0.5)), 'same')
  t.is(verdict(around(100, 0.5), around(104, 0.5)), 'worse')
  t.is(verdict(around(100, 0.5), around(104, 0.5), { threshold: 0.1 }), 'same')
})

test('few rounds that do not overlap are no proof', (t) => {
  t.is(verdict(around(100, 1, 3), around(150, 1, 3)), 'unsure')
  t.is(verdict(around(100, 1, 4), around(150, 1, 4)), 'worse')
  t.is(verdict(around(100, 1, 3), around(100, 1, 3)), 'same')
  t.is(chanceOfGap(2, 2), 1 / 3)
  t.is(chanceOfGap(4, 4), 1 / 35)
})

test('more of some figures is better, less of the others', (t) => {
  t.is(verdict(around(100, 1), around(150, 1), { more: true }), 'better')
  t.is(verdict(around(100, 1), around(50, 1), { more: true }), 'worse')
  t.is(verdict(around(100, 1), around(150, 1)), 'worse')
  t.is(verdict(around(100, 1), around(50, 1)), 'better')
})

test('a difference between two figures that are nearly nothing is none', (t) => {
  t.is(verdict(around(0.0001, 0), around(0.001, 0), { least: 0.005 }), 'same')
  t.is(verdict(around(0.0001, 0), around(0.1, 0), { least: 0.005 }), 'worse')
})

test('what only one run has measured is said to be missing or new', (t) => {
  t.is(verdict(around(1, 0), undefined), 'missing')
  t.is(verdict(undefined, around(1, 0)), 'new')
  t.is(verdict(undefined, undefined), 'unknown')
})

/** Results of one scenario, four rounds alike: [throughput, cpu] by peer. */
function results(figuresOf, { title = 'echo 1 KiB, 1 connection', failures = [], skipped = {} } = {}) {
  const peers = Object.keys(figuresOf)
  const round = Object.fromEntries(
    Object.entries(figuresOf).map(([peer, [throughput, cpu]]) => [peer, { throughput, cpu }]),
  )
  const measured = Array.from({ length: 4 }, () => round)
  const summaryOf = (peer) => summarize(measured, peer, kinds.load.figures, ['net', 'floor', 'base'])
  return {
    machine: { cpu: 'a core', cores: 2, kernel: '6.1-x', node: '20.0.0' },
    settings: { rounds: measured.length, seconds: 1 },
    peers,
    notes: [],
    scenarios: [
      {
        title,
        group: 'Echo',
        kind: 'load',
        peers: Object.fromEntries(peers.map((peer) => [peer, summaryOf(peer)])),
        failures,
        skipped,
        rounds: measured,
      },
    ],
  }
}

const verdicts = ({ changes }) => Object.fromEntries(changes.map((change) => [change.name, change.verdict]))

test('runs are compared relative to net, so that a slower machine is no regression', (t) => {
  const before = results({ netpoll: [200, 5], net: [100, 10] })
  const after = results({ netpoll: [100, 10], net: [50, 20] })
  const comparison = compareRuns(before, after)
  t.true(comparison.relative)
  t.deepEqual(verdicts(comparison), { throughput: 'same', cpu: 'same' })
  t.false(isRegression(comparison))
  const absolute = compareRuns(before, after, { absolute: true })
  t.deepEqual(verdicts(absolute), { throughput: 'worse', cpu: 'worse' })
  t.true(isRegression(absolute))
})

test('two peers of one run are compared as they are', (t) => {
  const run = results({ netpoll: [120, 4], base: [100, 5], net: [1, 1] })
  t.deepEqual(verdicts(comparePeers(run, 'base', 'netpoll')), { throughput: 'better', cpu: 'better' })
  t.deepEqual(verdicts(comparePeers(run, 'netpoll', 'base')), { throughput: 'worse', cpu: 'worse' })
})

test('a measurement that fails, or is missing, is a regression', (t) => {
  const good = results({ netpoll: [100, 5] })
  const failures = ['netpoll: a connection was lost']
  const lost = results({ netpoll: [100, 5] }, { failures })
  t.true(isRegression(compareRuns(good, lost)))
  t.regex(
    comparisonTable(compareRuns(good, lost)),
    /\*\*failed\*\*: echo 1 KiB, 1 connection: netpoll: a conn/,
  )
  const other = results({ netpoll: [100, 5] }, { failures: ['net: lost', 'netpoll:loop: lost'] })
  t.false(isRegression(compareRuns(good, other)), 'of other peers it is none')
  const missing = results({ net: [100, 5] })
  t.true(isRegression(compareRuns(good, missing)))
})

test('a comparison shows first what has changed, with both spreads', (t) => {
  const run = results({ netpoll: [100, 7.5], base: [100, 5] })
  const lines = comparisonTable(comparePeers(run, 'base', 'netpoll')).split('\n')
  t.is(lines[2], '| echo 1 KiB, 1 connection | CPU | 5 (5..5) | 7.5 (7.5..7.5) | +50.0 % | **worse** |')
  t.regex(lines[3], /same \|$/)
})

test('bench:compare ends with 1 for a regression, 0 for none, 2 when it cannot compare', (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'netpoll-compare-'))
  t.teardown(() => rmSync(folder, { recursive: true }))
  const write = (name, value) => {
    writeFileSync(join(folder, name), JSON.stringify(value))
    return join(folder, name)
  }
  const before = write('before.json', results({ netpoll: [100, 5] }))
  const slower = write('slower.json', results({ netpoll: [80, 6], base: [100, 5] }))
  const other = write('other.json', results({ netpoll: [1, 1] }, { title: 'another' }))
  const script = new URL('../benchmark/compare.mjs', import.meta.url).pathname
  const code = (...args) => spawnSync(process.execPath, [script, ...args]).status
  t.is(code(before, before), 0)
  t.is(code(before, slower), 1)
  t.is(code(slower, before), 0)
  t.is(code(before, slower, '--threshold', '30'), 0)
  t.is(code(slower, '--peers', 'base,netpoll'), 1)
  t.is(code(before, other), 2)
  t.is(code(before), 2)
  t.is(code(before, join(folder, 'none.json')), 2)
})

test('a table shows failures, and who is left out and why', (t) => {
  const text = markdown(
    results(
      { netpoll: [200_000, 5], net: [100_000, 10] },
      {
        failures: ['net: lost'],
        skipped: { gnet: 'its server does no relay', 'go-net': 'its server does no relay' },
      },
    ),
  )
  t.regex(text, /^\| echo 1 KiB, 1 connection \| netpoll \| 200 \| .*2\.00 \(2\.00\.\.2\.00\)/m)
  t.regex(text, /^\| +\| \*\*failed\*\*: net: lost \|/m)
  t.regex(text, /^\| +\| gnet, go-net: left out, its server does no relay \|/m)
  const widths = text
    .split('\n')
    .filter((line) => line.startsWith('|'))
    .map((line) => line.split('|').length)
  t.is(new Set(widths).size, 1, 'every row has all cells')
})

test('a chart has a bar for each peer, relative to net, and none without net', (t) => {
  const run = results({ netpoll: [200, 5], net: [100, 10], 'netpoll:loop': [100, 8] })
  const svg = chart(run, 'cpu')
  t.is(svg.match(/<rect/g).length, 6, 'three in the legend, three in the row')
  t.regex(svg, /50 %.*100 %.*80 %/)
  t.notRegex(svg, /undefined|NaN/)
  t.regex(textChart(run, 'throughput'), /netpoll +█{60} 200 %\n +net +█{30} 100 %/)
  t.is(chart(results({ netpoll: [200, 5] }), 'cpu'), undefined)
  t.is(textChart(results({ netpoll: [200, 5] }), 'cpu'), undefined)
})

test('what is published has the ratios, also of a run without the floor', (t) => {
  const run = results({ netpoll: [200, 5], net: [100, 10] })
  t.regex(summary(run), /^\| echo 1 KiB, 1 connection \| 2\.00 \| – \| 0\.50 \| – \| – \|$/m)
  t.regex(page(run), /^# How fast is it\?$/m)
})

test('every scenario has a title of its own, a kind, and figures that can be shown', (t) => {
  t.is(new Set(scenarios.map(({ title }) => title)).size, scenarios.length)
  for (const { title, kind } of scenarios) t.truthy(kinds[kind], title)
  for (const { figures: names, ratios, judged } of Object.values(kinds)) {
    for (const name of [...names, ...judged, ...Object.values(ratios).flat()])
      t.truthy(figures[name]?.head, name)
    for (const name of [...judged, ...Object.values(ratios).flat()]) t.true(names.includes(name), name)
  }
})

test('a group is of one kind, whose table it shares', (t) => {
  for (const { group, kind } of scenarios) {
    t.true(
      scenarios.every((scenario) => scenario.group !== group || scenario.kind === kind),
      group,
    )
  }
})

test('--quick is ten scenarios, --only a pattern', (t) => {
  t.is(choose(scenarios, parseOptions(['--quick'])).length, 10)
  t.is(choose(scenarios, parseOptions([])).length, scenarios.length)
  const relays = choose(scenarios, parseOptions(['--only', '^relay', '--quick']))
  t.true(relays.length > 0 && relays.every(({ service }) => service === 'relay'))
  t.throws(() => parseOptions(['--rounds', '0']), { message: /--rounds/ })
  t.throws(() => parseOptions(['--unknown']))
})

test('peers are found by name, with a driver if it is given', (t) => {
  const names = Object.keys(descriptions).filter((name) => name !== 'base')
  t.deepEqual(
    findPeers([...names, 'netpoll:thread'], {}).map(({ name }) => name),
    [...names, 'netpoll:thread'],
  )
  t.throws(() => findPeers(['other'], {}), { message: /other is no peer/ })
  t.throws(() => findPeers(['netpoll:other'], {}), { message: /other is no driver/ })
  t.throws(() => findPeers(['base'], {}), { message: /--base/ })
  t.throws(() => findPeers(['base'], { base: '/nowhere' }), { message: /no package in \/nowhere/ })
})

test('who cannot take part in a scenario is left out with a reason', (t) => {
  const [gnet, floor, net] = findPeers(['gnet', 'floor', 'net'], {})
  const relay = scenarios.find(({ service }) => service === 'relay')
  const timers = scenarios.find(({ kind }) => kind === 'timers')
  t.regex(refusal(gnet, relay), /no relay/)
  t.is(refusal(floor, relay), undefined)
  t.regex(refusal(floor, timers), /timers/)
  t.is(countMeasurements([relay, timers], [gnet, floor, net], { rounds: 2 }), 6)
})

test('each round begins with another peer, and a failure ends nothing', async (t) => {
  const order = []
  const services = ['echo']
  kinds.fake = {
    measure: async ({ name }) => {
      order.push(name)
      if (name === 'b') throw new Error('it\nbroke')
      return { cpu: 1 }
    },
    figures: ['cpu'],
  }
  t.teardown(() => void delete kinds.fake)
  const told = []
  const outcome = await runScenario(
    { title: 'x', kind: 'fake', service: 'echo' },
    [...['a', 'b', 'c'].map((name) => ({ name, services })), { name: 'd', services: [] }],
    { rounds: 2 },
    (round, name, { error }) => told.push(`${round}${name}${error === undefined ? '' : '!'}`),
  )
  t.deepEqual(order, ['a', 'b', 'c', 'b', 'c', 'a'])
  t.deepEqual(told, ['0a', '0b!', '0c', '1b!', '1c', '1a'])
  t.deepEqual(outcome.failures, ['b: it broke'])
  t.deepEqual(outcome.skipped, { d: 'its server does no echo' })
  t.deepEqual(outcome.peers.a.cpu, { median: 1, min: 1, max: 1, rounds: 2 })
  t.is(outcome.peers.b.cpu, undefined)
})

test('results that are appended replace those of the same scenario, in the order of the scenarios', (t) => {
  const [first, second] = scenarios.map(({ title }) => title)
  const earlier = results({ netpoll: [1, 1], net: [1, 1] }, { title: second })
  const both = appended(earlier, results({ netpoll: [2, 2] }, { title: first }))
  t.deepEqual(
    both.scenarios.map(({ title }) => title),
    [first, second],
  )
  t.deepEqual(both.peers, ['netpoll', 'net'])
  const again = appended(both, results({ gnet: [3, 3] }, { title: second }))
  t.deepEqual(Object.keys(again.scenarios[1].peers), ['gnet'])
  t.is(again.scenarios.length, 2)
  t.deepEqual(again.notes, [])
  const longer = { ...earlier, settings: { rounds: 9, seconds: 2 } }
  t.deepEqual(appended(longer, both).notes, ['Some scenarios were measured in 9 rounds of 2 s.'])
  t.is(appended(undefined, earlier), earlier)
})
