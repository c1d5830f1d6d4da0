// node benchmark/publish.mjs: puts the last results into the README (chart and table) and docs/benchmark.md.
import { readFileSync, writeFileSync } from 'node:fs'
import { markdown } from './report.mjs'

const file = (path) => new URL(`../${path}`, import.meta.url)
const results = JSON.parse(readFileSync(file('benchmark/results/latest.json'), 'utf8'))

/** One of each kind; the whole table is in docs/benchmark.md. */
const SHOWN = [
  'echo 1 KiB, 1 connection',
  'echo 1 KiB, 100 connections',
  'echo 1 KiB, 1000 connections',
  'frame 256 B, 64 connections, 8 in flight',
  'echo 64 KiB, 16 connections',
  'echo 1 MiB, 16 connections',
]
const COLORS = { netpoll: '#0b7285', net: '#adb5bd', floor: '#495057' }
const LABELS = { netpoll: 'netpoll', net: 'node:net', floor: 'floor (plain epoll in Rust)' }

const shown = SHOWN.map((title) => results.scenarios.find((scenario) => scenario.title === title)).filter(
  Boolean,
)

writeFileSync(file('docs/benchmark.svg'), chart(shown))
writeFileSync(
  file('docs/benchmark.md'),
  `# How fast is it?\n\nMade by \`npm run bench\` and \`node benchmark/publish.mjs\`; what each figure is, and how it is taken, is said in\n` +
    `[benchmark/results](../benchmark/results/README.md), and what bounds it in [performance](performance.md).\n\n${markdown(results)}`,
)
const readme = readFileSync(file('README.md'), 'utf8')
const section = /<!-- benchmark -->[^]*<!-- end of benchmark -->/
if (!section.test(readme)) throw new Error('README.md has no benchmark section')
writeFileSync(file('README.md'), readme.replace(section, summary(shown)))

function summary(scenarios) {
  const { machine, settings } = results
  const rows = scenarios.map(({ title, peers: { netpoll } }) => {
    const { to_net: net, to_floor: floor } = netpoll
    const ratios = [net.throughput, net.cpu, net.js, floor.cpu]
    return `| ${title} | ${ratios.map(({ median }) => median.toFixed(median < 0.1 ? 3 : 2)).join(' | ')} |`
  })
  return `<!-- benchmark -->

![CPU per request of the server, relative to net](docs/benchmark.svg)

| scenario | requests/s ÷ net | CPU/request ÷ net | JS thread's CPU ÷ net | CPU/request ÷ floor |
| --- | --- | --- | --- | --- |
${rows.join('\n')}

Server on one core, load on the other; ${machine.cpu}, Linux ${machine.kernel.split('-')[0]}, Node ${machine.node};
medians of ${settings.rounds} interleaved rounds. [All figures, with their spread](docs/benchmark.md).

<!-- end of benchmark -->`
}

/** Bars of CPU per request, net's being 100 %. */
function chart(scenarios) {
  const [left, width, bar, gap] = [270, 420, 14, 16]
  const rowHeight = 3 * bar + gap
  const height = 64 + scenarios.length * rowHeight
  const most = Math.max(
    1,
    ...scenarios.flatMap(({ peers: { netpoll, net } }) => netpoll.cpu.median / net.cpu.median),
  )
  const x = (share) => (share / most) * width
  const rows = scenarios.map(({ title, peers }, row) => {
    const top = 56 + row * rowHeight
    const bars = ['netpoll', 'net', 'floor'].map((peer, index) => {
      const share = peers[peer].cpu.median / peers.net.cpu.median
      const y = top + index * bar
      const label = `${Math.round(share * 100)} %`
      return (
        `<rect x="${left}" y="${y}" width="${x(share).toFixed(1)}" height="${bar - 2}" fill="${COLORS[peer]}"/>` +
        `<text x="${(left + x(share) + 6).toFixed(1)}" y="${y + 10}" class="small">${label}</text>`
      )
    })
    return `<text x="${left - 12}" y="${top + 25}" text-anchor="end">${title}</text>${bars.join('')}`
  })
  const keys = Object.entries(LABELS).map(([peer, label], index) => {
    const at = left + [0, 90, 185][index]
    return `<rect x="${at}" y="30" width="12" height="12" fill="${COLORS[peer]}"/><text x="${at + 18}" y="40">${label}</text>`
  })
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${left + width + 60}" height="${height}" font-family="sans-serif" font-size="12">
<style>text{fill:#212529}.small{font-size:10px}@media (prefers-color-scheme: dark){text{fill:#dee2e6}}</style>
<text x="0" y="16" font-size="14" font-weight="bold">Server CPU per request, all threads; net = 100 %, less is better</text>
${[...keys, ...rows].join('\n')}
</svg>
`
}
