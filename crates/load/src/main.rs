//! Load generator and plain epoll floor for the benchmarks.
//!
//! `floor` is the least that a server has to do: what it costs is the kernel's share. `run` and `churn` put a
//! server under load and check every answer; `idle` holds connections open, `visit` hardly opens them. One thread each, so that server
//! and load can be pinned to one core each.

mod arguments;
mod connection;
mod endpoint;
mod floor;
mod frame;
mod generator;
mod histogram;
mod idle;
mod message;
mod pace;
mod relay;
mod service;
mod sys;
mod visits;

use std::io;
use std::process::ExitCode;

use arguments::Arguments;

const USAGE: &str = "usage: netpoll-load COMMAND (--port N | --unix PATH) [OPTIONS]

  floor   serve until stdin ends; prints `ready PORT` first (--port 0 chooses one)
          --service echo | frame (u32 big-endian length and body) | burn | upload | download, the last three with
          the --size of a request, chunk or answer; --upstream PORT relays instead
  run     keep --inflight K requests of --size S bytes in flight on each of --connections C; prints `start` and
          `end` around the measured time, then one line of JSON; --duration SECONDS --warmup SECONDS
          --frame (the size plus its length), --upload (answered by a count of bytes), --download (the size is
          that of the answer); --pace MICROS asks one connection after the other at this interval;
          --firehose SIZE adds one connection that echoes such messages as fast as it can, not measured;
          --hold keeps the connections open until stdin ends
  churn   the same options, but each connection asks once and is closed; a new one takes its place
  idle    on stdin: `open N` (until N are open, answered by `up N`), `request` (one on each that has had
          none, answered by `asked N`); ends with stdin; --size S, --frame
  visit   open --count N connections one after the other, send one message of --size S on each, and
          close it at once, by a FIN and by a RST in turns";

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let command = words.next().unwrap_or_default();
    match Arguments::parse(words).and_then(|arguments| start(&command, arguments)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("netpoll-load {command}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether no request has failed.
fn start(command: &str, mut arguments: Arguments) -> io::Result<bool> {
    match command {
        "floor" => floor::serve(&mut arguments).map(|()| true),
        "run" => generator::run(&mut arguments, false),
        "churn" => generator::run(&mut arguments, true),
        "idle" => idle::hold(&mut arguments).map(|()| true),
        "visit" => visits::pay(&mut arguments).map(|()| true),
        _ => Err(io::Error::other(USAGE)),
    }
}
