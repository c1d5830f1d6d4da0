//! Results of Node-API's own functions.

use napi::{sys, Error, Result, Status};

/// Turns the status of a Node-API call into a result that names the call.
pub(crate) fn check(status: sys::napi_status, call: &str) -> Result<()> {
    if status == sys::Status::napi_ok {
        return Ok(());
    }
    let status = Status::from(status);
    Err(Error::new(status, format!("{call} failed: {status}")))
}
