//! The event-driven core of netpoll for Node. No Node in it: what drives it from outside is a
//! [`PollManager`], what it shares with JavaScript is a [`Border`] per poll.
//!
//! # The way of one byte
//!
//! 1. A client connects: the [`acceptor`] of a poll accepts it, the [`operators`] give it a slot, and an
//!    ACCEPT goes into the completion [`ring`].
//! 2. The byte arrives: epoll tells the [`poll`], whose [`turn`](poll::Poll::turn) lists the connection as
//!    ready and lets [`io`] read it into the block that [`intake`] offers. A DATA record lends the range to
//!    JavaScript, the tail of the ring is published, and the [`border`]'s doorbell rings once for the batch.
//! 3. JavaScript reads it in place and answers: SEND and DONE records in the submission ring.
//! 4. The poll's next turn takes them: SEND puts a range of a [`block`] into the connection's
//!    [`link_buffer`], `io` gathers up to 32 of them in a [`barrier`] and hands them to `sendmsg`, and DONE
//!    gives the block back to its table.
//!
//! A connection may also begin here: a [`dialer`] connects to several addresses, a [`race`] says when.
//!
//! What is large the kernel may send from where it lies: [`lending`] decides, a [`ledger`] keeps the memory.
//!
//! [`connection`], [`ledger`], [`lending`], [`link_buffer`], [`race`], [`ring`] and [`timers`] do no I/O and are given the time; only [`sys`]
//! speaks to libc.

mod acceptor;
mod address;
mod barrier;
mod block;
mod border;
mod busy_poll;
mod connection;
mod counters;
mod demand;
mod dialer;
mod driver;
#[cfg(any(all(test, not(loom)), fuzzing))]
pub mod fuzzing;
mod handover;
mod helm;
mod inbox;
mod intake;
mod io;
mod ledger;
mod lending;
mod limbo;
mod link_buffer;
mod listener;
mod loop_driver;
mod operators;
mod pin;
mod poll;
mod poll_manager;
mod quantum;
mod race;
mod rations;
mod ready_list;
mod record;
mod ring;
mod server;
#[cfg(test)]
#[cfg(not(loom))]
mod steps;
mod sync;
mod sys;
#[cfg(test)]
#[cfg(not(loom))]
mod tests;
mod thread_driver;
mod timers;
mod token;

pub use address::{decode as decode_endpoint, host_to_dial, host_to_resolve, AddressError, Endpoint};
pub use block::{Block, BlockTable, Chunk, CHUNK_SIZE};
pub use border::{Border, Doorbell};
pub use connection::Limits;
pub use counters::PollStats;
pub use dialer::DialOptions;
pub use driver::{Driver, Driving};
pub use inbox::LoadBalance;
pub use lending::ZeroCopy;
pub use listener::{ListenError, ListenOptions};
pub use loop_driver::{Look, LoopDriver, LoopTurn, Occasion};
pub use pin::PinTable;
pub use poll_manager::{Dialing, Listening, PollManager};
pub use server::Server;
pub use sys::{descriptor_limit, memory_limit, symbol};
