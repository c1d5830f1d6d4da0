// `npm test`: the tests of the Rust workspace, then those of the package. With arguments, which go to ava
// (`npm test -- __test__/reader.test.mjs`), only the latter. The last line is `N passed, N failed`.

import { join } from 'node:path'
import { root, setup } from './setup.mjs'
import { avaCounts, cargoCounts, run, sum } from './suite.mjs'

const ava = join(root, 'node_modules/ava/entrypoints/cli.mjs')
const args = process.argv.slice(2)

setup()
const suites = []
if (args.length === 0) {
  suites.push(await run('cargo', ['test', '--workspace', '--no-fail-fast'], cargoCounts))
}
suites.push(await run(process.execPath, [ava, ...args], avaCounts))

console.log()
for (const { name, passed, failed } of suites) console.log(`${name}: ${passed} passed, ${failed} failed`)
const failed = sum(suites.map((suite) => suite.failed))
console.log(`${sum(suites.map((suite) => suite.passed))} passed, ${failed} failed`)
process.exitCode = failed === 0 ? 0 : 1
