// Makes a bare clone ready to run: checks the toolchain, installs what package-lock.json names, and builds
// what is older than its sources. It needs nothing but Node and does nothing when there is nothing to do.

import { spawnSync } from 'node:child_process'
import { existsSync, readFileSync, readdirSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

export const root = fileURLToPath(new URL('..', import.meta.url))

/** Ends the process, with the reason on stderr, when something is missing or a step fails. */
export function setup() {
  requireTools()
  if (isOlder('node_modules/.package-lock.json', ['package-lock.json'])) {
    step('installing packages', 'npm', ['ci', '--no-audit', '--no-fund'])
  }
  if (isOlder(nativeModule(), ['crates/netpoll', 'crates/node', 'Cargo.toml', 'Cargo.lock'])) {
    step('building the native module', 'npm', ['run', '--silent', 'build:native'])
  }
  if (isOlder('dist/index.js', ['ts', 'tsconfig.json'])) {
    step('building the TypeScript layer', 'npm', ['run', '--silent', 'build:ts'])
  }
}

/** Ends the process unless all tools are there; `others` are more that this needs, and what for. */
export function requireTools(others = {}) {
  const missing = missingTools()
  for (const [tool, reason] of Object.entries(others)) {
    if (spawnSync(tool, ['--version']).status !== 0)
      missing.push(`There is no ${tool} on the PATH: ${reason}`)
  }
  if (missing.length > 0) {
    fail(`netpoll cannot be built here:\n${missing.map((line) => `  - ${line}\n`).join('')}`)
  }
}

/** One sentence for each tool that is absent or too old: what is needed, what is here, how to get it. */
function missingTools() {
  const missing = []
  const node = />=([\d.]+)/.exec(read('package.json'))[1]
  if (!isAtLeast(process.versions.node, node)) {
    missing.push(`Node ${node} or newer is needed, this is ${process.versions.node}: see https://nodejs.org`)
  }
  const rust = /^rust-version = "([\d.]+)"/m.exec(read('Cargo.toml'))[1]
  for (const tool of ['cargo', 'rustc']) {
    const version = versionOf(tool)
    if (version === undefined) {
      missing.push(`Rust ${rust} or newer is needed, there is no ${tool} on the PATH: see https://rustup.rs`)
    } else if (!isAtLeast(version, rust)) {
      missing.push(`Rust ${rust} or newer is needed, ${tool} is ${version}: run 'rustup update stable'`)
    }
  }
  return missing
}

/** What rustc builds for when it is not told: `x86_64-unknown-linux-gnu`. */
export function host() {
  const { stdout } = spawnSync('rustc', ['-vV'], { encoding: 'utf8' })
  return /^host: (.*)$/m.exec(stdout)[1]
}

function versionOf(tool) {
  const { status, stdout } = spawnSync(tool, ['--version'], { cwd: root, encoding: 'utf8' })
  return status === 0 ? /\d+\.\d+\.\d+/.exec(stdout)?.[0] : undefined
}

function isAtLeast(version, wanted) {
  return version.localeCompare(wanted, 'en', { numeric: true }) >= 0
}

function nativeModule() {
  const name = new RegExp(`^netpoll\\.${process.platform}-${process.arch}.*\\.node$`)
  return readdirSync(root).find((file) => name.test(file)) ?? 'netpoll.node'
}

function isOlder(output, sources) {
  const built = existsSync(join(root, output)) ? statSync(join(root, output)).mtimeMs : 0
  return sources.some((source) => newest(join(root, source)) > built)
}

/** The time of the last change under a path. A folder counts itself: its time tells of removed files. */
function newest(path) {
  if (!existsSync(path)) return 0
  const { mtimeMs } = statSync(path)
  if (!statSync(path).isDirectory()) return mtimeMs
  return Math.max(mtimeMs, ...readdirSync(path).map((name) => newest(join(path, name))))
}

function step(what, command, args) {
  console.error(`netpoll: ${what} ...`)
  const { error, status } = spawnSync(command, args, { cwd: root, stdio: ['ignore', 2, 2] })
  if (error) fail(`netpoll: ${command} cannot be run: ${error.message}`)
  if (status !== 0) fail(`netpoll: ${what} failed`)
}

function fail(message) {
  console.error(message)
  process.exit(1)
}

function read(file) {
  return readFileSync(join(root, file), 'utf8')
}

if (process.argv[1] === fileURLToPath(import.meta.url)) setup()
