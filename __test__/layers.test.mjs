// The layer rules of docs/architecture.md, read from the sources themselves.

import { readFileSync, readdirSync, statSync } from 'node:fs'
import { join } from 'node:path'
import test from 'ava'

const project = new URL('..', import.meta.url).pathname
const testModule = /^#\[cfg\((?:all\()?test\b.*\]\n(?:#\[.*\]\n)*(?:pub\(crate\) )?mod \w+ \{[^]*/m

const core = sources('crates/netpoll/src', '.rs')
const binding = sources('crates/node/src', '.rs')
const typescript = sources('ts', '.ts')

test('in the core only sys touches libc', (t) => {
  t.deepEqual(
    using(core, /\blibc\b/).filter((path) => !path.startsWith('crates/netpoll/src/sys/')),
    [],
  )
  t.not(using(core, /\blibc\b/).length, 0, 'sys itself does')
})

test('system calls go where a script of faults can stand in for them', (t) => {
  const doors = core.filter(
    ({ path }) => path.startsWith('crates/netpoll/src/sys/') && !path.endsWith('/fault.rs'),
  )
  const calls = doors.flatMap(({ text }) => [...withoutComments(text).matchAll(/\blibc::([a-z_\d]+)\(/g)])
  // They are no system calls, or cannot fail with the arguments that they get.
  const others = [
    'dlsym',
    'munmap',
    'pthread_sigmask',
    'sigfillset',
    'sigismember',
    'sigpending',
    'sysconf',
    'unshare',
  ]
  t.deepEqual([...new Set(calls.map(([, name]) => name))].toSorted(), others)
  t.deepEqual(using(core, /\bSourceFd\b|\bmio\.poll\(/), ['crates/netpoll/src/sys/epoll.rs'])
  const asks =
    /\b(?:socket|SockRef::from\(.*\))\.(?:bind|connect|listen|shutdown|take_error|(?:peer|local)_addr)\(/
  const bare = core
    .flatMap(({ text }) => withoutComments(text).split('\n'))
    .filter((line) => asks.test(line) && !line.includes('through('))
  t.deepEqual(bare, [])
})

test('the core knows nothing of Node', (t) => {
  t.deepEqual(using(core, /\bnapi(?:_\w+)?\b/), [])
  t.notRegex(read('crates/netpoll/Cargo.toml'), /napi/)
})

test('in the core only those who wait read a clock, all others are told the time', (t) => {
  const waiting = ['loop_driver', 'poll_manager', 'thread_driver'].map(
    (name) => `crates/netpoll/src/${name}.rs`,
  )
  t.deepEqual(using(core, /\bInstant::now\b|\bSystemTime\b/).toSorted(), waiting)
})

test('the binding holds no networking', (t) => {
  t.deepEqual(using(binding, /\b(?:libc|mio|socket2)\b|\bstd::net\b|\bstd::os::unix::net\b/), [])
  t.notRegex(read('crates/node/Cargo.toml'), /^(?:libc|mio|socket2)\b/m)
})

test('the TypeScript layer has neither sockets nor timers of its own', (t) => {
  t.deepEqual(using(typescript, /['"](?:node:)?(?:net|dgram|tls|timers(?:\/promises)?)['"]/), [])
  // A Duplex has a method of that name, as net.Socket has: of its declaration alone that is true.
  t.deepEqual(using(typescript, /\bset(?:Timeout|Interval)\((?!ms: number, )/), [])
})

test('the TypeScript layer stays under 4,100 lines of code, adapters for streams and sockets and the mux not counted', (t) => {
  const lines = typescript
    .filter(({ path }) => !['ts/duplex.ts', 'ts/streams.ts', 'ts/shard_queue.ts'].includes(path))
    .flatMap(({ text }) => withoutComments(text).split('\n'))
    .filter((line) => line.trim())
  t.true(lines.length > 0 && lines.length < 4100, `${lines.length} lines`)
})

test('no source file is longer than 500 lines, tests not counted', (t) => {
  const long = [...core, ...binding, ...typescript].filter(({ text }) => text.split('\n').length > 501)
  t.deepEqual(
    long.map(({ path }) => path),
    [],
  )
})

test('docs/architecture.md names every file with unsafe code, and no other', (t) => {
  const section = /^## Where is unsafe code\?$(.*?)(?=^## )/ms.exec(read('docs/architecture.md'))[1]
  const named = [...section.matchAll(/^\| `(\S+\.rs)` \|/gm)].map((match) => match[1])
  t.deepEqual(
    named.toSorted(),
    using([...core, ...binding, ...sources('crates/load/src', '.rs')], /\bunsafe\b/).toSorted(),
  )
})

/** The sources under a folder, without what is only there for tests: files, and the end of a Rust file. */
function sources(folder, extension) {
  return readdirSync(join(project, folder), { recursive: true })
    .map((name) => join(folder, name))
    .filter((path) => path.endsWith(extension) && !/(?:^|\/)(?:models|tests?|fuzzing)(?:\.rs|\/)/.test(path))
    .filter((path) => statSync(join(project, path)).isFile())
    .map((path) => ({ path, text: read(path).replace(testModule, '') }))
}

function using(files, pattern) {
  return files.filter(({ text }) => pattern.test(withoutComments(text))).map(({ path }) => path)
}

function withoutComments(text) {
  return text.replace(/\/\*.*?\*\//gs, '').replace(/^\s*\/\/.*$/gm, '')
}

function read(path) {
  return readFileSync(join(project, path), 'utf8')
}
