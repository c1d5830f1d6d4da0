//! The load: keeps requests in flight, checks the answers, measures.

use std::io;
use std::time::{Duration, Instant};

use crate::arguments::Arguments;
use crate::connection::Connection;
use crate::endpoint::Endpoint;
use crate::histogram::Histogram;
use crate::message::Message;
use crate::sys::Epoll;

/// A read of the largest answers takes this much at once.
const BUFFER: usize = 256 * 1024;

/// Answers that are outstanding at the end have to come within this time.
const PATIENCE: Duration = Duration::from_secs(10);

/// What happens now; each phase ends at its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    WarmUp,
    Measure,
    /// Nothing new is asked; what is outstanding comes back.
    Drain,
}

/// Applies the load that `arguments` describe and prints the result. False when a connection was lost.
pub fn run(arguments: &mut Arguments, churn: bool) -> io::Result<bool> {
    let endpoint = Endpoint::from_arguments(arguments)?;
    let connections: usize = arguments.required("connections")?;
    let inflight = if churn { 1 } else { arguments.optional("inflight")?.unwrap_or(1).max(1) };
    let message = Message::from_arguments(arguments, inflight)?;
    let duration = Duration::from_secs_f64(arguments.required("duration")?);
    let warm_up = Duration::from_secs_f64(arguments.required("warmup")?);
    arguments.finish()?;

    let mut generator = Generator::new(endpoint, message, inflight, churn)?;
    generator.open(connections)?;
    generator.measure(warm_up, duration)?;
    generator.report();
    Ok(generator.lost == 0)
}

struct Generator {
    endpoint: Endpoint,
    message: Message,
    inflight: usize,
    churn: bool,
    epoll: Epoll,
    buffer: Vec<u8>,
    /// The index is the key of epoll; None is one that was lost.
    connections: Vec<Option<Connection>>,
    /// Connections ever opened: the id of the next one.
    opened: usize,
    unanswered: usize,
    lost: u64,
    phase: Phase,
    measured: Duration,
    histogram: Histogram,
}

impl Generator {
    fn new(endpoint: Endpoint, message: Message, inflight: usize, churn: bool) -> io::Result<Self> {
        Ok(Self {
            endpoint,
            message,
            inflight,
            churn,
            epoll: Epoll::new()?,
            buffer: vec![0; BUFFER],
            connections: Vec::new(),
            opened: 0,
            unanswered: 0,
            lost: 0,
            phase: Phase::WarmUp,
            measured: Duration::ZERO,
            histogram: Histogram::new(),
        })
    }

    fn open(&mut self, count: usize) -> io::Result<()> {
        for key in 0..count {
            let connection = Connection::new(self.endpoint.connect_paced(key)?, key as u32)?;
            connection.register(&self.epoll, key)?;
            self.connections.push(Some(connection));
        }
        self.opened = count;
        Ok(())
    }

    fn measure(&mut self, warm_up: Duration, duration: Duration) -> io::Result<()> {
        let start = Instant::now();
        for key in 0..self.connections.len() {
            self.attend(key, |generator, connection| {
                generator.ask(connection, key, generator.inflight, start)
            })?;
        }
        self.turn_until(start + warm_up)?;

        println!("start");
        self.phase = Phase::Measure;
        let start = Instant::now();
        self.turn_until(start + duration)?;
        self.measured = start.elapsed();
        println!("end");

        self.phase = Phase::Drain;
        self.turn_until(Instant::now() + PATIENCE)?;
        match self.unanswered {
            0 => Ok(()),
            count => Err(io::Error::new(io::ErrorKind::TimedOut, format!("{count} answers are missing"))),
        }
    }

    /// Handles events until `deadline`, or until there is nothing to wait for.
    fn turn_until(&mut self, deadline: Instant) -> io::Result<()> {
        while self.unanswered > 0 {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else { break };
            for event in 0..self.epoll.wait(Some(left))? {
                let key = self.epoll.key(event);
                self.attend(key, |generator, connection| generator.answered(connection, key))?;
            }
        }
        Ok(())
    }

    /// Lets `act` have the connection. One that fails is lost; only a wrong answer ends everything.
    fn attend<F>(&mut self, key: usize, act: F) -> io::Result<()>
    where
        F: FnOnce(&mut Self, &mut Connection) -> io::Result<()>,
    {
        let Some(mut connection) = self.connections.get_mut(key).and_then(Option::take) else {
            return Ok(());
        };
        match act(self, &mut connection) {
            Ok(()) => self.connections[key] = Some(connection),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => return Err(error),
            Err(error) => {
                eprintln!("a connection was lost: {error}");
                self.lost += 1;
                self.unanswered -= connection.unanswered();
            }
        }
        Ok(())
    }

    fn answered(&mut self, connection: &mut Connection, key: usize) -> io::Result<()> {
        let mut complete = 0;
        let asked = connection.receive(&mut self.message, &mut self.buffer)?;
        let now = Instant::now();
        for since in asked {
            complete += 1;
            if self.phase == Phase::Measure {
                self.histogram.record(now - since);
            }
        }
        self.unanswered -= complete;
        if self.phase == Phase::Drain {
            return connection.send(&mut self.message, &self.epoll, key);
        }
        if self.churn && complete > 0 {
            return self.replace(connection, key, now);
        }
        self.ask(connection, key, complete, now)
    }

    fn ask(&mut self, connection: &mut Connection, key: usize, count: usize, now: Instant) -> io::Result<()> {
        connection.ask(count, now);
        self.unanswered += count;
        connection.send(&mut self.message, &self.epoll, key)
    }

    /// Closes `connection` and asks on a new one; its time begins before it connects.
    fn replace(&mut self, connection: &mut Connection, key: usize, now: Instant) -> io::Result<()> {
        *connection = Connection::new(self.endpoint.connect(self.opened)?, self.opened as u32)?;
        self.opened += 1;
        connection.register(&self.epoll, key)?;
        self.ask(connection, key, 1, now)
    }

    fn report(&self) {
        let (requests, seconds) = (self.histogram.total(), self.measured.as_secs_f64());
        let throughput = requests as f64 / seconds;
        let bytes = throughput * self.message.length() as f64;
        let [p50, p99, p999, max] =
            [0.5, 0.99, 0.999, 1.0].map(|share| self.histogram.quantile(share).as_secs_f64() * 1e6);
        println!(
            "{{\"requests\":{requests},\"seconds\":{seconds:.6},\"throughput\":{throughput:.1},\
             \"bytesPerSecond\":{bytes:.0},\"p50\":{p50:.1},\"p99\":{p99:.1},\"p999\":{p999:.1},\
             \"max\":{max:.1},\"errors\":{}}}",
            self.lost
        );
    }
}
