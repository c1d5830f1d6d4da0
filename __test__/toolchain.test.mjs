// What .ci/setup.mjs, behind `npm start` and `npm test`, does and says in a bare clone. The tools are stand-ins
// on a PATH of their own: each prints a version; npm notes how it was called.

import { spawnSync } from 'node:child_process'
import {
  cpSync,
  chmodSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  utimesSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test from 'ava'

const project = new URL('..', import.meta.url).pathname

test.beforeEach((t) => {
  t.context.clone = bareClone()
})

test.afterEach.always((t) => {
  rmSync(t.context.clone, { recursive: true })
})

test('a bare clone is installed and built, in this order', (t) => {
  const { status, calls } = setup(t.context.clone, { cargo: '1.95.0', rustc: '1.95.0', npm: '11.0.0' })
  t.is(status, 0)
  t.deepEqual(calls, ['ci --no-audit --no-fund', 'run --silent build:native', 'run --silent build:ts'])
})

test('only what is older than its sources is built again', (t) => {
  build(t.context.clone)
  touch(t.context.clone, 'ts/index.ts', '2040-01-01')
  const { status, calls } = setup(t.context.clone, { cargo: '1.95.0', rustc: '1.95.0', npm: '11.0.0' })
  t.is(status, 0)
  t.deepEqual(calls, ['run --silent build:ts'])
})

test('the oldest supported Rust is enough, and a built clone needs no npm', (t) => {
  build(t.context.clone)
  const { status, stderr } = setup(t.context.clone, { cargo: '1.88.0', rustc: '1.88.0' })
  t.is(stderr, '')
  t.is(status, 0)
})

test('without Rust it says so, and how to get it', (t) => {
  const { status, stderr, calls } = setup(t.context.clone, { npm: '11.0.0' })
  t.is(status, 1)
  t.regex(stderr, /Rust 1\.88 or newer is needed, there is no cargo on the PATH: see https:\/\/rustup\.rs/)
  t.regex(stderr, /there is no rustc on the PATH/)
  t.deepEqual(calls, [])
})

test('the tests against netpoll in Go are skipped without Go, and say so', (t) => {
  const env = { ...process.env, PATH: t.context.clone }
  const program = join(project, '__test__/interop/run.mjs')
  const { status, stdout } = spawnSync(process.execPath, [program], { env, encoding: 'utf8' })
  t.is(status, 0)
  t.is(stdout, 'skipped: there is no go on the PATH\n\n0 passed, 0 failed\n')
})

test('with an old Rust it names both versions and the command that helps', (t) => {
  const { status, stderr, calls } = setup(t.context.clone, {
    cargo: '1.95.0',
    rustc: '1.70.0',
    npm: '11.0.0',
  })
  t.is(status, 1)
  t.regex(stderr, /Rust 1\.88 or newer is needed, rustc is 1\.70\.0: run 'rustup update stable'/)
  t.notRegex(stderr, /cargo is/)
  t.deepEqual(calls, [])
})

test('with an old Node it names both versions', (t) => {
  const { status, stderr, calls } = setup(
    t.context.clone,
    { cargo: '1.95.0', rustc: '1.95.0', npm: '11.0.0' },
    { node: '20.9.0' },
  )
  t.is(status, 1)
  t.regex(stderr, /Node 20\.19\.0 or newer is needed, this is 20\.9\.0/)
  t.notRegex(stderr, /Rust/)
  t.deepEqual(calls, [])
})

test('a step that fails ends it, and is named', (t) => {
  const { status, stderr } = setup(t.context.clone, { cargo: '1.95.0', rustc: '1.95.0', npm: 'broken' })
  t.is(status, 1)
  t.regex(stderr, /installing packages failed\n$/)
})

function bareClone() {
  const clone = mkdtempSync(join(tmpdir(), 'netpoll-clone-'))
  for (const file of ['.ci/setup.mjs', 'package.json', 'package-lock.json', 'Cargo.toml']) {
    cpSync(join(project, file), join(clone, file))
  }
  for (const folder of ['crates/netpoll', 'crates/node', 'ts', 'dist', 'node_modules', 'bin']) {
    mkdirSync(join(clone, folder), { recursive: true })
  }
  writeFileSync(join(clone, 'ts/index.ts'), '')
  return clone
}

/** Puts outputs that are newer than every source. */
function build(clone) {
  const outputs = [
    'node_modules/.package-lock.json',
    `netpoll.${process.platform}-${process.arch}-gnu.node`,
    'dist/index.js',
  ]
  for (const output of outputs) {
    writeFileSync(join(clone, output), '')
    touch(clone, output, '2030-01-01')
  }
}

function touch(clone, file, date) {
  utimesSync(join(clone, file), new Date(date), new Date(date))
}

function setup(clone, tools, { node = process.versions.node } = {}) {
  const log = join(clone, 'calls')
  writeFileSync(log, '')
  for (const [tool, version] of Object.entries(tools)) {
    const script =
      tool === 'npm'
        ? `echo "$*" >> ${log}; [ ${version} != broken ]`
        : `echo "${tool} ${version} (stand-in)"`
    writeFileSync(join(clone, 'bin', tool), `#!/bin/sh\n${script}\n`)
    chmodSync(join(clone, 'bin', tool), 0o755)
  }
  const versions = `data:text/javascript,Object.defineProperty(process, 'versions', { value: { node: '${node}' } })`
  const { status, stderr } = spawnSync(
    process.execPath,
    ['--import', versions, join(clone, '.ci/setup.mjs')],
    {
      encoding: 'utf8',
      env: { PATH: join(clone, 'bin') },
    },
  )
  return { status, stderr, calls: readFileSync(log, 'utf8').split('\n').filter(Boolean) }
}
