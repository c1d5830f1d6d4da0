//! What a poll does, seen from its two sides: the peers are real sockets on the loopback interface, and a
//! [`desk::Desk`] does JavaScript's part. The clock is the desk's own, and nothing here sleeps: a turn is
//! taken, and another one, until what is waited for has happened.

#![cfg(not(loom))]

mod accepting;
mod bell;
mod closing;
mod deadlines;
mod desk;
mod detaching;
mod dialing;
#[cfg(feature = "fault")]
mod faults;
mod memory;
mod moving;
mod peer;
mod reading;
mod records;
mod sequences;
mod writing;
mod zero_copy;
