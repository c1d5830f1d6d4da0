import { markdown, table } from './report.mjs'

/** docs/benchmark.md */
export function page(results) {
  return `${HEAD}\n${markdown(results)}`
}

/** The README's section: the ratios of this package. */
export function summary({ machine, settings, scenarios }) {
  const head = [
    'scenario',
    'requests/s ÷ net',
    'p50 ÷ net',
    'CPU/request ÷ net',
    "JS thread's CPU ÷ net",
    'CPU/request ÷ floor',
  ]
  const rows = scenarios.map(({ title, peers: { netpoll } }) => {
    const { to_net: net, to_floor: floor } = netpoll
    return [title, ...[net.throughput, net.p50, net.cpu, net.js, floor?.cpu].map(ratio)]
  })
  return `<!-- benchmark -->

![CPU per request of the server, relative to net](docs/benchmark.svg)

${table(head, rows).join('\n')}

Server on one core, load on the other; ${machine.cpu}, Linux ${machine.kernel.split('-')[0]}, Node ${machine.node};
medians of ${settings.rounds} interleaved rounds. [All figures, with their spread](docs/benchmark.md).

<!-- end of benchmark -->`
}

function ratio(spread) {
  return spread === undefined ? '–' : spread.median.toFixed(spread.median < 0.1 ? 3 : 2)
}

const HEAD = `# How fast is it?

\`\`\`sh
npm run bench                                                   # everything, an hour and a quarter
npm run bench -- --quick                                        # ten scenarios against net and the floor, two minutes
npm run bench -- --only 'echo 1 KiB' --peers netpoll,net        # some of it; --list shows the names, --help the rest
npm run bench -- --only relay --append                          # some of it again; the rest of the last results stays
npm run bench -- --peers netpoll:thread,netpoll:adaptive,net    # drivers against each other
npm run bench:compare -- before.json after.json                 # what has changed, outside of the spread
npm run bench:publish                                           # this page, its charts and the README's section
\`\`\`

It needs Linux, two cores, \`taskset\` and Rust, and Go for the peers in Go; without Go they are left out. Nobody else
should use the machine meanwhile. What each figure is, and how it is taken, is said in
[benchmark/results](../benchmark/results/README.md), and what bounds it in [performance](performance.md).

![CPU per request of the server, relative to net](benchmark.svg)

![Requests a second, relative to net](benchmark-throughput.svg)
`
