// node benchmark/text_chart.mjs RESULTS.json: its charts as text.
import { readFileSync } from 'node:fs'
import { textChart } from './chart.mjs'

const results = JSON.parse(readFileSync(process.argv[2], 'utf8'))
const charts = ['cpu', 'throughput'].map((figure) => textChart(results, figure))
console.log(charts.filter(Boolean).join('\n\n'))
