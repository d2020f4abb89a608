//! The input of an import: one record per line, as `key<TAB>value` or as JSON. Bytes are taken
//! unchanged.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use bytes::Bytes;

use crate::args::InputFormat;
use crate::exit::{Exit, Failure};
use crate::json;

/// The bundled file: 8,192 Unicode characters and their names.
const BUNDLED: &str = include_str!("../../data/unicode-names.tsv");

/// The records to import, each key once.
#[derive(Debug)]
pub(crate) struct Input {
    /// The file's name, for messages.
    pub(crate) source: String,
    /// Number of lines with a record.
    pub(crate) lines: usize,
    /// Each key with its last value, in the order of keys.
    pub(crate) records: Vec<Record>,
}

/// One record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Record {
    pub(crate) key: Bytes,
    pub(crate) value: Bytes,
}

impl Input {
    /// Reads the file at `path`, or without one the bundled file.
    pub(crate) fn read(path: Option<&Path>, format: InputFormat) -> Result<Self, Failure> {
        let Some(path) = path else {
            return Self::parse("the bundled Unicode names", BUNDLED.as_bytes(), InputFormat::Tsv);
        };
        let name = path.display().to_string();
        let bytes = fs::read(path).map_err(|error| {
            Failure::new(Exit::Refused, format!("{name} cannot be read: {error}"))
        })?;
        Self::parse(&name, &bytes, format)
    }

    fn parse(source: &str, bytes: &[u8], format: InputFormat) -> Result<Self, Failure> {
        let refused = |what: String| Err(Failure::new(Exit::Refused, format!("{source}{what}")));
        let mut records = BTreeMap::new();
        let mut lines = 0;
        for (line, number) in bytes.split(|byte| *byte == b'\n').zip(1..) {
            if line.is_empty() {
                continue;
            }
            let record = match format {
                InputFormat::Tsv => tab_separated(line),
                InputFormat::Json => json::parse(line),
            };
            let (key, value) = match record {
                Ok(record) => record,
                Err(what) => return refused(format!(", line {number}: {what}")),
            };
            lines += 1;
            records.insert(key, value);
        }
        if records.is_empty() {
            return refused(" has no records".to_owned());
        }
        let records = records.into_iter().map(|(key, value)| Record { key, value }).collect();
        Ok(Self { source: source.to_owned(), lines, records })
    }

    /// Returns the number of lines whose value was replaced by a later line.
    pub(crate) fn replaced(&self) -> usize {
        self.lines - self.records.len()
    }
}

fn tab_separated(line: &[u8]) -> Result<(Bytes, Bytes), String> {
    let Some(tab) = line.iter().position(|byte| *byte == b'\t') else {
        return Err("there is no tab; a line is `key<TAB>value`".to_owned());
    };
    let (key, value) = line.split_at(tab);
    if key.is_empty() {
        return Err("the key is empty; a line is `key<TAB>value`".to_owned());
    }
    // The value begins after the first tab; further tabs are part of it.
    Ok((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value.get(1..).unwrap_or_default())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: &str, value: &str) -> Record {
        Record {
            key: Bytes::copy_from_slice(key.as_bytes()),
            value: Bytes::copy_from_slice(value.as_bytes()),
        }
    }

    #[test]
    fn the_bundled_file_has_thousands_of_unique_keys() {
        let input = Input::read(None, InputFormat::Tsv).unwrap();
        assert!(input.records.len() >= 5_000);
        assert_eq!(input.replaced(), 0);
        assert!(input.records.contains(&record("U+0041", "LATIN CAPITAL LETTER A")));
    }

    #[test]
    fn of_a_key_that_is_there_twice_the_last_value_counts() {
        let input = Input::parse("f", b"a\t1\nb\t2\n\na\t3\t4\nc\t", InputFormat::Tsv).unwrap();
        assert_eq!(input.records, [record("a", "3\t4"), record("b", "2"), record("c", "")]);
        assert_eq!((input.lines, input.replaced()), (4, 1));
    }

    #[test]
    fn bytes_are_taken_as_they_are() {
        let input = Input::parse("f", b"\xef\xbb\xbfa\t1\r\n", InputFormat::Tsv).unwrap();
        assert_eq!(input.records, [record("\u{feff}a", "1\r")]);
    }

    #[test]
    fn a_bad_line_is_named_with_its_file_and_number() {
        let told = |bytes: &[u8]| {
            Input::parse("words.tsv", bytes, InputFormat::Tsv).unwrap_err().to_string()
        };
        assert!(told(b"a\t1\n\nno tab\n").starts_with("words.tsv, line 3: there is no tab"));
        assert!(told(b"\tvalue").starts_with("words.tsv, line 1: the key is empty"));
        assert!(told(b"\n").starts_with("words.tsv has no records"));
        let missing =
            Input::read(Some(Path::new("/nonexistent/words.tsv")), InputFormat::Tsv).unwrap_err();
        assert!(missing.to_string().contains("/nonexistent/words.tsv"));
    }
}
