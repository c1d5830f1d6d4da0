// `npm run test:hard`: the tests that take minutes or most of the machine, one part after the other; under an hour on
// two cores. With names, only those parts: `npm run test:hard -- ends walls`. NETPOLL_HARD_RUNS is how often a process
// ends at a random moment (1000), NETPOLL_SEED makes chance come again. The last line is `N passed, N failed`.

import { join } from 'node:path'
import { root, setup } from './setup.mjs'
import { avaCounts, run, sum } from './suite.mjs'

/** The parts, and the minutes after which each is killed. */
const PARTS = { ends: 28, walls: 16, views: 6, canary: 8 }

const ava = join(root, 'node_modules/ava/entrypoints/cli.mjs')
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
  const args = [ava, '--config', '__test__/hard/ava.config.mjs', `__test__/hard/${name}.test.mjs`]
  const options = { timeout: PARTS[name] * 60_000, killSignal: 'SIGKILL' }
  const suite = await run(process.execPath, args, avaCounts, options)
  suites.push({ ...suite, name, seconds: Math.round((Date.now() - begun) / 1000) })
}

console.log()
for (const { name, passed, failed, seconds } of suites) {
  console.log(`${name}: ${passed} passed, ${failed} failed, ${seconds} s`)
}
const failed = sum(suites.map((suite) => suite.failed))
console.log(`${sum(suites.map((suite) => suite.passed))} passed, ${failed} failed`)
process.exitCode = failed === 0 ? 0 : 1
