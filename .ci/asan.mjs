// `npm run test:asan [-- PART]`: AddressSanitizer and LeakSanitizer watch the tests of the core, then the addon inside of
// Node, in those tests of the package that end things at bad moments. Parts: core, node. Each report is a failure.
// Everything is built into target/asan. The last line is `N passed, N failed`.

import { spawnSync } from 'node:child_process'
import { copyFileSync, mkdirSync, readFileSync, readdirSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { host, requireTools, root, setup } from './setup.mjs'
import { avaCounts, cargoCounts, run, sum } from './suite.mjs'

/** Worker termination, ends of processes, close races, memory that is lent, detached, or gone with its environment. */
const FILES = [
  ...['workers', 'process_end', 'order', 'ends', 'half_close', 'resets', 'shutdown', 'polls_died', 'crowd'],
  ...['zero_copy', 'views', 'detach', 'memory'],
].map((name) => `__test__/${name}.test.mjs`)
const PRESSURE = '__test__/hard/pressure.test.mjs'

const target = join(root, 'target/asan')
const addon = join(target, 'netpoll.node')
const reports = join(target, 'reports')
const ava = join(root, 'node_modules/ava/entrypoints/cli.mjs')

const BUILD = {
  // A stable compiler has the sanitizers too.
  RUSTC_BOOTSTRAP: '1',
  // What is unloaded could not be named in a report: a library stays when its worker ends.
  RUSTFLAGS: '-Zsanitizer=address -Clink-arg=-Wl,-z,nodelete',
  CARGO_PROFILE_DEV_OPT_LEVEL: '1',
  CARGO_PROFILE_TEST_OPT_LEVEL: '1',
}

/**
 * What a sanitizer does in each process: it writes a file when it has found something, for some have no stderr that
 * anybody reads. Leaks are looked for only where everything has ended: in `process.exit()`, which ends ava's processes
 * too, Node leaves its heap as it is, and so nobody can say what is still in use.
 */
const sanitizers = (leaks) => ({
  ASAN_OPTIONS: `detect_leaks=${leaks}:log_path=${join(reports, 'report')}:log_exe_name=1`,
  LSAN_OPTIONS: `suppressions=${join(root, '.ci/leaks.txt')}:print_suppressions=0`,
})

/** What the search for leaks goes through, once with each of these. */
const LEAKS = '__test__/hard/leaks.mjs'
const ENVIRONMENTS = [
  { NETPOLL_DRIVER: 'loop' },
  { NETPOLL_DRIVER: 'thread', NETPOLL_ZERO_COPY: 'always' },
  { NETPOLL_DRIVER: 'adaptive', NETPOLL_NUM_LOOPS: '2', NETPOLL_RING_ENTRIES: '8' },
]

const PARTS = { core, node }
const names = process.argv.slice(2)
if (names.some((name) => !(name in PARTS))) {
  console.error(`npm run test:asan [-- PART]; the parts are ${Object.keys(PARTS).join(', ')}`)
  process.exit(1)
}

requireTools({ gcc: 'its libasan is loaded into Node: apt-get install gcc' })
setup()
const triple = host()
rmSync(reports, { recursive: true, force: true })
mkdirSync(reports, { recursive: true })
const suites = []
for (const name of names.length > 0 ? names : Object.keys(PARTS))
  suites.push({ ...(await PARTS[name]()), name })

console.log()
const found = readdirSync(reports)
for (const name of found) console.log(`${name}:\n${readFileSync(join(reports, name), 'utf8')}`)
for (const { name, passed, failed } of suites) console.log(`${name}: ${passed} passed, ${failed} failed`)
console.log(`${found.length} reports of the sanitizers`)
const failed = sum(suites.map((suite) => suite.failed)) + found.length
console.log(`${sum(suites.map((suite) => suite.passed))} passed, ${failed} failed`)
process.exitCode = failed === 0 ? 0 : 1

function core() {
  const args = ['test', '-p', 'netpoll', '--target', triple, '--target-dir', target, '--no-fail-fast']
  return run('cargo', args, cargoCounts, { env: { ...process.env, ...BUILD, ...sanitizers(1) } })
}

async function node() {
  build()
  const loaded = { ...process.env, LD_PRELOAD: runtime(), NAPI_RS_NATIVE_LIBRARY_PATH: addon }
  const env = { ...loaded, ...sanitizers(0) }
  seeThatItIsThere(env)
  const tests = await run(process.execPath, [ava, '--concurrency=1', ...FILES], avaCounts, { env })
  const hard = [ava, '--config', '__test__/hard/ava.config.mjs', PRESSURE]
  const pressure = await run(process.execPath, hard, avaCounts, { env })
  const parts = [tests, pressure]
  for (const environment of ENVIRONMENTS) {
    const options = { env: { ...loaded, ...sanitizers(1), ...environment } }
    parts.push(await run(process.execPath, [LEAKS], { passed: /^all have ended$/gm, failed: /^$/g }, options))
  }
  return { passed: sum(parts.map((part) => part.passed)), failed: sum(parts.map((part) => part.failed)) }
}

function build() {
  const args = ['build', '-p', 'netpoll-node', '--target', triple, '--target-dir', target]
  const { status } = spawnSync('cargo', args, {
    cwd: root,
    stdio: 'inherit',
    env: { ...process.env, ...BUILD },
  })
  if (status !== 0) fail('The addon cannot be built with AddressSanitizer, see above')
  copyFileSync(join(target, triple, 'debug/libnetpoll_node.so'), addon)
}

/** Node is not built with it, so the runtime has to be there before the addon is. */
function runtime() {
  const { stdout } = spawnSync('gcc', ['-print-file-name=libasan.so'], { encoding: 'utf8' })
  const path = stdout.trim()
  if (!path.startsWith('/'))
    fail('gcc has no libasan: apt-get install libgcc-12-dev, or what your gcc names so')
  return path
}

/** An addon that cannot be loaded would be replaced by the usual one, and all would be well. */
function seeThatItIsThere(env) {
  const program = `require('./index.js'); process.stdout.write(require('fs').readFileSync('/proc/self/maps'))`
  const { stdout, stderr } = spawnSync(process.execPath, ['-e', program], {
    cwd: root,
    env,
    encoding: 'utf8',
  })
  if (!(stdout.includes(addon) && stdout.includes('libasan'))) fail(`The addon is not in use: ${stderr}`)
}

function fail(message) {
  console.error(message)
  process.exit(1)
}
