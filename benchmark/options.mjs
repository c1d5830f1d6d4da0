import { parseArgs } from 'node:util'

export const usage = `npm run bench [-- OPTIONS]

  --quick            a subset of the scenarios, for two minutes: four rounds of 0.4 s, without the peers in Go
  --rounds N         rounds in which each peer has a turn (5)
  --seconds S        of each measurement (1)
  --only PATTERN     scenarios whose title or group matches this regular expression
  --peers A,B        netpoll, base, go-netpoll, go-netpoll-2, gnet, go-net, net, floor; netpoll:DRIVER and base:DRIVER
                     are netpoll with another driver (all but base)
  --base PATH        another checkout of this package, built: the peer base
  --driver NAME      adaptive, loop or thread (whatever the package chooses)
  --loops N          polls of this package (whatever the package chooses)
  --busy-poll MICROS of this package (whatever the package chooses)
  --output NAME      of the files in benchmark/results (latest)
  --append           keeps the other scenarios that are in these files
  --list             shows the chosen scenarios and ends`

/** Throws what is wrong with them. */
export function parseOptions(args) {
  const { values } = parseArgs({
    args,
    options: {
      rounds: { type: 'string' },
      seconds: { type: 'string' },
      only: { type: 'string' },
      peers: { type: 'string' },
      base: { type: 'string' },
      driver: { type: 'string' },
      loops: { type: 'string' },
      'busy-poll': { type: 'string' },
      output: { type: 'string', default: 'latest' },
      quick: { type: 'boolean', default: false },
      append: { type: 'boolean', default: false },
      list: { type: 'boolean', default: false },
      help: { type: 'boolean', default: false },
    },
  })
  const { quick } = values
  return {
    ...values,
    rounds: positive('rounds', values.rounds ?? (quick ? '4' : '5')),
    seconds: positive('seconds', values.seconds ?? (quick ? '0.4' : '1')),
    warmup: quick ? 0.3 : 0.6,
    peers: values.peers?.split(','),
    busyPoll: values['busy-poll'],
    loops: values.loops && `${positive('loops', values.loops)}`,
  }
}

/** Those that the options ask for; without a pattern, and with --quick, those that are quick. */
export function choose(scenarios, { only, quick }) {
  if (only === undefined) return quick ? scenarios.filter((scenario) => scenario.quick) : scenarios
  const pattern = new RegExp(only, 'i')
  return scenarios.filter(({ title, group }) => pattern.test(title) || pattern.test(group))
}

function positive(name, text) {
  const value = Number(text)
  if (!(value > 0)) throw new Error(`--${name} has to be a number above 0`)
  return value
}
