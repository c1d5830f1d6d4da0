//! What the floor does with the bytes that come.

use std::io;
use std::time::{Duration, Instant};

use crate::arguments::Arguments;
use crate::frame;
use crate::message::pattern;

/// A request of a download.
const REQUEST: u64 = 8;

/// How long a burnt request keeps the core.
const BURN: Duration = Duration::from_micros(20);

#[derive(Debug)]
pub enum Service {
    Echo,
    Frame,
    /// As echo, but each request takes its time; of so many bytes each.
    Burn(u64),
    /// Chunks of so many bytes, each answered by the count of all bytes up to its end.
    Upload(u64),
    /// Each request is answered by this body.
    Download(Vec<u8>),
}

/// What is to be sent, in this order.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Answer<'a> {
    /// The beginning of what came.
    pub bytes: &'a [u8],
    /// Counts of uploads.
    pub counts: Vec<u8>,
    /// Bodies of downloads.
    pub bodies: u64,
}

impl Service {
    pub fn from_arguments(arguments: &mut Arguments) -> io::Result<Self> {
        let name: String = arguments.optional("service")?.unwrap_or_else(|| "echo".to_owned());
        Ok(match name.as_str() {
            "echo" => Self::Echo,
            "frame" => Self::Frame,
            "burn" => Self::Burn(arguments.required::<u64>("size")?.max(1)),
            "upload" => Self::Upload(arguments.required::<u64>("size")?.max(1)),
            "download" => Self::Download(pattern(arguments.required::<usize>("size")?.max(1))),
            other => return Err(io::Error::other(format!("{other} is no service"))),
        })
    }

    /// The answer to `bytes`, the first of which is at position `from` of the stream, and how many of them it is for.
    pub fn answer<'a>(&self, from: u64, bytes: &'a [u8]) -> (Answer<'a>, usize) {
        let to = from + bytes.len() as u64;
        let complete = |size: u64| from / size + 1..=to / size;
        match self {
            Self::Echo => (Answer { bytes, ..Answer::default() }, bytes.len()),
            Self::Frame => {
                let end = frame::complete(bytes);
                (Answer { bytes: &bytes[..end], ..Answer::default() }, end)
            }
            Self::Burn(size) => {
                complete(*size).for_each(|_| burn());
                (Answer { bytes, ..Answer::default() }, bytes.len())
            }
            Self::Upload(size) => {
                let counts = complete(*size).flat_map(|chunk| (chunk * size).to_be_bytes()).collect();
                (Answer { counts, ..Answer::default() }, bytes.len())
            }
            Self::Download(_) => {
                let bodies = complete(REQUEST).count() as u64;
                (Answer { bodies, ..Answer::default() }, bytes.len())
            }
        }
    }

    pub fn body(&self) -> &[u8] {
        if let Self::Download(body) = self {
            body
        } else {
            &[]
        }
    }
}

fn burn() {
    let start = Instant::now();
    while start.elapsed() < BURN {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_frames_only_the_complete_ones_are_answered() {
        let (answer, taken) = Service::Frame.answer(0, &[0, 0, 0, 1, 7, 0, 0]);
        assert_eq!((answer.bytes, taken), (&[0, 0, 0, 1, 7][..], 5));
    }

    #[test]
    fn an_upload_is_answered_at_the_end_of_each_chunk() {
        let service = Service::Upload(10);
        assert_eq!(service.answer(0, &[0; 9]), (Answer::default(), 9));
        let counts = [10_u64.to_be_bytes(), 20_u64.to_be_bytes()].concat();
        assert_eq!(service.answer(9, &[0; 12]), (Answer { counts, ..Answer::default() }, 12));
    }

    #[test]
    fn a_download_is_a_body_for_each_complete_request() {
        let service = Service::Download(pattern(3));
        assert_eq!(service.answer(0, &[0; 7]).0.bodies, 0);
        assert_eq!(service.answer(7, &[0; 9]).0.bodies, 2);
    }

    #[test]
    fn a_burnt_request_comes_back_late() {
        let start = Instant::now();
        assert_eq!(Service::Burn(2).answer(1, b"xyz").0.bytes, b"xyz");
        assert!(start.elapsed() >= 2 * BURN);
    }
}
