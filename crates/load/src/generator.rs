//! The load: keeps requests in flight, checks the answers, measures.

use std::io;
use std::time::{Duration, Instant};

use crate::arguments::Arguments;
use crate::connection::Connection;
use crate::endpoint::Endpoint;
use crate::histogram::Histogram;
use crate::message::Message;
use crate::pace::Pace;
use crate::sys::Epoll;

/// A read of the largest answers takes this much at once.
const BUFFER: usize = 256 * 1024;

/// Answers that are outstanding at the end have to come within this time.
const PATIENCE: Duration = Duration::from_secs(10);

/// Messages that a firehose keeps unanswered.
const FIREHOSE: usize = 4;

/// It sends and reads so much at a time: what the others measure is not how long it takes for a message.
const FIREHOSE_PIECE: usize = 64 * 1024;

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
    let pace = arguments.optional("pace")?.map(|micros| Duration::from_micros(micros).max(Pace::LEAST));
    let firehose = arguments.optional("firehose")?;
    let hold = arguments.flag("hold");
    arguments.finish()?;

    let mut generator = Generator::new(endpoint, message, inflight, churn)?;
    generator.open(connections)?;
    if let Some(size) = firehose {
        generator.open_firehose(size)?;
    }
    generator.measure(warm_up, duration, pace)?;
    generator.report();
    if hold {
        io::copy(&mut io::stdin(), &mut io::sink())?;
    }
    Ok(generator.lost == 0)
}

struct Generator {
    endpoint: Endpoint,
    /// Of the connections that are measured.
    message: Message,
    /// Requests that each of these keeps unanswered; with a pace: at most.
    inflight: usize,
    /// Of the last connection, if that is there to disturb the others.
    firehose: Option<Message>,
    churn: bool,
    epoll: Epoll,
    buffer: Vec<u8>,
    /// The index is the key of epoll; None is one that was lost.
    connections: Vec<Option<Connection>>,
    /// Connections ever opened: the id of the next one.
    opened: usize,
    /// Without a pace each answer is followed by the next request.
    pace: Option<Pace>,
    unanswered: usize,
    lost: u64,
    phase: Phase,
    measured: Duration,
    histogram: Histogram,
    /// Bytes that came back to the firehose while the others were measured.
    beside: u64,
}

impl Generator {
    fn new(endpoint: Endpoint, message: Message, inflight: usize, churn: bool) -> io::Result<Self> {
        Ok(Self {
            endpoint,
            message,
            inflight,
            firehose: None,
            churn,
            epoll: Epoll::new()?,
            buffer: vec![0; BUFFER],
            connections: Vec::new(),
            opened: 0,
            pace: None,
            unanswered: 0,
            lost: 0,
            phase: Phase::WarmUp,
            measured: Duration::ZERO,
            histogram: Histogram::new(),
            beside: 0,
        })
    }

    fn open(&mut self, count: usize) -> io::Result<()> {
        for key in self.opened..self.opened + count {
            let connection = Connection::new(self.endpoint.connect_paced(key)?, key as u32)?;
            connection.register(&self.epoll, key)?;
            self.connections.push(Some(connection));
        }
        self.opened += count;
        Ok(())
    }

    fn open_firehose(&mut self, size: usize) -> io::Result<()> {
        self.open(1)?;
        self.firehose = Some(Message::new(size, false, FIREHOSE));
        Ok(())
    }

    fn measure(&mut self, warm_up: Duration, duration: Duration, pace: Option<Duration>) -> io::Result<()> {
        let start = Instant::now();
        self.pace = pace.map(|every| Pace::new(every, start));
        for key in 0..self.connections.len() {
            if self.pace.is_none() || self.is_firehose(key) {
                let count = if self.is_firehose(key) { FIREHOSE } else { self.inflight };
                self.attend(key, |generator, connection| generator.ask(connection, key, count, start))?;
            }
        }
        self.turn_until(start + warm_up)?;

        println!("start");
        self.phase = Phase::Measure;
        let (start, before) = (Instant::now(), self.received_by_firehose());
        self.turn_until(start + duration)?;
        self.measured = start.elapsed();
        self.beside = self.received_by_firehose() - before;
        println!("end");

        self.phase = Phase::Drain;
        self.pace = None;
        self.turn_until(Instant::now() + PATIENCE)?;
        match self.unanswered {
            0 => Ok(()),
            count => Err(io::Error::new(io::ErrorKind::TimedOut, format!("{count} answers are missing"))),
        }
    }

    /// Handles events until `deadline`, or until there is nothing to wait for.
    fn turn_until(&mut self, deadline: Instant) -> io::Result<()> {
        while self.unanswered > 0 || self.pace.is_some() {
            let now = Instant::now();
            let Some(left) = deadline.checked_duration_since(now) else { break };
            self.ask_paced(now)?;
            let events =
                if self.pace.is_some() { self.epoll.look()? } else { self.epoll.wait(Some(left))? };
            for event in 0..events {
                let key = self.epoll.key(event);
                self.attend(key, |generator, connection| generator.answered(connection, key))?;
            }
        }
        Ok(())
    }

    /// Asks what is due, of one connection after the other. One that has too much unanswered is left out.
    fn ask_paced(&mut self, now: Instant) -> io::Result<()> {
        let count = self.connections.len() - usize::from(self.firehose.is_some());
        while let Some((number, due)) = self.pace.as_mut().and_then(|pace| pace.next(now)) {
            let key = number % count;
            self.attend(key, |generator, connection| {
                let full = connection.unanswered() == generator.inflight;
                if full {
                    Ok(())
                } else {
                    generator.ask(connection, key, 1, due)
                }
            })?;
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
        let beside = self.is_firehose(key);
        let mut complete = 0;
        let (other, most) = if beside { (self.firehose.as_mut(), FIREHOSE_PIECE) } else { (None, BUFFER) };
        let asked = connection.receive(other.unwrap_or(&mut self.message), &mut self.buffer[..most])?;
        let now = Instant::now();
        for since in asked {
            complete += 1;
            if self.phase == Phase::Measure && !beside {
                self.histogram.record(now - since);
            }
        }
        self.unanswered -= complete;
        if self.phase == Phase::Drain || (self.pace.is_some() && !beside) {
            return self.send(connection, key);
        }
        if self.churn && complete > 0 {
            return self.replace(connection, key, now);
        }
        self.ask(connection, key, complete, now)
    }

    fn ask(
        &mut self,
        connection: &mut Connection,
        key: usize,
        count: usize,
        since: Instant,
    ) -> io::Result<()> {
        connection.ask(count, since);
        self.unanswered += count;
        self.send(connection, key)
    }

    fn send(&mut self, connection: &mut Connection, key: usize) -> io::Result<()> {
        let beside = self.is_firehose(key);
        let (other, most) =
            if beside { (self.firehose.as_mut(), FIREHOSE_PIECE) } else { (None, usize::MAX) };
        connection.send(other.unwrap_or(&mut self.message), most, &self.epoll, key)
    }

    /// Closes `connection` and asks on a new one; its time begins before it connects.
    fn replace(&mut self, connection: &mut Connection, key: usize, now: Instant) -> io::Result<()> {
        *connection = Connection::new(self.endpoint.connect(self.opened)?, self.opened as u32)?;
        self.opened += 1;
        connection.register(&self.epoll, key)?;
        self.ask(connection, key, 1, now)
    }

    fn is_firehose(&self, key: usize) -> bool {
        self.firehose.is_some() && key + 1 == self.connections.len()
    }

    fn received_by_firehose(&self) -> u64 {
        let last = self.firehose.as_ref().and(self.connections.last());
        last.and_then(Option::as_ref).map_or(0, Connection::received)
    }

    fn report(&self) {
        let (requests, seconds) = (self.histogram.total(), self.measured.as_secs_f64());
        let throughput = requests as f64 / seconds;
        let message = &self.message;
        let bytes = throughput * message.length().max(message.answer_length()) as f64;
        let beside = self.beside as f64 / seconds;
        let [p50, p99, p999, max] =
            [0.5, 0.99, 0.999, 1.0].map(|share| self.histogram.quantile(share).as_secs_f64() * 1e6);
        println!(
            "{{\"requests\":{requests},\"seconds\":{seconds:.6},\"throughput\":{throughput:.1},\
             \"bytesPerSecond\":{bytes:.0},\"firehose\":{beside:.0},\"p50\":{p50:.1},\"p99\":{p99:.1},\
             \"p999\":{p999:.1},\"max\":{max:.1},\"errors\":{}}}",
            self.lost
        );
    }
}
