// A suite of tests: a command that is run, and counted in.

import { spawn } from 'node:child_process'
import { root } from './setup.mjs'

/** How ava tells of its tests. */
export const avaCounts = {
  passed: /^ +[✔√] /gm, // ava's own count is missing when a test fails
  failed: /^ +(\d+) (?:tests?|hooks?) failed|^ +(\d+) (?:unhandled rejection|uncaught exception)/gm,
}

/** How cargo tells of its tests. */
export const cargoCounts = {
  passed: /^test result: .* (\d+) passed/gm,
  failed: /^test result: .* (\d+) failed/gm,
}

/** How the scripts here tell of theirs, in their last line. */
export const ownCounts = {
  passed: /^(\d+) passed, \d+ failed$/gm,
  failed: /^\d+ passed, (\d+) failed$/gm,
}

/** Shows the output of a suite while it runs, then counts in it. A suite that fails has at least one failure. */
export async function run(command, commandArgs, patterns, options) {
  const child = spawn(command, commandArgs, { cwd: root, stdio: ['ignore', 'pipe', 'inherit'], ...options })
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

export function sum(numbers) {
  return numbers.reduce((total, number) => total + number, 0)
}
