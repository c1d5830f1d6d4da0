//! The Node binding of netpoll: one [`environment::Environment`] per Node environment, the doorbell of
//! its thread, the loop as a driver of polls, and the mapping of chunks. No networking and no policy: those are in the
//! core and in TypeScript.

mod doorbell;
mod environment;
mod loop_driver;
mod shapes;
mod shared_memory;
mod status;
mod uv;

use napi::Env;
use napi_derive::napi;

/// Slots that a poll's tables need: no process can have more descriptors than its limit, and a slot more
/// would only cost memory.
#[napi(catch_unwind)]
pub fn slot_limit() -> u32 {
    const LEAST: u64 = 1024;
    const MOST: u64 = 1 << 20;
    netpoll::descriptor_limit().clamp(LEAST, MOST) as u32
}

/// Whether the loop of this runtime can drive polls.
#[napi(catch_unwind)]
pub fn has_loop_driver() -> bool {
    uv::is_there()
}

/// Whether this runtime lets JavaScript see native memory, on which everything here rests.
#[napi(catch_unwind)]
pub fn shares_memory(env: Env) -> bool {
    shared_memory::can_map(env.raw())
}
