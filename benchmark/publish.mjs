// npm run bench:publish: puts the last results into the README (chart and table) and docs/benchmark.md.
import { readFileSync, writeFileSync } from 'node:fs'
import { chart } from './chart.mjs'
import { page, summary } from './page.mjs'

const file = (path) => new URL(`../${path}`, import.meta.url)
const results = JSON.parse(readFileSync(file('benchmark/results/latest.json'), 'utf8'))

/** One of each kind; the whole table is in docs/benchmark.md. */
const SHOWN = [
  'client 1 KiB',
  'echo 1 KiB, 1 connection',
  'echo 1 KiB, 4 connections',
  'echo 1 KiB, 100 connections',
  'echo 1 KiB, 1000 connections',
  'frame 256 B, 64 connections, 8 in flight',
  'mux 64 B, 4 connections, 64 in flight',
  'echo 64 KiB, 16 connections',
  'echo 1 MiB, 16 connections',
  'churn 64 B, 16 connections',
  'relay 1 KiB, 100 connections',
]

const found = SHOWN.map((title) => results.scenarios.find((scenario) => scenario.title === title))
const shown = { ...results, scenarios: found.filter(Boolean) }

writeFileSync(file('docs/benchmark.svg'), chart(shown, 'cpu'))
writeFileSync(file('docs/benchmark-throughput.svg'), chart(shown, 'throughput'))
writeFileSync(file('docs/benchmark.md'), page(results))
const readme = readFileSync(file('README.md'), 'utf8')
const section = /<!-- benchmark -->[^]*<!-- end of benchmark -->/
if (!section.test(readme)) throw new Error('README.md has no benchmark section')
writeFileSync(
  file('README.md'),
  readme.replace(section, () => summary(shown)),
)
