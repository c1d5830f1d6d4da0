// `npm run test:hard`: the tests that take minutes or most of the machine, one part after the other; half an hour on
// two cores. With names, only those parts: `npm run test:hard -- ends walls`. NETPOLL_HARD_RUNS is how often a process
// ends at a random moment (1000), NETPOLL_SEED makes chance come again. The last line is `N passed, N failed`.

import { join } from 'node:path'
import { root, setup } from './setup.mjs'
import { avaCounts, cargoCounts, ownCounts, run, sum } from './suite.mjs'

const ava = join(root, 'node_modules/ava/entrypoints/cli.mjs')
/** As `npm test` runs it, but with more time. */
const soft = (...names) => [
  process.execPath,
  ava,
  '--timeout=20m',
  ...names.map((name) => `__test__/${name}.test.mjs`),
]
const hard = (name) => [
  process.execPath,
  ava,
  '--config',
  '__test__/hard/ava.config.mjs',
  `__test__/hard/${name}.test.mjs`,
]

/** Tests of the core that repeat themselves where there is time. */
const CORE = [
  'whoever_gets_the_descriptor_of_one_that_was_closed_in_the_same_batch',
  'many_connections_that_are_closed_while_the_kernel_sends',
  'many_sends_on_many_connections_close_none',
  'any_reports_let_go_of_what_they_name_once',
  'any_control_data_can_be_parsed',
  'any_sequence_of_calls_keeps_the_bytes',
]
const CURSORS = ['link_buffer_properties', 'waits_properties', 'cursor_model']

/** The parts: the minutes after which each is killed, what it runs, and what it is told besides. */
const PARTS = {
  core: [
    25,
    ['cargo', 'test', '--release', '-p', 'netpoll', '--lib', '--', ...CORE],
    { PROPTEST_CASES: '1000000' },
  ],
  churn: [12, soft('churn'), { NETPOLL_CYCLES: '1000000' }],
  cursors: [20, soft(...CURSORS), { NETPOLL_PROPERTY_RUNS: '140000', NETPOLL_MODEL_SEEDS: '30' }],
  disturbances: [10, soft('disturbances')],
  ends: [28, hard('ends')],
  walls: [16, hard('walls')],
  fairness: [6, hard('fairness')],
  views: [6, hard('views')],
  canary: [8, hard('canary')],
  faults: [20, hard('faults')],
  asan: [20, [process.execPath, '.ci/asan.mjs']],
  fuzz: [10, [process.execPath, '.ci/fuzz.mjs']],
}

const names = process.argv.slice(2)
const unknown = names.filter((name) => !(name in PARTS))
if (unknown.length > 0) {
  console.error(`There is no part ${unknown.join(', ')}: they are ${Object.keys(PARTS).join(', ')}`)
  process.exit(1)
}

setup()
const suites = []
for (const name of names.length > 0 ? names : Object.keys(PARTS)) {
  const begun = Date.now()
  const [minutes, [command, ...args], told] = PARTS[name]
  const env = { ...process.env, NETPOLL_HARD: '1', ...told }
  const options = { env, timeout: minutes * 60_000, killSignal: 'SIGKILL' }
  const suite = await run(command, args, countsOf(command, args), options)
  suites.push({ ...suite, name, seconds: Math.round((Date.now() - begun) / 1000) })
}

console.log()
for (const { name, passed, failed, seconds } of suites) {
  console.log(`${name}: ${passed} passed, ${failed} failed, ${seconds} s`)
}
const failed = sum(suites.map((suite) => suite.failed))
console.log(`${sum(suites.map((suite) => suite.passed))} passed, ${failed} failed`)
process.exitCode = failed === 0 ? 0 : 1

function countsOf(command, [script]) {
  if (command === 'cargo') return cargoCounts
  return script === ava ? avaCounts : ownCounts
}
