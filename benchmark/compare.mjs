// npm run bench:compare -- BEFORE.json AFTER.json [--peer netpoll] [--threshold 3] [--absolute]
// npm run bench:compare -- RESULTS.json --peers base,netpoll
//
// The second form compares two peers of one run. Exit code 1: something is worse outside of the spread.
import { readFileSync } from 'node:fs'
import { parseArgs } from 'node:util'
import { comparePeers, compareRuns, comparisonTable, isRegression } from './comparison.mjs'

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    peer: { type: 'string', default: 'netpoll' },
    peers: { type: 'string' },
    threshold: { type: 'string', default: '3' },
    absolute: { type: 'boolean', default: false },
  },
})

try {
  const comparison = compare()
  if (comparison.changes.length === 0) throw new Error('there is nothing that both have measured')
  console.log(comparisonTable(comparison))
  if (isRegression(comparison)) process.exitCode = 1
} catch (error) {
  console.error(`bench:compare: ${error.message}`)
  process.exitCode = 2
}

function compare() {
  const threshold = Number(values.threshold) / 100
  if (!(threshold >= 0)) throw new Error('--threshold is a number of percent')
  const results = positionals.map((path) => JSON.parse(readFileSync(path, 'utf8')))
  const { peer, peers, absolute } = values
  if (results.length === 1 && peers) return comparePeers(results[0], ...peers.split(','), { threshold })
  if (results.length === 2 && !peers) return compareRuns(...results, { peer, threshold, absolute })
  throw new Error('give two files of results, or one and --peers A,B')
}
