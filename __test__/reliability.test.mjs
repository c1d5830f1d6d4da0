// docs/reliability.md is the index of what can go wrong, and of the tests that hold it.

import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import test from 'ava'
import { tables, titles, unknownTests } from './fixtures/document.mjs'

const project = new URL('..', import.meta.url).pathname
const read = (path) => readFileSync(join(project, path), 'utf8')

const HAZARDS = '# | hazard | verdict | held by | shown by'
const FIXES = 'in netpoll | held by | here'
const COUNT = 40

const document = tables(read('docs/reliability.md'))
const hazards = document.find(({ title }) => title === HAZARDS)?.rows ?? []
const fixes = document.find(({ title }) => title === FIXES)?.rows ?? []

test('each hazard has its row, in order', (t) => {
  const numbers = hazards.map((row) => Number(row['#']))
  t.deepEqual(
    numbers,
    Array.from({ length: COUNT }, (_, i) => i + 1),
  )
})

test('each verdict is one of three, and tells why where it is not plainly held', (t) => {
  for (const { '#': number, verdict } of hazards) {
    t.regex(verdict, /^(held(: .{20,})?|does not apply: .{20,}|open: .{20,})$/, `hazard ${number}`)
  }
})

test('every row names tests that exist', async (t) => {
  const existing = await titles()
  t.deepEqual(
    [...hazards, ...fixes].flatMap((row) => unknownTests(row['held by'], existing)),
    [],
  )
  t.true(fixes.length > 10)
})

test('every command runs what is there', (t) => {
  const { scripts } = JSON.parse(read('package.json'))
  const parts = read('.ci/hard.mjs')
  for (const { '#': number, 'shown by': cell } of hazards) {
    const command = /^`(.+)`$/.exec(cell)?.[1] ?? ''
    const [, script, names] = /^npm (?:run )?(\S+)(?: -- (.+))?$/.exec(command) ?? []
    if (script === undefined) t.regex(command, /^cargo test -p netpoll\b/, `hazard ${number}`)
    else t.true(script in scripts, `hazard ${number}: ${command}`)
    if (script !== 'test:hard') continue
    for (const name of names.split(' ')) t.regex(parts, new RegExp(`^  ${name}: \\[`, 'm'), name)
  }
})
