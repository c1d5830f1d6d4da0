import { measureFairness } from './measures/fairness.mjs'
import { measureIdle } from './measures/idle.mjs'
import { measureClient, measureLoad, measureTimers } from './measures/load.mjs'
import { measureSilence } from './measures/silence.mjs'

const load = {
  measure: measureLoad,
  figures: ['throughput', 'p50', 'p99', 'p999', 'cpu', 'js', 'heap', 'gc', 'rss', 'loadBusy'],
  ratios: { net: ['throughput', 'p50', 'p99', 'cpu', 'js'], floor: ['throughput', 'cpu'] },
  judged: ['throughput', 'cpu'],
}

/**
 * Kinds of scenarios: how they are measured, and which figures are shown, in which ratios to net and the floor, and
 * judged when results are compared.
 */
export const kinds = {
  load,
  stream: { ...load, figures: ['bytesPerSecond', ...load.figures] },
  /** The rate is given. */
  paced: {
    ...load,
    figures: ['p50', 'p99', 'p999', 'cpu', 'js', 'heap', 'gc'],
    ratios: { net: ['p50', 'p99', 'cpu', 'js'], floor: ['cpu'] },
    judged: ['cpu'],
  },
  client: {
    measure: measureClient,
    figures: ['throughput', 'p50', 'p99', 'p999', 'cpu', 'js', 'loadCpu'],
    ratios: { net: ['throughput', 'p50', 'p99', 'cpu', 'loadCpu'], floor: ['throughput'] },
    judged: ['throughput', 'cpu', 'loadCpu'],
  },
  timers: {
    measure: measureTimers,
    figures: ['throughput', 'timerP99', 'timerMax', 'timers', 'cpu', 'js'],
    ratios: { net: ['timerP99', 'timerMax'] },
    judged: ['timerP99'],
  },
  fairness: {
    measure: measureFairness,
    figures: ['aloneP50', 'aloneP99', 'besideP50', 'besideP99', 'besideMax', 'firehose'],
    ratios: { net: ['besideP99', 'firehose'] },
    judged: ['besideP99'],
  },
  silence: {
    measure: measureSilence,
    figures: ['silence', 'silenceJs'],
    ratios: {},
    judged: ['silence'],
  },
  idle: {
    measure: measureIdle,
    figures: ['before', 'after'],
    ratios: { net: ['before', 'after'] },
    judged: ['before', 'after'],
  },
}

/**
 * How a figure is shown: its head, and what it is multiplied with. More of it is better, or less; a difference below
 * `least` is none, however large it is relative to nearly nothing.
 *
 * @type {Record<string, { head: string, short: string, scale?: number, more?: true, least?: number }>}
 */
export const figures = {
  throughput: { head: 'k req/s', short: 'req/s', scale: 1e-3, more: true },
  bytesPerSecond: { head: 'MB/s', short: 'MB/s', scale: 1e-6, more: true },
  p50: { head: 'p50 µs', short: 'p50' },
  p99: { head: 'p99 µs', short: 'p99' },
  p999: { head: 'p999 µs', short: 'p999' },
  cpu: { head: 'CPU µs/req', short: 'CPU' },
  js: { head: 'JS µs/req', short: 'JS' },
  heap: { head: 'JS heap B/req', short: 'heap' },
  gc: { head: 'GC %', short: 'GC', scale: 100 },
  rss: { head: 'RSS MiB', short: 'RSS', scale: 2 ** -20 },
  loadBusy: { head: 'load busy %', short: 'load busy', scale: 100 },
  loadCpu: { head: 'client CPU µs/req', short: 'client CPU' },
  timerP99: { head: 'timer late p99 ms', short: 'timer p99', least: 1 },
  timerMax: { head: 'max ms', short: 'timer max', least: 1 },
  timers: { head: 'timers', short: 'timers', more: true },
  aloneP50: { head: 'alone p50 µs', short: 'alone p50' },
  aloneP99: { head: 'alone p99 µs', short: 'alone p99' },
  besideP50: { head: 'beside p50 µs', short: 'beside p50' },
  besideP99: { head: 'beside p99 µs', short: 'beside p99' },
  besideMax: { head: 'beside max µs', short: 'beside max' },
  firehose: { head: 'firehose MB/s', short: 'firehose', scale: 1e-6, more: true },
  silence: { head: 'CPU %', short: 'CPU', scale: 100, least: 0.005 },
  silenceJs: { head: 'JS %', short: 'JS', scale: 100, least: 0.005 },
  before: { head: 'KiB a connection', short: 'before', scale: 2 ** -10, least: 50 },
  after: { head: 'after a request', short: 'after', scale: 2 ** -10, least: 50 },
}
