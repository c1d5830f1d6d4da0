// docs/border.md, ts/record.ts and the Rust sources tell the same of the memory that both sides share.

import test from 'ava'
import { readFileSync } from 'node:fs'

const read = (path) => readFileSync(new URL(`../${path}`, import.meta.url), 'utf8')
const doc = read('docs/border.md').replace(/\s+/g, (space) => (space.includes('\n') ? '\n' : ' '))
const prose = doc.replaceAll('\n', ' ')
const rust = { record: read('crates/netpoll/src/record.rs'), border: read('crates/netpoll/src/border.rs') }
const enums = enumsOf(read('ts/record.ts'))

/** { name: { member: number } } of all enums of a TypeScript file. */
function enumsOf(text) {
  const bodies = [...text.matchAll(/enum (\w+) \{(.*?)\n\}/gs)]
  return Object.fromEntries(bodies.map(([, name, body]) => [name, numbers(body, /^ {2}(\w+) = (-?\d+),$/gm)]))
}

/** { name: number } of all matches that have a name and a number. */
function numbers(text, pattern) {
  return Object.fromEntries([...text.matchAll(pattern)].map(([, name, value]) => [name, Number(value)]))
}

/** The part of the document under a heading. */
function section(title) {
  const start = doc.indexOf(`\n## ${title}`)
  if (start < 0) throw new Error(`docs/border.md has no section ${title}`)
  const end = doc.indexOf('\n## ', start + 1)
  return doc.slice(start, end < 0 ? undefined : end)
}

/** The cells of the table rows of a part of the document that begin with a number: its name to the row. */
function rows(text) {
  const cells = [...text.matchAll(/^\| (\d+) \| (.*) \|$/gm)].map(([, number, rest]) => [
    number,
    ...rest.split(' | '),
  ])
  return Object.fromEntries(
    cells.map(([number, name, ...rest]) => [name.replaceAll('`', ''), [Number(number), ...rest]]),
  )
}

const firsts = (table) => Object.fromEntries(Object.entries(table).map(([name, [number]]) => [name, number]))

/** WatchDrain is WATCH_DRAIN. */
const upper = (name) => name.replace(/(?<=[a-z])(?=[A-Z])/g, '_').toUpperCase()

/** The numbers behind `const` in a Rust source. */
const constants = (text) => numbers(text, /const (\w+): \w+ = (\d+);/g)

const pick = (object, names) => Object.fromEntries(names.map((name) => [name, object[name]]))

test('the control words are the same', (t) => {
  const { BYTES, ...words } = enums.Control
  const documented = firsts(rows(section('The memory of an environment').split('`words` is')[0]))
  t.deepEqual(words, documented)
  t.deepEqual(words, pick(constants(read('crates/node/src/environment.rs')), Object.keys(words)))
  t.true(prose.includes(`over a SharedArrayBuffer of ${BYTES} bytes`))
})

test('the words of the header are the same', (t) => {
  const { WORDS, ...words } = enums.Header
  t.deepEqual(words, firsts(rows(section('The memory of an environment').split('`words` is')[1])))
  t.deepEqual(words, pick(constants(rust.border), Object.keys(words)))
  t.is(WORDS, constants(rust.border).HEADER_WORDS)
  t.true(doc.includes(`| header | ${WORDS} |`))
  t.deepEqual(Object.keys(words).length, 11)
})

test('rings and tables have entries of the same sizes, in the same order', (t) => {
  const { RECORD, STATUS, ADDRESS } = enums.Size
  const { STATUS_WORDS, ADDRESS_WORDS } = constants(rust.border)
  t.deepEqual([RECORD, STATUS, ADDRESS], [constants(rust.record).RECORD_WORDS, STATUS_WORDS, ADDRESS_WORDS])
  const parts = [...doc.matchAll(/^\| [a-z].* \| `(ringEntries|slots)` x (\d+) \|$/gm)].map(
    ([, of, size]) => [of, Number(size)],
  )
  t.deepEqual(parts, [
    ['ringEntries', RECORD],
    ['ringEntries', RECORD],
    ['slots', STATUS],
    ['slots', ADDRESS],
  ])
})

test('completion records have the same kinds, names and arguments', (t) => {
  const table = rows(section('Completion records'))
  t.deepEqual(enums.Completion, firsts(table))
  const encoded = [
    ...rust.record.matchAll(
      /Completion::(\w+) \{.*?\} => (?:\{\s+)?(?:record\((\d+), token, \[(.*?)\]\)|\[(\d+), (.*?)\])/g,
    ),
  ]
  const kinds = encoded.map(([, name, kind, , bare]) => [upper(name), Number(kind ?? bare)])
  t.deepEqual(enums.Completion, Object.fromEntries(kinds))
  for (const [, name, , ordered, , all] of encoded) {
    const words = (ordered ?? all).split(', ').flatMap((word) => word.match(/^[a-z]+/) ?? [])
    // Their first argument takes the place of the slot, and a table says so in words.
    const given = name === 'Listener' || name === 'Unpin' ? words.slice(1) : words
    const told = name === 'Unpin' ? [] : (table[upper(name)][1].match(/\w+/g) ?? [])
    t.deepEqual(given, told, name)
  }
})

test('submission records have the same kinds, names and arguments', (t) => {
  const table = rows(section('Submission records'))
  t.deepEqual(enums.Submission, firsts(table))
  const decoded = [
    ...rust.record.matchAll(/^ {12}(\d+) => (?:\{[^}]*?)?Submission::(\w+) \{(.*?)\}(?: |,|$)/gms),
  ]
  t.deepEqual(
    enums.Submission,
    Object.fromEntries(decoded.map(([, kind, name]) => [upper(name), Number(kind)])),
  )
  for (const [, , name, fields] of decoded) {
    if (name === 'Done' || name === 'Option') continue
    const taken = fields.match(/\w+(?=: (?:first|second|third))|which/g) ?? []
    const told = (table[upper(name)][1].match(/\w+/g) ?? []).map((word) =>
      word === 'ms' ? 'milliseconds' : word,
    )
    t.deepEqual(taken, told, name)
  }
  t.regex(rust.record, /1 => Submission::Done \{ chunk: slot, offset: generation, count: first \}/)
})

test('causes, deadlines and options have the same numbers', (t) => {
  t.deepEqual(enums.Cause, numbers(rust.record, /const (\w+): Cause = Cause\((-\d+)\)/g))
  const { WRITE_TIMEOUT, OUTPUT_LIMIT, DIAL_TIMEOUT } = enums.Cause
  t.true(prose.includes(`${WRITE_TIMEOUT} write timeout, ${OUTPUT_LIMIT} output limit`))
  t.true(prose.includes(`${DIAL_TIMEOUT} dial timeout`))

  const deadlines = [...rust.record.matchAll(/Deadline::(\w+) => (\d+)/g)]
  t.deepEqual(
    enums.Timer,
    Object.fromEntries(deadlines.map(([, name, number]) => [upper(name), Number(number)])),
  )
  const timer = rows(section('Submission records')).TIMER.at(-1)
  t.deepEqual(enums.Timer, numbersThenNames(timer, /(\d+) (read|idle|write)\b/g))
  const timeout = rows(section('Completion records')).TIMEOUT.at(-1)
  t.deepEqual(pick(enums.Timer, ['READ', 'IDLE']), numbersThenNames(timeout, /(\d+) = (read|idle)/g))

  const options = [...rust.record.matchAll(/(\d+) => Some\(SocketOption::(\w+)/g)]
  t.deepEqual(
    enums.Option,
    Object.fromEntries(options.map(([, number, name]) => [upper(name), Number(number)])),
  )
  const told = rows(section('Submission records')).OPTION.at(-1)
  t.deepEqual(enums.Option, numbersThenNames(told, /(\d+) (\w+) \(/g))
})

test('the status table has the same words and flags', (t) => {
  const { GENERATION, FLAGS, BYTES_READ, BYTES_SENT, CARRY, READ_ENDED, WRITE_ENDED, CLOSED } = constants(
    rust.border,
  )
  t.deepEqual(enums.Status, { GENERATION, FLAGS, READ: BYTES_READ, SENT: BYTES_SENT, CARRY })
  t.deepEqual(enums.Flag, { READ_ENDED, WRITE_ENDED, CLOSED })
  const { READ, SENT } = enums.Status
  const counts = `${READ} and ${READ + 1} bytes read (low, high), ${SENT} and ${SENT + 1} bytes sent (low, high)`
  t.true(prose.includes(`${GENERATION} generation, ${FLAGS} flags, ${counts}, ${CARRY} is 1 while`))
  t.true(prose.includes(`Flags: ${READ_ENDED} = read side ended`))
  t.true(prose.includes(`${WRITE_ENDED} = write side ended`))
  t.true(prose.includes(`${CLOSED} = descriptor closed`))
})

test('how far a poll has come that is to end has the same numbers', (t) => {
  const [, body] = /enum Retired \{(.*?)\n\}/s.exec(rust.border)
  const retired = numbers(body, /^ {4}(\w+) = (\d+),$/gm)
  t.deepEqual(
    enums.Retired,
    Object.fromEntries(Object.entries(retired).map(([name, number]) => [upper(name), number])),
  )
  t.true(prose.includes(`${enums.Retired.EMPTY} = it has no connections any more`))
  t.true(prose.includes(`${enums.Retired.ENDED} = it has ended`))
})

test('every enum of ts/record.ts is compared', (t) => {
  const compared = [
    'Control',
    'Header',
    'Size',
    'Retired',
    'Completion',
    'Submission',
    'Timer',
    'Option',
    'Cause',
    'Status',
    'Flag',
  ]
  t.deepEqual(Object.keys(enums).toSorted(), compared.toSorted())
})

function numbersThenNames(text, pattern) {
  return Object.fromEntries(
    [...text.matchAll(pattern)].map(([, number, name]) => [upper(name), Number(number)]),
  )
}
