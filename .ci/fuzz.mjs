// `npm run fuzz [-- SECONDS [TARGET]]`: looks for inputs that break what the targets in crates/netpoll/src/fuzzing
// promise, each for 30 seconds unless told otherwise. It begins with the committed inputs and keeps what it learns in
// target/fuzz. An input that breaks something stays in target/fuzz/found. The last line is `N passed, N failed`.

import { spawnSync } from 'node:child_process'
import { mkdirSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import { host, requireTools, root } from './setup.mjs'

const crate = 'crates/netpoll/fuzz'

/** What cargo-fuzz passes: counters for libFuzzer, AddressSanitizer, and the code that is there for the targets. */
const FLAGS = [
  '-Zsanitizer=address',
  '-Cpasses=sancov-module',
  '-Cllvm-args=-sanitizer-coverage-level=4',
  '-Cllvm-args=-sanitizer-coverage-inline-8bit-counters',
  '-Cllvm-args=-sanitizer-coverage-pc-table',
  '-Cllvm-args=-sanitizer-coverage-trace-compares',
  '-Ccodegen-units=1',
  '--cfg=fuzzing',
]

const [duration = '30', only] = process.argv.slice(2)
const seconds = Number(duration)
const targets = readdirSync(join(root, crate, 'fuzz_targets')).map((file) => file.replace('.rs', ''))
if (!Number.isInteger(seconds) || seconds < 1 || (only !== undefined && !targets.includes(only))) {
  console.error(`npm run fuzz [-- SECONDS [TARGET]]; the targets are ${targets.join(', ')}`)
  process.exit(1)
}

requireTools({ 'c++': 'libFuzzer is built with it: apt-get install g++' })
const triple = host()
if (build() !== 0) {
  console.error('The fuzz targets cannot be built, see above')
  process.exit(1)
}

const chosen = only === undefined ? targets : [only]
const broken = chosen.filter((target) => !holds(target))
for (const target of broken) {
  console.log(`\n${target} does not hold. The input is in target/fuzz/found/${target}; once more with it:`)
  console.log(`  target/fuzz/${triple}/release/${target} target/fuzz/found/${target}/*`)
  console.log(`When it is mended the input goes to ${crate}/corpus/${target}, where the tests go through it.`)
}
console.log(`\n${chosen.length - broken.length} passed, ${broken.length} failed`)
process.exitCode = broken.length === 0 ? 0 : 1

function build() {
  const args = ['build', '--release', '--locked', '--bins', '--target', triple]
  // RUSTC_BOOTSTRAP: a stable compiler has the sanitizers too.
  const env = { ...process.env, RUSTC_BOOTSTRAP: '1', RUSTFLAGS: FLAGS.join(' ') }
  const places = ['--manifest-path', `${crate}/Cargo.toml`, '--target-dir', 'target/fuzz']
  return spawnSync('cargo', [...args, ...places], { cwd: root, env, stdio: 'inherit' }).status
}

/** Whether the target has found nothing. */
function holds(target) {
  const [learnt, found] = ['learnt', 'found'].map((kind) => `target/fuzz/${kind}/${target}`)
  for (const folder of [learnt, found]) mkdirSync(join(root, folder), { recursive: true })
  process.stdout.write(`${target}, ${seconds} s ... `)
  const options = [`-max_total_time=${seconds}`, `-artifact_prefix=${found}/`, '-max_len=4096']
  // An input that takes so long hangs; memory that it takes and gives back must not add up.
  const limits = ['-timeout=60', '-rss_limit_mb=2048', '-print_final_stats=1']
  // What was found is tried first, until it holds.
  const args = [learnt, `${crate}/corpus/${target}`, found, ...options, ...limits]
  const spawned = { cwd: root, encoding: 'utf8', maxBuffer: 2 ** 30 }
  const { status, signal, stderr } = spawnSync(`target/fuzz/${triple}/release/${target}`, args, spawned)
  if (status === 0) {
    console.log(`${/number_of_executed_units: (\d+)/.exec(stderr)?.[1]} inputs, and it holds`)
  } else {
    console.log(`ended with ${signal ?? status}:\n${stderr.split('\n').slice(-100).join('\n')}`)
  }
  return status === 0
}
