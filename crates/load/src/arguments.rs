//! The command line: `--name value` pairs, and flags.

use std::collections::HashMap;
use std::io;
use std::str::FromStr;

/// These have no value.
const FLAGS: [&str; 4] = ["frame", "upload", "download", "hold"];

/// What was given and not yet asked for.
#[derive(Debug)]
pub struct Arguments {
    values: HashMap<String, String>,
}

impl Arguments {
    pub fn parse(mut words: impl Iterator<Item = String>) -> io::Result<Self> {
        let mut values = HashMap::new();
        while let Some(word) = words.next() {
            let name = word.strip_prefix("--").ok_or_else(|| invalid(&word, "is not an option"))?;
            let value = if FLAGS.contains(&name) { Some(String::new()) } else { words.next() };
            values.insert(name.to_owned(), value.ok_or_else(|| invalid(&word, "needs a value"))?);
        }
        Ok(Self { values })
    }

    pub fn flag(&mut self, name: &str) -> bool {
        self.values.remove(name).is_some()
    }

    pub fn optional<T: FromStr>(&mut self, name: &str) -> io::Result<Option<T>> {
        let Some(text) = self.values.remove(name) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| invalid(name, &format!("cannot be {text:?}")))
    }

    pub fn required<T: FromStr>(&mut self, name: &str) -> io::Result<T> {
        self.optional(name)?.ok_or_else(|| invalid(name, "is missing"))
    }

    /// To be called when all that is known has been taken.
    pub fn finish(&self) -> io::Result<()> {
        self.values.keys().next().map_or(Ok(()), |name| Err(invalid(name, "is unknown")))
    }
}

fn invalid(name: &str, what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("{name} {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> io::Result<Arguments> {
        Arguments::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn values_and_flags_are_taken_by_name() {
        let mut arguments = parse("--frame --port 80 --hold").unwrap();
        assert_eq!(arguments.required::<u16>("port").unwrap(), 80);
        assert_eq!(arguments.optional::<u16>("size").unwrap(), None);
        assert!(arguments.flag("frame") && arguments.flag("hold") && !arguments.flag("upload"));
        arguments.finish().unwrap();
    }

    #[test]
    fn what_is_missing_malformed_or_unknown_is_refused() {
        assert!(parse("port").is_err());
        assert!(parse("--port").is_err());
        assert!(parse("--port x").unwrap().required::<u16>("port").is_err());
        assert!(parse("").unwrap().required::<u16>("port").is_err());
        assert!(parse("--other 1").unwrap().finish().is_err());
    }
}
