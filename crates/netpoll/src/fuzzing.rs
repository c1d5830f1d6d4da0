//! What the fuzz targets of `crates/netpoll/fuzz` run. Each takes any bytes, makes calls of them, and asserts that
//! what they come to is what a model of it says, and that all memory comes back. `npm run fuzz` looks for bytes of
//! which that is not true; the tests go through those that were kept.

// A target that finds something panics, that is how it tells.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod addresses;
mod bytes;
mod error_queue;
mod link_buffer_ops;
mod ring_records;

pub use addresses::addresses;
pub use error_queue::error_queue;
pub use link_buffer_ops::link_buffer_ops;
pub use ring_records::ring_records;

#[cfg(test)]
mod tests {
    use super::*;

    fn replay(name: &str, target: fn(&[u8])) {
        let folder = format!("{}/fuzz/corpus/{name}", env!("CARGO_MANIFEST_DIR"));
        let inputs =
            std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
        assert!(!inputs.is_empty(), "{folder} has inputs");
        for input in inputs {
            // Shown when it fails.
            println!("{}", input.display());
            target(&std::fs::read(&input).unwrap());
        }
    }

    #[test]
    fn addresses_hold_for_the_corpus() {
        replay("addresses", addresses);
    }

    #[test]
    fn the_error_queue_holds_for_the_corpus() {
        replay("error_queue", error_queue);
    }

    #[test]
    fn link_buffer_ops_hold_for_the_corpus() {
        replay("link_buffer_ops", link_buffer_ops);
    }

    #[test]
    fn ring_records_hold_for_the_corpus() {
        replay("ring_records", ring_records);
    }
}
