// docs/parity.md holds: its tests and names exist, and nothing of cloudwego/netpoll is without a row. What netpoll
// exports is in fixtures/netpoll_exports.txt (from `go doc -all`), its tests are in fixtures/netpoll_tests.txt.

import { execFile } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import test from 'ava'
import { pattern, tables, titles, unknownTests } from './fixtures/document.mjs'

const project = new URL('..', import.meta.url).pathname
const execute = promisify(execFile)

const EXPORTS = 'netpoll | here | held by | what differs'
const BEHAVIOUR = 'netpoll | here | held by'
const TESTS = 'Go test | held by | what differs'

const document = tables(readFileSync(join(project, 'docs/parity.md'), 'utf8'))
const rows = document.flatMap((table) => table.rows)

const quoted = (text) => [...text.matchAll(/`([^`]+)`/g)].map((match) => match[1])
const lines = (name) =>
  readFileSync(join(project, '__test__/fixtures', name), 'utf8')
    .trim()
    .split('\n')

test('the tables are there, and have the columns that are checked', (t) => {
  const known = [EXPORTS, BEHAVIOUR, TESTS]
  t.deepEqual([...new Set(document.map(({ title }) => title))].toSorted(), known.toSorted())
  t.true(rows.length > 150, `${rows.length} rows`)
})

test('every row names tests that exist, or says why it has none', async (t) => {
  const existing = await titles()
  t.true(Object.values(existing).flat().length > 1000)
  const missing = []
  for (const row of rows) {
    const held = row['held by']
    if (held === '–') {
      if (!row['what differs']) missing.push(`no reason: ${Object.values(row)[0]}`)
      continue
    }
    missing.push(...unknownTests(held, existing))
  }
  t.deepEqual(missing, [])
})

test('everything that netpoll exports has a row, and every row is about something of it', (t) => {
  const names = lines('netpoll_exports.txt')
  const wanted = document.filter(({ title }) => title === EXPORTS).flatMap((table) => table.rows)
  const patterns = wanted.flatMap((row) => quoted(row.netpoll)).map((text) => [text, pattern(text, '*')])
  t.deepEqual(
    names.filter((name) => !patterns.some(([, one]) => one.test(name))),
    [],
  )
  t.deepEqual(
    patterns.filter(([, one]) => !names.some((name) => one.test(name))).map(([text]) => text),
    [],
  )
})

test('every test of netpoll has a row, and every row is about one of them', (t) => {
  const wanted = document.filter(({ title }) => title === TESTS).flatMap((table) => table.rows)
  const named = wanted.flatMap((row) => {
    const file = row['Go test'].split(':')[0]
    return quoted(row['Go test']).map((name) => `${file} ${name}`)
  })
  t.deepEqual(named.toSorted(), lines('netpoll_tests.txt').toSorted())
})

test('what a row says something is here is exported, with this member', async (t) => {
  const wanted = document.filter(({ title }) => title === EXPORTS).flatMap((table) => table.rows)
  const names = [...new Set(wanted.flatMap((row) => quoted(row.here)))]
  t.true(names.length > 60, `${names.length} names`)
  const folder = mkdtempSync(join(tmpdir(), 'netpoll-parity-'))
  t.teardown(() => rmSync(folder, { recursive: true }))
  const path = join(folder, 'names.mts')
  writeFileSync(path, names.map(use).join('\n'))
  const options = '--ignoreConfig --noEmit --strict --skipLibCheck --module nodenext --target es2022'.split(
    ' ',
  )
  const types = ['--types', 'node', '--typeRoots', join(project, 'node_modules/@types')]
  const tsc = join(project, 'node_modules/.bin/tsc')
  const { stdout } = await execute(tsc, [...options, '--lib', 'es2022,esnext.disposable', ...types, path], {
    cwd: project,
  }).catch((error) => error)
  t.is(stdout, '')
})

const GENERIC = new Set(['EventLoopOptions'])

/** A line of TypeScript that compiles if the package exports the name. */
function use(name, i) {
  const [first, member] = name.split('.')
  const from = `'${join(project, first.startsWith('ShardQueue') ? 'mux.js' : 'index.js')}'`
  if (name.startsWith('ERR_')) return `export const name${i}: import(${from}).ErrorCode = '${name}'`
  if (member === undefined) return `export { ${first} as name${i} } from ${from}`
  return `export type Name${i} = import(${from}).${first}${GENERIC.has(first) ? '<unknown>' : ''}['${member}']`
}
