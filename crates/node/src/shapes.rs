//! The objects that go in and out of the calls: `ts/native.ts` is their TypeScript side.

use napi::bindgen_prelude::{Either, Either3, Null};
use napi_derive::napi;
use netpoll::{
    AddressError, DialOptions, Dialing, Endpoint, Limits, ListenError, ListenOptions, Listening, PollStats,
    Server,
};
use std::time::Duration;

/// Options of a listener; what is missing has the default of the public API.
#[napi(object)]
#[derive(Debug)]
pub struct ListenSettings {
    pub backlog: Option<i32>,
    pub reuse_port: Option<bool>,
    #[napi(js_name = "ipv6Only")]
    pub ipv6_only: Option<bool>,
    pub no_delay: Option<bool>,
    pub keep_alive: Option<bool>,
    pub recv_buffer: Option<u32>,
    pub send_buffer: Option<u32>,
    pub unlink: Option<bool>,
}

impl ListenSettings {
    pub(crate) fn options(&self) -> ListenOptions {
        ListenOptions {
            backlog: self.backlog.unwrap_or(4096),
            reuse_port: self.reuse_port.unwrap_or(false),
            ipv6_only: self.ipv6_only.unwrap_or(false),
            no_delay: self.no_delay.unwrap_or(true),
            keep_alive: self.keep_alive.unwrap_or(false),
            recv_buffer: self.recv_buffer.map(|size| size as usize),
            send_buffer: self.send_buffer.map(|size| size as usize),
            unlink: self.unlink.unwrap_or(false),
        }
    }
}

/// A listener that is bound and listening.
#[napi(object)]
#[derive(Debug)]
pub struct ListenSuccess {
    pub id: u32,
    pub fd: i32,
    pub family: u8,
    pub address: String,
    pub port: u16,
}

impl From<Listening> for ListenSuccess {
    fn from(listening: Listening) -> ListenSuccess {
        let Listening { id, descriptor, endpoint } = listening;
        let Endpoint { family, address, port } = endpoint;
        ListenSuccess { id, fd: descriptor, family, address, port }
    }
}

/// A failed system call.
#[napi(object)]
#[derive(Debug)]
pub struct SystemFailure {
    pub errno: i32,
    pub syscall: String,
}

/// A text that is no address, or one that only a resolver could turn into one.
#[napi(object)]
#[derive(Debug)]
pub struct AddressFailure {
    pub reason: String,
}

/// What `listen` answers.
pub type ListenOutcome = Either3<ListenSuccess, SystemFailure, AddressFailure>;

pub(crate) fn listen_outcome(outcome: Result<Listening, ListenError>) -> ListenOutcome {
    match outcome {
        Ok(listening) => Either3::A(listening.into()),
        Err(ListenError::System { syscall, error }) => {
            let errno = error.raw_os_error().unwrap_or_default();
            Either3::B(SystemFailure { errno, syscall: syscall.to_owned() })
        }
        Err(error @ (ListenError::Address(_) | ListenError::Taken)) => {
            Either3::C(AddressFailure { reason: error.to_string() })
        }
    }
}

/// What an event loop gives its connections; times in milliseconds, 0 is none.
#[napi(object)]
#[derive(Debug)]
pub struct ServeOptions {
    pub server: u32,
    pub write_timeout: u32,
    pub idle_timeout: u32,
    pub read_high_water_mark: u32,
    pub max_connections: u32,
    pub announce_accept: bool,
}

impl ServeOptions {
    pub(crate) fn server(&self) -> Server {
        let limits = Limits {
            read_high_water_mark: self.read_high_water_mark,
            idle_timeout: timeout(self.idle_timeout),
            write_timeout: timeout(self.write_timeout),
        };
        Server::new(self.server, limits, self.max_connections, self.announce_accept)
    }
}

/// What is dialed, and what the connection starts with; times in milliseconds, 0 is none.
#[napi(object)]
#[derive(Debug)]
pub struct DialSettings {
    pub network: String,
    pub address: String,
    pub resolved: Vec<String>,
    pub local_address: Option<String>,
    pub no_delay: bool,
    pub timeout: u32,
    pub write_timeout: u32,
    pub idle_timeout: u32,
    pub read_high_water_mark: u32,
}

impl DialSettings {
    pub(crate) fn options(&self) -> DialOptions {
        let local = self.local_address.clone();
        DialOptions { no_delay: self.no_delay, timeout: timeout(self.timeout), local }
    }

    pub(crate) fn server(&self) -> Server {
        let limits = Limits {
            read_high_water_mark: self.read_high_water_mark,
            idle_timeout: timeout(self.idle_timeout),
            write_timeout: timeout(self.write_timeout),
        };
        Server::new(0, limits, 0, true)
    }
}

/// A dial that a poll works at.
#[napi(object)]
#[derive(Debug)]
pub struct DialStart {
    pub poll: u32,
    pub endpoints: Vec<EndpointShape>,
}

/// What `dial` answers.
pub type DialOutcome = Either<DialStart, AddressFailure>;

pub(crate) fn dial_outcome(outcome: Result<Dialing, AddressError>) -> DialOutcome {
    match outcome {
        Ok(Dialing { poll, endpoints }) => {
            let endpoints = endpoints.into_iter().map(Into::into).collect();
            Either::A(DialStart { poll: poll as u32, endpoints })
        }
        Err(error) => Either::B(AddressFailure { reason: error.to_string() }),
    }
}

/// What an address says of its host.
pub type HostOutcome = Either3<String, Null, AddressFailure>;

pub(crate) fn host_outcome(outcome: Result<Option<String>, AddressError>) -> HostOutcome {
    match outcome {
        Ok(Some(host)) => Either3::A(host),
        Ok(None) => Either3::B(Null),
        Err(error) => Either3::C(AddressFailure { reason: error.to_string() }),
    }
}

fn timeout(milliseconds: u32) -> Option<Duration> {
    (milliseconds > 0).then(|| Duration::from_millis(u64::from(milliseconds)))
}

/// One end of a connection.
#[napi(object)]
#[derive(Debug)]
pub struct EndpointShape {
    pub family: u8,
    pub address: String,
    pub port: u16,
}

impl EndpointShape {
    pub(crate) fn decode(words: [u32; 6]) -> EndpointShape {
        let endpoint = netpoll::decode_endpoint(words);
        let unknown = Endpoint { family: Endpoint::UNIX, address: String::new(), port: 0 };
        endpoint.unwrap_or(unknown).into()
    }
}

impl From<Endpoint> for EndpointShape {
    fn from(endpoint: Endpoint) -> EndpointShape {
        let Endpoint { family, address, port } = endpoint;
        EndpointShape { family, address, port }
    }
}

/// Both ends of a connection.
#[napi(object)]
#[derive(Debug)]
pub struct Addresses {
    pub remote: EndpointShape,
    pub local: EndpointShape,
}

/// Counters of a poll; doubles hold them exactly for longer than any process lives.
#[napi(object)]
#[derive(Debug)]
pub struct PollCounters {
    pub connections: f64,
    pub turns: f64,
    pub wakeups: f64,
    pub doorbells: f64,
    pub reads: f64,
    pub sends: f64,
    pub accepts: f64,
    pub records: f64,
    pub stale_records: f64,
    pub flips: f64,
    pub is_on_thread: bool,
    pub lent: f64,
    pub copied: f64,
    pub fallbacks: f64,
}

impl From<PollStats> for PollCounters {
    fn from(stats: PollStats) -> PollCounters {
        PollCounters {
            connections: stats.connections as f64,
            turns: stats.turns as f64,
            wakeups: stats.wakeups as f64,
            doorbells: stats.doorbells as f64,
            reads: stats.reads as f64,
            sends: stats.sends as f64,
            accepts: stats.accepts as f64,
            records: stats.records as f64,
            stale_records: stats.stale_records as f64,
            flips: stats.flips as f64,
            is_on_thread: stats.is_on_thread,
            lent: stats.lent as f64,
            copied: stats.copied as f64,
            fallbacks: stats.fallbacks as f64,
        }
    }
}

/// Counters of an environment.
#[napi(object)]
#[derive(Debug)]
pub struct EnvironmentStats {
    pub polls: Vec<PollCounters>,
    pub blocks_out: f64,
    pub bytes_out: f64,
    pub chunk_bytes: f64,
    pub max_memory: f64,
    pub pins: f64,
}
