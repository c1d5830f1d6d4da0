//! Connections that are closed as soon as they have said something.

use std::io::{self, Write};
use std::net::{Shutdown, TcpStream};

use crate::arguments::Arguments;
use crate::endpoint::Endpoint;
use crate::message::Message;
use crate::sys;

/// Each last one of so many waits for the end of its connection. A server accepts them in their order, so no more
/// than these wait in its backlog.
const PARTY: usize = 512;

/// Opens `--count` connections one after the other, sends one message on each, and closes it at once: by a FIN and
/// by a RST in turns.
pub fn pay(arguments: &mut Arguments) -> io::Result<()> {
    let endpoint = Endpoint::from_arguments(arguments)?;
    let count: usize = arguments.required("count")?;
    let mut message = Message::from_arguments(arguments, 1)?;
    arguments.finish()?;
    for serial in 0..count {
        let mut connection = endpoint.connect(serial)?;
        connection.write_all(message.stream(serial as u32, 0, 1))?;
        leave(connection, serial)?;
    }
    Ok(())
}

fn leave(mut connection: TcpStream, serial: usize) -> io::Result<()> {
    if serial % PARTY == PARTY - 1 {
        connection.shutdown(Shutdown::Write)?;
        return io::copy(&mut connection, &mut io::sink()).map(drop);
    }
    if serial % 2 == 1 {
        sys::reset_on_close(&connection)?;
    }
    Ok(())
}
