// `npm test`: the tests of the Rust workspace, then those of the package. With arguments, which go to ava
// (`npm test -- __test__/reader.test.mjs`), only the latter. The last line is `N passed, N failed`.

import { spawn } from 'node:child_process'
import { join } from 'node:path'
import { root, setup } from './setup.mjs'

const ava = join(root, 'node_modules/ava/entrypoints/cli.mjs')
const args = process.argv.slice(2)

setup()
const suites = []
if (args.length === 0) {
  suites.push(
    await run('cargo', ['test', '--workspace', '--no-fail-fast'], {
      passed: /^test result: .* (\d+) passed/gm,
      failed: /^test result: .* (\d+) failed/gm,
    }),
  )
}
suites.push(
  await run(process.execPath, [ava, ...args], {
    passed: /^ +[✔√] /gm, // ava's own count is missing when a test fails
    failed: /^ +(\d+) (?:tests?|hooks?) failed|^ +(\d+) (?:unhandled rejection|uncaught exception)/gm,
  }),
)

console.log()
for (const { name, passed, failed } of suites) console.log(`${name}: ${passed} passed, ${failed} failed`)
const failed = sum(suites.map((suite) => suite.failed))
console.log(`${sum(suites.map((suite) => suite.passed))} passed, ${failed} failed`)
process.exitCode = failed === 0 ? 0 : 1

/** Shows the output of a suite while it runs, then counts in it. A suite that fails has at least one failure. */
async function run(command, commandArgs, patterns) {
  const child = spawn(command, commandArgs, { cwd: root, stdio: ['ignore', 'pipe', 'inherit'] })
  let output = ''
  child.stdout.setEncoding('utf8').on('data', (text) => {
    output += text
    process.stdout.write(text)
  })
  const code = await new Promise((resolve) => {
    child.on('error', () => resolve(1)).on('close', resolve)
  })
  const counted = count(output, patterns.failed)
  return {
    name: command === process.execPath ? 'ava' : command,
    passed: count(output, patterns.passed),
    failed: code === 0 ? counted : Math.max(counted, 1),
  }
}

/** Adds up the numbers that a pattern finds, or the places when it has no number. */
function count(output, pattern) {
  return sum([...output.matchAll(pattern)].map((match) => Number(match[1] ?? match[2] ?? 1)))
}

function sum(numbers) {
  return numbers.reduce((total, number) => total + number, 0)
}
