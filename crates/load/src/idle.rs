//! Connections that are only open, for the memory that they cost a server.

use std::io::{self, BufRead, Read, Write};
use std::net::TcpStream;

use crate::arguments::Arguments;
use crate::endpoint::Endpoint;
use crate::message::Message;

/// Does what stdin says, line by line, until it ends.
pub fn hold(arguments: &mut Arguments) -> io::Result<()> {
    let endpoint = Endpoint::from_arguments(arguments)?;
    let message = Message::from_arguments(arguments, 1)?;
    arguments.finish()?;
    let mut idle = Idle { endpoint, message, connections: Vec::new(), asked: 0 };
    for line in io::stdin().lock().lines() {
        let line = line?;
        match line.split_once(' ').map_or((line.as_str(), None), |(word, count)| (word, count.parse().ok())) {
            ("open", Some(count)) => idle.open(count)?,
            ("request", None) => idle.request()?,
            _ => return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("what is {line:?}?"))),
        }
    }
    Ok(())
}

struct Idle {
    endpoint: Endpoint,
    message: Message,
    connections: Vec<TcpStream>,
    /// The first so many have had their request.
    asked: usize,
}

impl Idle {
    fn open(&mut self, count: usize) -> io::Result<()> {
        for serial in self.connections.len()..count {
            self.connections.push(self.endpoint.connect_paced(serial)?);
        }
        println!("up {}", self.connections.len());
        Ok(())
    }

    fn request(&mut self) -> io::Result<()> {
        for (id, connection) in self.connections.iter_mut().enumerate().skip(self.asked) {
            connection.write_all(self.message.stream(id as u32, 0, 1))?;
            let mut answer = vec![0; self.message.length() as usize];
            connection.read_exact(&mut answer)?;
            if !self.message.agrees(id as u32, 0, &answer) {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("connection {id}: wrong answer"),
                ));
            }
        }
        self.asked = self.connections.len();
        println!("asked {}", self.asked);
        Ok(())
    }
}
